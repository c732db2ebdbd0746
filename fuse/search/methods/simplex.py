"""Projections of mixtures of tokens (arXiv 2402.09154, algorithms 2 and 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def onto_simplex(points: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
    """Return the nearest points whose numbers are not negative and sum up to 1 (Duchi et al. 2008).

    Each number is reduced by the same threshold, and is 0 where it is below.
    """
    ordered = points.sort(-1, descending=True).values
    count = torch.arange(1, points.shape[-1] + 1, device=points.device)
    thresholds = (ordered.cumsum(-1) - 1) / count
    last = (ordered > thresholds).sum(-1, keepdim=True) - 1
    return (points - thresholds.gather(-1, last)).clamp_min(0.0)


def onto_low_entropy(shares: Float[Tensor, "*b a"], max_entropy: float) -> Float[Tensor, "*b a"]:
    """Move points of the simplex away from the middle of its face, up to a Gini entropy 1 - sum p^2
    of `max_entropy`; those below it stay.

    The distance from the middle of n tokens' shares is sqrt(1 - entropy - 1 / n). The middle itself
    stays: nothing says where to move it.
    """
    positive = (shares > 0).to(shares)
    middle = positive / positive.sum(-1, keepdim=True)
    radius = (1 - max_entropy - middle.amax(-1, keepdim=True)).clamp_min(0.0).sqrt()
    away = shares - middle
    distance = away.norm(dim=-1, keepdim=True)
    near = (distance < radius) & (distance > 0)
    moved = onto_simplex(middle + away * (radius / distance.clamp_min(1e-12)))
    return torch.where(near, moved, shares)
