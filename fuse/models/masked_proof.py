"""Proof that a masked language model computes what its network computes as given.

Shape letters: t positions, v vocabulary, d width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.models.gradient_proof import GradientProof
from fuse.models.proof import (
    EAGER,
    FastWay,
    Proof,
    agree,
    check_repeats,
    plain_logits,
    use_eager,
)
from fuse.models.reuse_trial import TrialRows
from fuse.nn.batch import pad
from fuse.nn.position_tables import watching_positions
from fuse.nn.prefix_attention import Attention
from fuse.text.template import Encoded


class MaskedProof:
    """What a masked network predicts of a token in each of a few rows, when it reads them plainly.

    Args:
        model: a MaskedLM none of whose fast ways is on.

    Raises:
        FuseError: the network cannot read a text, or what it says changes from pass to pass.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._rows = model, TrialRows(model)
        self._attention = Attention(model.network)
        behind = 1 + len(model.vocabulary.tail)
        self._positions = [len(ids) - behind for ids in self._rows.ids]
        """Where each row's last token of its own stands, which is the one to predict."""
        self._masked = []
        for ids, at in zip(self._rows.ids, self._positions, strict=True):
            self._masked.append((*ids[:at], model.mask_id, *ids[at + 1 :]))
        self._read_plainly()
        if self.fits:
            self._gradient = self._gradient_proof()

    def _read_plainly(self) -> None:
        """Read the rows plainly."""
        model, network, device = self._model, self._model.network, self._model.device
        first = self._masked[0][: model.vocabulary.max_length]
        self._has_eager = use_eager(self._attention, lambda: plain_logits(network, first, device))
        with watching_positions(network, model.lookups.layers) as limits:
            logits = plain_logits(network, first, device)
        again = plain_logits(network, first, device)
        check_repeats(model, again.log_softmax(-1), logits.log_softmax(-1))
        length = min(limits, default=model.vocabulary.max_length)
        model.fit_vocabulary(logits.shape[-1], length)
        self.fits = self._rows.inputs.ids.shape[1] <= model.vocabulary.max_length
        """Whether the rows are short enough for the network."""
        self._expected = []
        for ids, at in zip(self._masked if self.fits else (), self._positions, strict=False):
            self._expected.append(plain_logits(network, ids, device)[at].log_softmax(-1))

    def settle(self) -> None:
        """Turn on the model's fast ways that agree with what was read plainly.

        Raises:
            FuseError: not even the plain way does.
        """
        if not self.fits:
            return
        model = self._model
        ways = [
            FastWay("prepacked weights", model.acceleration.turn),
            FastWay("logits of one position", model.turn_narrowed_output),
            FastWay("padded rows", model.turn_padding),
        ]
        if self._has_eager:
            ways.insert(0, FastWay("the attention as given", self._turn_attention))
        proof = Proof(model.network, self._agrees)
        if not proof.all_agree(ways):
            model.no_gradient = self._gradient.fault()
            proof.settle(ways)

    def _turn_attention(self, on: bool) -> None:
        self._attention.use(None if on else EAGER)

    def _agrees(self) -> bool:
        """Whether predictions and gradient are the expected ones in all ways that are on."""
        model, inputs, found = self._model, self._rows.inputs, []
        for row, at in enumerate(self._positions):
            # Beside a row of another length
            rows = torch.tensor([row, (row + 1) % len(self._positions)], device=model.device)
            found.append(model.position_log_probs(inputs, rows, at)[0])
        if not agree(model, torch.stack(found), torch.stack(self._expected)):
            return False
        return model.no_gradient is not None or self._gradient.fault() is None

    def _gradient_proof(self) -> GradientProof:
        """Return the proof of the gradient of what is predicted in the first row."""
        model, at, row = self._model, self._positions[0], self._rows.ids[0]
        inputs = pad([Encoded.of_ids(row)], model.device)

        def plain(log_probs: Float[Tensor, "t v"]) -> Tensor:
            return log_probs[at, row[at]]

        def own(embeddings: Float[Tensor, "1 t d"]) -> Tensor:
            rows = torch.zeros(1, dtype=torch.long, device=model.device)
            given = replace(inputs, embeddings=embeddings)
            return model.position_log_probs(given, rows, at)[0, row[at]]

        around = {model.mask_id, *model.vocabulary.head, *model.vocabulary.tail}
        kept = tuple(token for token in self._masked[0] if token not in around)
        return GradientProof(model, self._masked[0], plain, own, kept)
