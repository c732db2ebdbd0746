"""Small statistics of scores and gradients: rows that are not finite, standardised rows, and the
correlation of two rankings.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def num_non_finite(gradient: Float[Tensor, "b s d"]) -> int:
    """Return how many rows hold a number that is not finite."""
    return int((~gradient.isfinite().flatten(1).all(1)).sum())


def standardised(
    scores: Float[Tensor, "b v"], allowed: Bool[Tensor, " v"] | None = None
) -> Float[Tensor, "b v"]:
    """Shift and scale each row to mean 0 and standard deviation 1.

    Args:
        scores: one row of scores for each sequence.
        allowed: the columns that mean and deviation (with n - 1) are taken over; None for all.

    Returns:
        All columns so shifted and scaled; rows whose allowed scores are all equal become 0.
    """
    kept = scores if allowed is None else scores[:, allowed]
    if kept.shape[1] < 2:
        return torch.zeros_like(scores)
    spread = kept.std(-1, keepdim=True)
    # Rounding gives equal scores a small deviation from their mean
    differ = (kept.amax(-1, keepdim=True) > kept.amin(-1, keepdim=True)) & (spread > 0)
    return torch.where(differ, (scores - kept.mean(-1, keepdim=True)) / spread, 0.0)


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Return Spearman's rank correlation, with average ranks for ties.

    Returns:
        A number from -1 to 1; 0 where either holds equal values alone, or n < 2.
    """
    x, y = _centred_ranks(a), _centred_ranks(b)
    scale = float(x.norm() * y.norm())
    return min(1.0, max(-1.0, float(x @ y) / scale)) if scale > 0 else 0.0


def _centred_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the average rank of each value, less the mean rank, in float64 on the CPU."""
    # mps has no float64
    distinct = values.detach().cpu().double().unique(return_inverse=True, return_counts=True)
    _, index, counts = distinct
    last = counts.cumsum(0).double()
    ranks = last - (counts - 1) / 2
    return ranks[index] - (len(values) + 1) / 2
