"""Proof that a causal language model computes what its network computes as given.

Shape letters: t positions, n predictions, v vocabulary, d width.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.gradient_proof import GradientProof
from fuse.models.proof import (
    EAGER,
    MAX_REPEATED_ERROR,
    FastWay,
    Proof,
    agree,
    check_repeats,
    plain_logits,
    use_eager,
)
from fuse.models.reuse_trial import TrialRows
from fuse.nn.batch import Inputs, pad
from fuse.nn.position_tables import watching_positions
from fuse.nn.prefix_attention import PREFIX_ATTENTION, Attention
from fuse.text.template import Encoded
from fuse.types import Ids


class CausalProof:
    """What a causal network predicts when it reads a few rows plainly.

    Args:
        model: a CausalLM none of whose fast ways is on.

    Raises:
        FuseError: the network cannot read a text, or what it says of a token depends on later
            tokens, or changes from pass to pass.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._attention = Attention(model.network)
        self._rows = TrialRows(model)
        row = self._rows.ids[0][: max(1, model.vocabulary.max_length)]
        self._has_eager = use_eager(self._attention, lambda: self._logits(row))
        self._unpacked = EAGER if self._has_eager else None
        """The attention of rows that are not packed; None for that as given."""
        with watching_positions(model.network, model.lookups.layers) as limits:
            first = self._logits(row)
        self.max_length = min(limits, default=sys.maxsize)
        """How many tokens the network's tables of positions have room for."""
        self.num_predicted = first.shape[-1]
        """How many tokens the network predicts."""
        self._check_causal(row, first)
        self.fits = self._rows.fit and self._rows.inputs.ids.shape[1] <= self.max_length
        """Whether the rows are short enough for the network."""
        if self.fits:
            others = [self._logits(ids) for ids in self._rows.ids[1:]]
            self._expected = [logits.log_softmax(-1) for logits in (first, *others)]
            self._gradient = self._gradient_proof()

    def _logits(self, row: Ids) -> Float[Tensor, "t v"]:
        """Read one row plainly."""
        return plain_logits(self._model.network, row, self._model.device)

    def _check_causal(self, row: Ids, first: Float[Tensor, "t v"]) -> None:
        """Check that what comes last changes no prediction before it, nor does chance.

        Raises:
            FuseError: it does.
        """
        others = [token for token in self._rows.ids[1] if token != row[-1]]
        if len(row) < 2 or not others:  # nothing is predicted, or there is but one word
            return
        other = others[-1]
        changed = self._logits((*row[:-1], other))
        before = [logits[:-1].log_softmax(-1) for logits in (changed, first)]
        if not agree(self._model, before[0], before[1], MAX_REPEATED_ERROR):
            again = self._logits(row).log_softmax(-1)
            check_repeats(self._model, again, first.log_softmax(-1))
            raise FuseError(
                f"network={type(self._model.network).__name__}: what it says of a token depends on "
                "the tokens after it, so that it is no causal language model; "
                "load it as a masked_lm if it is one, or choose another"
            )

    # --- the ways --------------------------------------------------------------------------------

    def settle(self, *, may_pack: bool) -> None:
        """Turn on the model's fast ways that agree with what was read plainly.

        Args:
            may_pack: whether packing may be tried.

        Raises:
            FuseError: not even the plain way does.
        """
        if not self.fits:
            return
        model = self._model
        ways = [FastWay("the attention as given", self._turn_attention)] if self._has_eager else []
        ways.append(FastWay("prepacked weights", model.acceleration.turn))
        ways.append(FastWay("logits of what is read", model.turn_narrowed_output))
        ways.append(FastWay("logits read late", model.turn_late_logits))
        ways.append(FastWay("a narrowed last layer", model.turn_narrowed_layer))
        ways.append(FastWay("padded rows", model.turn_padding))
        ways.append(FastWay("rows that go on from a prefix cache", self._turn_prefix_cache))
        if may_pack:
            ways.append(FastWay("packed rows that go on from it", self._turn_packing))
        proof = Proof(model.network, self._agrees)
        if proof.all_agree(ways) or (may_pack and proof.all_agree(ways[:-1])):
            return
        model.no_gradient = self._gradient.fault()
        proof.settle(ways)

    def _turn_attention(self, on: bool) -> None:
        self._unpacked = None if on else EAGER
        self._attention.use(self._unpacked)

    def _turn_prefix_cache(self, on: bool) -> None:
        if on and not self._model.pads:
            raise NotImplementedError("without padded rows")
        self._model.supports_prefix_cache = on

    def _turn_packing(self, on: bool) -> None:
        if on and not self._model.supports_prefix_cache:
            raise NotImplementedError("without a prefix cache")
        self._model.supports_packing = on
        self._attention.use(PREFIX_ATTENTION if on else self._unpacked)

    def _agrees(self) -> bool:
        """Whether predictions and gradient are the expected ones in all ways that are on."""
        model, rows, length = self._model, self._rows, self._rows.length
        position = torch.arange(rows.inputs.mask.shape[1], device=model.device)
        read = rows.inputs.mask & (position >= length)
        expected = torch.cat([one[length - 1 : -1] for one in self._expected])
        batches = [rows.inputs]
        if model.supports_prefix_cache:
            batches.append(rows.from_cache(packed=False))
        if model.supports_packing:
            batches.append(rows.from_cache(packed=True))
        for inputs in batches:
            if not agree(model, self._log_probs(inputs, read), expected):
                return False
        return model.no_gradient is not None or self._gradient.fault() is None

    def _log_probs(self, inputs: Inputs, read: Tensor) -> Float[Tensor, "n v"]:
        """Return the log-probabilities of all tokens where `read` is true, row after row."""
        found = None
        for part in self._model.predictions(inputs, read):
            log_probs = part.logits.all_log_probs(part.index)
            if found is None:
                found = log_probs.new_zeros(*read.shape, log_probs.shape[-1])
            found[part.at] = log_probs.to(found)
        assert found is not None
        return found[read]

    def _gradient_proof(self) -> GradientProof:
        """Return the proof of the gradient of a row's log-probability."""
        model, row = self._model, self._rows.ids[0]
        inputs = pad([Encoded.of_ids(row)], model.device)
        read = torch.ones_like(inputs.mask)

        def plain(log_probs: Float[Tensor, "t v"]) -> Tensor:
            return log_probs[:-1].gather(1, inputs.ids[0, 1:, None]).sum()

        def own(embeddings: Float[Tensor, "1 t d"]) -> Tensor:
            return model.label_log_probs(replace(inputs, embeddings=embeddings), read).sum()

        return GradientProof(model, row, plain, own, row)
