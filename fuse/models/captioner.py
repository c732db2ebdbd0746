"""Captioners: networks that put a picture into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.chat import render
from fuse.models.loading import load_network, load_pretrained, loading, preparing
from fuse.nn.network_view import network_view

if TYPE_CHECKING:
    from PIL.Image import Image


class Captioner:
    """A Hugging Face network from image to text: BLIP, BLIP-2, or one with a chat template."""

    def __init__(self, network: Any, processor: Any) -> None:
        self.network, _ = network_view(network)
        self.processor = processor
        self._chats: dict[str, str] = {}
        """What the chat template makes of each question."""

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> Captioner:
        """Load a model from a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read, or does not turn pictures into text.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        kind = AutoModelForImageTextToText
        network = load_network(kind, model_id, device, dtype=dtype, **options)
        processor = load_pretrained(AutoProcessor, model_id, **options)
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise FuseError(
                f"model_id={model_id}: it lacks the files of its tokenizer or image processor; "
                "choose another"
            )
        with loading(model_id):
            return cls(network, processor)

    @torch.no_grad()
    def caption(
        self,
        image: Image,
        count: int = 1,
        max_new_tokens: int = 30,
        question: str = "Describe the picture in one sentence.",
    ) -> list[str]:
        """Return different texts about the image by beam search, the likeliest first.

        They are the same on every call.

        Args:
            count: how many texts.
            max_new_tokens: how long each may be.
            question: what networks with a chat template are asked. Only what the network says
                itself is returned.

        Raises:
            FuseError: an option below 1, or the network says fewer different texts.
        """
        for name, value in (("count", count), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise FuseError(f"{name}={value}: expected a whole number from 1")
        texts: list[str] = []
        num_beams = max(4, count)
        for width in (num_beams, 2 * num_beams, 4 * num_beams):
            # Some beams may differ in white space alone
            texts = self._beam_search(image, width, max_new_tokens, question)
            if len(texts) >= count:
                return texts[:count]
        raise FuseError(
            f"count={count}: this captioner finds only {len(texts)} different texts "
            "for the picture; ask for fewer"
        )

    def _beam_search(
        self, image: Image, width: int, max_new_tokens: int, question: str
    ) -> list[str]:
        """Return the different texts of all beams, best first."""
        prompt = _PromptLength()
        with preparing("text", "generation_config.json or chat template"):
            inputs = self._inputs(image, question).to(self.network.device, self.network.dtype)
            rows = self.network.generate(
                **inputs,
                do_sample=False,
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=max_new_tokens,
                logits_processor=[prompt],
                trust_remote_code=False,
            )
        new = rows[:, prompt.length :]
        decoded = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        texts = [" ".join(text.split()) for text in decoded]
        return list(dict.fromkeys(text for text in texts if text))

    def _inputs(self, image: Image, question: str) -> Any:
        """Return what the network reads: image and question as a chat, or the image alone."""
        if not self.processor.chat_template:
            return self.processor(images=image, return_tensors="pt")
        words = {"type": "text", "text": question}
        special = self.processor.tokenizer.special_tokens_map
        messages = [{"role": "user", "content": [{"type": "image"}, words]}]
        if question not in self._chats:
            self._chats[question] = render(self.processor.chat_template, messages, special)
        return self.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": image}, words]}],
            chat_template="{{ rendered }}",
            rendered=self._chats[question],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


class _PromptLength:
    """A step of generation that notes how many tokens stand before the first new one."""

    def __init__(self) -> None:
        self.length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.length is None:
            self.length = input_ids.shape[1]
        return scores
