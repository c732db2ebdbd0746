"""Networks that talk about a picture: how likely a text is after the picture and an instruction."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.causal_lm import CausalLM
from fuse.models.decoder import States
from fuse.models.image_prompt import ImagePrompts, load_processor
from fuse.models.loading import load_network, loading, preparing
from fuse.models.predictions import Predictions
from fuse.models.text_form import use_eager_attention
from fuse.nn.batch import CachedPrefixes, CacheHits, Inputs, pad
from fuse.nn.network_view import network_view
from fuse.text.template import Template
from fuse.types import Ids

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

INSTRUCTION = "Describe the picture in one sentence."
TRIED_TEXT = "A red house, in the snow!"
"""What is said of every picture when it is first looked at."""
MAX_ERROR, MAX_COARSE_ERROR = 1e-4, 0.3
"""How much a log-probability may differ from the network's own, in nats, or by this share of it if
that is more; the latter in coarse types.
"""


@dataclass(frozen=True)
class Picture:
    """A picture and an instruction as a network has read them.

    Args:
        ids: all their tokens; those of the picture are all the same.
        keys_values: of all these tokens but the last, for every layer.
        shift: how much further a text's positions are than its tokens are counted: pictures may
            have positions of their own.
    """

    ids: Ids
    keys_values: list[tuple[Tensor, Tensor]]
    shift: int = 0

    def hits(self, inputs: Inputs) -> CacheHits:
        """Let every row of a batch go on from it."""
        count, device = len(self.ids) - 1, inputs.ids.device
        position = torch.arange(inputs.ids.shape[1], device=device)
        cached = torch.where(position < count, position, -1).expand(len(inputs.ids), -1)
        prefixes = CachedPrefixes(self.keys_values, range(count, count + 1))
        row = torch.zeros(len(inputs.ids), dtype=torch.long, device=device)
        return CacheHits(prefixes, row, cached)


class ImageText(CausalLM):
    """A network from picture and text to text, such as LLaVA or SmolVLM.

    As it is made, it reads texts alone; `looking_at` puts a picture and an instruction before them.
    The network reads these once, in its own way; every text goes on from its keys and values.

    Args:
        processor: the network's own.
        proof_dir: as `CausalLM` has it.

    Raises:
        FuseError: the network does not read texts, or does not go on from a cache.
    """

    goal = "caption"
    picture: Picture | None = None
    """What stands before every text, with an instruction."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, processor: Any, *, proof_dir: Path | None = None) -> None:
        if network.config.is_encoder_decoder:
            raise FuseError(
                f"network={type(network).__name__}: its decoder does not read the picture as "
                "tokens; choose a network such as LLaVA or SmolVLM"
            )
        super().__init__(network, processor.tokenizer, proof_dir=proof_dir)
        if not self.supports_prefix_cache:
            raise FuseError(
                f"network={type(network).__name__}: it does not go on from a cache of what it has "
                "read, so that it would read the picture for every text; choose another"
            )
        self.prompts = ImagePrompts(processor)
        self._plain, _ = network_view(network)
        use_eager_attention(self._plain)

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        proof_dir: Path | None = None,
        **options: Any,
    ) -> ImageText:
        from transformers import AutoModelForImageTextToText

        kind = AutoModelForImageTextToText
        network = load_network(kind, model_id, device, dtype=dtype, **options)
        processor = load_processor(model_id, **options)
        with loading(model_id):
            return cls(network, processor, proof_dir=proof_dir)

    @torch.inference_mode(False)
    @torch.no_grad()
    def looking_at(self, image: Image, instruction: str = INSTRUCTION) -> ImageText:
        """Return the same model with a picture and an instruction before every text.

        Args:
            instruction: what the network is asked, in its chat template if it has one.

        Raises:
            FuseError: the network cannot read them, or says other things after its own reading.
        """
        found = copy.copy(self)
        found.replicas = []
        found.vocabulary = copy.copy(self.vocabulary)
        # The words of the instruction stay allowed, though they stand in the head
        found.vocabulary.allowed = self.vocabulary.allowed
        ids = self.vocabulary.encode([TRIED_TEXT])[0][0][:4]
        with preparing("text", "chat template"):
            found.picture, expected = self._read(image, instruction, ids)
        found.vocabulary.head = found.picture.ids
        found._check(ids, expected)
        return found

    def _read(
        self, image: Image, instruction: str, said: Ids
    ) -> tuple[Picture, Float[Tensor, " s"]]:
        """Let the network read a picture and an instruction, and say a text, in its own way.

        Returns:
            What it has read, and the log-probability of each token of the text.
        """
        *others, last = self.prompts.choices(instruction)
        for prompt in others:
            try:
                return self._said(self.prompts.inputs(image, prompt), said)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # each network refuses in its own way
                log.debug("%s: does not read %s (%r)", type(self._plain), prompt, error)
        return self._said(self.prompts.inputs(image, last), said)

    def _said(self, inputs: Any, said: Ids) -> tuple[Picture, Float[Tensor, " s"]]:
        """Let the network say these tokens by its own `generate`."""
        out = self._plain.generate(
            **inputs.to(self.device, self._plain.dtype),
            do_sample=False,
            num_beams=1,
            max_new_tokens=len(said),
            logits_processor=[_Saying(said)],
            return_dict_in_generate=True,
            output_logits=True,
            trust_remote_code=False,
        )
        ids = tuple(inputs["input_ids"][0].tolist())
        logits = torch.stack([step[0] for step in out.logits]).float()
        expected = logits.log_softmax(-1)[range(len(said)), said]
        cache = getattr(out, "cache", None) or out.past_key_values
        keys_values = []
        for layer in cache.layers:
            if layer.keys.shape[-2] != len(ids) + len(said) - 1:
                raise FuseError(
                    f"network={type(self._plain).__name__}: its cache does not hold every token "
                    "that it reads; choose a network such as LLaVA or SmolVLM"
                )
            count = len(ids) - 1
            keys_values.append((layer.keys[:, :, :count], layer.values[:, :, :count]))
        shift = getattr(self._plain.base_model, "rope_deltas", None)
        return Picture(ids, keys_values, 0 if shift is None else int(shift.flatten()[0])), expected

    def _check(self, ids: Ids, expected: Float[Tensor, " s"]) -> None:
        """Check that a text is as likely as the network itself finds it.

        Raises:
            FuseError: it is not.
        """
        rows = Template().surroundings(self.vocabulary).with_free_ids(ids)
        inputs = pad([rows], self.device)
        hits = self._after_picture(inputs).hits
        assert hits is not None
        coarse = torch.finfo(self.vocabulary.embedding.dtype).eps > 1e-5
        limit = MAX_COARSE_ERROR if coarse else MAX_ERROR
        for packed in (True, False):
            given = replace(inputs, hits=replace(hits, packed=packed))
            found = self.label_log_probs(given, inputs.free)[inputs.free].to(expected)
            error = float(((found - expected).abs() / expected.abs().clamp_min(1)).max())
            if not error <= limit:
                raise FuseError(
                    f"network={type(self._plain).__name__}: it reads texts after a picture in "
                    f"another way than alone (log-probabilities differ by {error:.1e}); "
                    "choose another"
                )

    def predictions(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> list[Predictions]:
        """Predict the tokens at the positions that `read` marks, as `CausalLM` does.

        Raises:
            FuseError: a row does not begin with the picture and the instruction.
        """
        return super().predictions(self._after_picture(inputs), read)

    @torch.no_grad()
    def prefill(self, inputs: Inputs, positions: Sequence[int]) -> CachedPrefixes:
        """Read whole rows, which go on from the picture."""
        return super().prefill(self._after_picture(inputs), positions)

    def _run(
        self,
        ids: Int[Tensor, "u t"],
        embeddings: Float[Tensor, "u t d"] | None,
        index: Int[Tensor, " c"],
        options: dict[str, Any],
    ) -> States:
        """Run the network as `Decoder` does, with the positions of texts after the picture."""
        shift = 0 if self.picture is None else self.picture.shift
        if shift:
            positions = options.get("position_ids")
            if positions is None:
                start = options[self._cache_name].get_seq_length()
                positions = torch.arange(start, start + ids.shape[1], device=ids.device)
                positions = positions.expand(len(ids), -1)
            options = {**options, "position_ids": positions + shift}
        return super()._run(ids, embeddings, index, options)

    def _after_picture(self, inputs: Inputs) -> Inputs:
        """Return rows that go on from the picture, if there is one."""
        if self.picture is None:
            return inputs
        head = torch.tensor(self.picture.ids, device=inputs.ids.device)
        if not _begins(inputs.ids, head):
            raise FuseError(
                "start: the picture and the instruction have to stand before all; give start=auto"
            )
        hits, before = inputs.hits, len(head) - 1
        if hits is not None and bool((hits.cached_position[:, :before] >= 0).all()):
            return inputs
        return replace(inputs, hits=self.picture.hits(inputs))


class _Saying:
    """A step of generation that lets a network say given tokens."""

    def __init__(self, ids: Ids) -> None:
        self._ids = list(ids)

    def __call__(self, input_ids: Int[Tensor, "b t"], scores: Float[Tensor, "b v"]) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._ids.pop(0)] = 0
        return forced


def _begins(ids: Int[Tensor, "b t"], head: Int[Tensor, " h"]) -> bool:
    """Whether every row begins with these ids."""
    return ids.shape[1] >= len(head) and bool((ids[:, : len(head)] == head).all())
