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
from fuse.models.kept_proof import Findings
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
    """What a causal network predicts when it reads a few rows plainly, and its fast ways to read.

    Args:
        model: a CausalLM none of whose fast ways is on.
        may_pack: whether packing may be tried.
    """

    def __init__(self, model: Any, *, may_pack: bool) -> None:
        self._model, self._may_pack = model, may_pack
        self._attention = Attention(model.network)
        self._unpacked: str | None = None
        """The attention of rows that are not packed; None for that as given."""

    def prove(self) -> Findings:
        """Turn on the model's fast ways that agree with what it reads plainly.

        Raises:
            FuseError: the network cannot read a text, or what it says of a token depends on later
                tokens, or changes from pass to pass.
        """
        model = self._model
        self._rows = TrialRows(model)
        row = self._rows.ids[0][: max(1, model.vocabulary.max_length)]
        has_eager = use_eager(self._attention, lambda: self._logits(row))
        self._unpacked = EAGER if has_eager else None
        with watching_positions(model.network, model.lookups.layers) as limits:
            first = self._logits(row)
        max_length, num_predicted = min(limits, default=sys.maxsize), first.shape[-1]
        self._check_causal(row, first)
        fits = self._rows.fit and self._rows.inputs.ids.shape[1] <= max_length
        if fits:
            others = [self._logits(ids) for ids in self._rows.ids[1:]]
            self._expected = [logits.log_softmax(-1) for logits in (first, *others)]
            self._gradient = self._gradient_proof()
        model.fit_vocabulary(num_predicted, max_length)
        ways = self._settle(self._ways(has_eager)) if fits else ()
        return Findings(num_predicted, max_length, has_eager, ways, model.no_gradient)

    def apply(self, found: Findings) -> None:
        """Turn on the fast ways of which it is known that they agree."""
        self._unpacked = EAGER if found.has_eager else None
        self._attention.use(self._unpacked)
        self._model.fit_vocabulary(found.num_predicted, found.max_length)
        self._model.no_gradient = found.no_gradient
        for way in self._ways(found.has_eager):
            if way.name in found.ways:
                way.turn(True)

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

    def _ways(self, has_eager: bool) -> list[FastWay]:
        """Return the fast ways, those first that others need."""
        model = self._model
        ways = [FastWay("the attention as given", self._turn_attention)] if has_eager else []
        ways.append(FastWay("prepacked weights", model.acceleration.turn))
        ways.append(FastWay("logits of what is read", model.turn_narrowed_output))
        ways.append(FastWay("logits read late", model.turn_late_logits))
        ways.append(FastWay("a narrowed last layer", model.turn_narrowed_layer))
        ways.append(FastWay("padded rows", model.turn_padding))
        ways.append(FastWay("rows that go on from a prefix cache", self._turn_prefix_cache))
        if self._may_pack:
            ways.append(FastWay("packed rows that go on from it", self._turn_packing))
        return ways

    def _settle(self, ways: list[FastWay]) -> tuple[str, ...]:
        """Turn on the ways that agree with what was read plainly, and return their names.

        Raises:
            FuseError: not even the plain way does.
        """
        proof = Proof(self._model.network, self._agrees)
        for tried in (ways, ways[:-1]) if self._may_pack else (ways,):
            if proof.all_agree(tried):
                return tuple(way.name for way in tried)
        self._model.no_gradient = self._gradient.fault()
        return proof.settle(ways)

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
