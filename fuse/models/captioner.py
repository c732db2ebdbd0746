"""Captioners: networks that put a picture into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import load_network, load_pretrained

if TYPE_CHECKING:
    from PIL.Image import Image


class Captioner:
    """A Hugging Face network from image (and text) to text: BLIP, BLIP-2, or one that is talked to by a chat template."""

    def __init__(self, network: Any, processor: Any) -> None:
        self.network = network.eval().requires_grad_(False)
        self.processor = processor

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> Captioner:
        """From a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read, or does not turn pictures into text.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        network = load_network(AutoModelForImageTextToText, model_id, dtype=dtype, **options).to(device)
        processor = load_pretrained(AutoProcessor, model_id)
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise FuseError(f"model_id={model_id}: it lacks the files of its tokenizer or image processor; choose another")
        return cls(network, processor)

    @torch.no_grad()
    def caption(
        self, image: Image, count: int = 1, max_new_tokens: int = 30, question: str = "Describe the picture in one sentence."
    ) -> list[str]:
        """`count` different texts about the picture, the likeliest first, by beam search; the same on every call.

        `question` is put to networks that have a chat template. Only what the network says itself is returned.

        Raises:
            FuseError: an option below 1, or the network says fewer different texts.
        """
        for name, value in (("count", count), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise FuseError(f"{name}={value}: expected a whole number from 1")
        texts: list[str] = []
        beams = max(4, count)
        for width in (beams, 2 * beams, 4 * beams):  # some beams may differ in white space alone
            texts = self._beam_search(image, width, max_new_tokens, question)
            if len(texts) >= count:
                return texts[:count]
        raise FuseError(f"count={count}: this captioner finds only {len(texts)} different texts for the picture; ask for fewer")

    def _beam_search(self, image: Image, width: int, max_new_tokens: int, question: str) -> list[str]:
        """The different texts of all beams, best first."""
        prompt = _PromptLength()
        inputs = self._inputs(image, question).to(self.network.device, self.network.dtype)
        rows = self.network.generate(
            **inputs,
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=max_new_tokens,
            logits_processor=[prompt],
        )
        said = self.processor.tokenizer.batch_decode(rows[:, prompt.length :], skip_special_tokens=True)
        return list(dict.fromkeys(text for text in (" ".join(text.split()) for text in said) if text))

    def _inputs(self, image: Image, question: str) -> Any:
        """What the network reads: the picture and the question as a chat, or the picture alone."""
        if not self.processor.chat_template:
            return self.processor(images=image, return_tensors="pt")
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")


class _PromptLength:
    """A step of generation that changes nothing: it notes how many tokens stand before the first new one."""

    def __init__(self) -> None:
        self.length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.length is None:
            self.length = input_ids.shape[1]
        return scores
