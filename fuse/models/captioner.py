"""Captioners: networks that put a picture into words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.image_prompt import ImagePrompt, ImagePrompts, load_processor
from fuse.models.loading import load_network, loading, preparing
from fuse.nn.network_view import network_view

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


class Captioner:
    """A Hugging Face network from image to text: BLIP, Florence-2, ViT-GPT2, LLaVA and others."""

    def __init__(self, network: Any, processor: Any) -> None:
        self.network, _ = network_view(network)
        self.processor = processor
        self.prompts = ImagePrompts(processor)

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
        from transformers import AutoModelForImageTextToText

        kind = AutoModelForImageTextToText
        network = load_network(kind, model_id, device, dtype=dtype, **options)
        processor = load_processor(model_id, **options)
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
            choices = self.prompts.choices(question, prompt)
            rows = self._generate_from_first(image, choices, **options)
        decoded = self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
        texts = [" ".join(text.split()) for text in decoded]
        return list(dict.fromkeys(text for text in texts if text))

    def _generate_from_first(
        self, image: Image, prompts: Sequence[ImagePrompt], **options: Any
    ) -> Int[Tensor, "b t"]:
        """Return new tokens after the first of some prompts that the network takes."""
        for prompt in prompts[:-1]:
            try:
                return self._generate(self.prompts.inputs(image, prompt), **options)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # each network refuses in its own way
                log.debug("%s: no caption after %s (%r)", type(self.network), prompt, error)
        return self._generate(self.prompts.inputs(image, prompts[-1]), **options)

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


class _PromptLength:
    """A step of generation that notes how many tokens stand before the first new one."""

    def __init__(self) -> None:
        self.length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.length is None:
            self.length = input_ids.shape[1]
        return scores
