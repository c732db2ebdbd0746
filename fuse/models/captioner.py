"""Captioners: networks that put a picture into words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.chat import render
from fuse.models.loading import load_network, load_pretrained, loading, preparing
from fuse.nn.network_view import network_view

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

TASKS = {
    "Florence2Processor": "<CAPTION>",
    "FuyuProcessor": "Generate a coco-style caption.\n",
    "Kosmos2Processor": "An image of",
    "PaliGemmaProcessor": "<image>caption en",
}
"""What networks without a chat template were taught to caption at, by their processors."""


class Captioner:
    """A Hugging Face network from image to text: BLIP, Florence-2, ViT-GPT2, LLaVA and others."""

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
        processor = load_pretrained(AutoProcessor, model_id)
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            processor = _ProcessorPair.load(model_id)
        with loading(model_id):
            return cls(network, processor)

    @torch.no_grad()
    def caption(
        self,
        image: Image,
        count: int = 1,
        max_new_tokens: int = 30,
        question: str = "Describe the picture in one sentence.",
        prompt: str | None = None,
    ) -> list[str]:
        """Return different texts about the image by beam search, the likeliest first.

        They are the same on every call.

        Args:
            count: how many texts.
            max_new_tokens: how long each may be.
            question: what networks are asked that take a question.
            prompt: the whole text that the network goes on from, with the token that stands for the
                picture if it has one; None for the question in its chat template, or what networks
                of its family are told. Only what it says itself is returned.

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
            texts = self._beam_search(image, width, max_new_tokens, question, prompt)
            if len(texts) >= count:
                return texts[:count]
        raise FuseError(
            f"count={count}: this captioner finds only {len(texts)} different texts "
            "for the picture; ask for fewer"
        )

    def _beam_search(
        self, image: Image, width: int, max_new_tokens: int, question: str, prompt: str | None
    ) -> list[str]:
        """Return the different texts of all beams, best first."""
        options = {
            "num_beams": width,
            "num_return_sequences": width,
            "max_new_tokens": max_new_tokens,
        }
        with preparing("text", "generation_config.json or chat template"):
            if prompt is None and self.processor.chat_template:
                rows = self._generate(self._chat_inputs(image, question), **options)
            else:
                prompts = self._prompts(question) if prompt is None else [prompt]
                rows = self._generate_from_first(image, prompts, **options)
        decoded = self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
        texts = [" ".join(text.split()) for text in decoded]
        return list(dict.fromkeys(text for text in texts if text))

    def _prompts(self, question: str) -> list[str | None]:
        """Return what a network without a chat template may want to be told; None for nothing."""
        task = TASKS.get(type(self.processor).__name__)
        if task is not None:
            return [task]
        token = getattr(self.processor, "image_token", None)
        with_picture = [] if token is None else [f"{token}\n{question}"]
        return [None, *with_picture, question]

    def _generate_from_first(
        self, image: Image, prompts: Sequence[str | None], **options: Any
    ) -> Int[Tensor, "b t"]:
        """Return new tokens after the first of some prompts that the network takes."""
        for prompt in prompts[:-1]:
            try:
                return self._generate(self._inputs(image, prompt), **options)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # each network refuses in its own way
                log.debug("%s: no caption after %r (%r)", type(self.network), prompt, error)
        return self._generate(self._inputs(image, prompts[-1]), **options)

    def _generate(self, inputs: Any, **options: Any) -> Int[Tensor, "b t"]:
        """Return the tokens that the network says itself, of every beam."""
        start = _PromptLength()
        rows = self.network.generate(
            **inputs.to(self.network.device, self.network.dtype),
            do_sample=False,
            logits_processor=[start],
            trust_remote_code=False,
            **options,
        )
        return rows[:, start.length :]

    def _inputs(self, image: Image, prompt: str | None) -> Any:
        """Return what the network reads: the image, and a prompt if there is one."""
        text = {} if prompt is None else {"text": prompt}
        return self.processor(images=image, return_tensors="pt", **text)

    def _chat_inputs(self, image: Image, question: str) -> Any:
        """Return what the network reads: image and question as a chat."""
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


class _ProcessorPair:
    """A tokenizer and an image processor of a network that has no processor for both."""

    chat_template = None

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor

    @classmethod
    def load(cls, model_id: str) -> _ProcessorPair:
        """Load both.

        Raises:
            FuseError: one is missing.
        """
        from transformers import AutoImageProcessor, AutoTokenizer

        return cls(
            load_pretrained(AutoTokenizer, model_id), load_pretrained(AutoImageProcessor, model_id)
        )

    def __call__(self, images: Image, return_tensors: str) -> Any:
        return self.image_processor(images=images, return_tensors=return_tensors)


class _PromptLength:
    """A step of generation that notes how many tokens stand before the first new one."""

    def __init__(self) -> None:
        self.length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.length is None:
            self.length = input_ids.shape[1]
        return scores
