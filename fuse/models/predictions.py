"""What a causal language model predicts for the tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.nn.batch import Inputs
from fuse.nn.lm_head import LazyLogits


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for n tokens.

    `logits` at `index[i]` predict the token at position `position[i]` of row `row[i]`.
    """

    logits: LazyLogits
    index: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    position: Int[Tensor, " n"]

    @property
    def at(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Rows and positions, as an index of a batch [b t]."""
        return self.row, self.position

    def add_label_shift(
        self, log_probs: Float[Tensor, "b t"], inputs: Inputs
    ) -> Float[Tensor, "b t"]:
        """Add the shifts `inputs.labels` of those positions that are predicted here."""
        assert inputs.labels is not None
        assert inputs.label_positions is not None
        index = torch.full_like(inputs.ids, -1).index_put(self.at, self.index)
        index = index.gather(1, inputs.label_positions)  # [b p]
        row, label = (index >= 0).nonzero(as_tuple=True)
        # The shift is zero, and so is the gradient by what it is multiplied with
        all_log_probs = self.logits.all_log_probs(index[row, label]).detach()
        all_log_probs = all_log_probs[:, : inputs.labels.shape[-1]]
        shift = (inputs.labels[row, label] * all_log_probs).sum(-1)
        at = row, inputs.label_positions[row, label]
        return log_probs.index_put(at, shift, accumulate=True)


def state_kind(rows: Inputs, needed: Bool[Tensor, "u t"]) -> Int[Tensor, " n"]:
    """Return a number for each needed state: equal for states that are alike, 0 for others.

    States are alike where the same token of the label follows the same token.
    """
    # Which token of the label comes next, from 1; 0 if none does
    next_label = torch.where(rows.label, rows.label.cumsum(1), 0).roll(-1, 1)[needed]
    pairs = torch.stack([next_label, rows.ids[needed]], 1)
    return torch.where(next_label > 0, pairs.unique(dim=0, return_inverse=True)[1] + 1, 0)
