"""How well an adapter's scores rank what really happens to a secondary's loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Fidelity:
    """`spearman`: rank correlation, from -1 to 1. `recall`: share of the truly best 10 in the best tenth of the ranking."""

    spearman: float
    recall: float


def fidelity(predicted: Float[Tensor, " n"], true: Float[Tensor, " n"], best: int = 10) -> Fidelity:
    """Compare predicted and true changes of the loss (lower is better) over n substitutions."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (predicted, true)])
    wanted = set(true.topk(best, largest=False).indices.tolist())
    shortlist = set(predicted.topk(len(predicted) // 10, largest=False).indices.tolist())
    return Fidelity(float(torch.corrcoef(ranks)[0, 1]), len(wanted & shortlist) / best)
