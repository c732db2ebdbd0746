"""Drawing tokens by their ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fuse.types import Ids


def draw(
    ranking: Float[Tensor, "b v"],
    count: int,
    rng: torch.Generator,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """Return for each row up to `count` different tokens, in the order in which they are to be
    taken.

    Args:
        ranking: how good each token is; -inf for one that is never drawn.
        temperature: 0 for the best tokens; above, tokens are drawn from softmax(ranking /
            temperature).
        top_p: drawn from the likeliest of this mass.
    """
    if not temperature:
        return ranking.topk(count).indices.tolist()
    ordered, order = _likeliest(ranking, temperature, top_p)
    # The largest of log p + Gumbel noise are a draw without replacement
    noise = -torch.empty_like(ordered).exponential_(generator=rng).log()
    drawn = (ordered + noise).topk(count)
    found = []
    for i in range(len(ranking)):
        kept = drawn.indices[i][drawn.values[i] > -torch.inf]
        found.append(order[i, kept].tolist())
    return found


def shares(
    ranking: Float[Tensor, "b v"], temperature: float, top_p: float = 1.0
) -> Float[Tensor, "b v"]:
    """Return the probability with which each token is drawn first, in float64."""
    ordered, order = _likeliest(ranking, temperature, top_p)
    return torch.empty_like(ordered).scatter_(-1, order, ordered.softmax(-1))


def _likeliest(
    ranking: Float[Tensor, "b v"], temperature: float, top_p: float
) -> tuple[Float[Tensor, "b v"], Int[Tensor, "b v"]]:
    """Return log softmax(ranking / temperature), the largest first, and the tokens; -inf beyond the
    likeliest of mass `top_p`.
    """
    log_shares = (ranking.cpu().double() / temperature).log_softmax(-1)
    ordered, order = log_shares.sort(-1, descending=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    return ordered.masked_fill(mass_before >= top_p, -torch.inf), order


def by_rank(rows: Sequence[Ids], position: int, ranking: Float[Tensor, " v"]) -> list[Ids]:
    """Return rows in the order of the ranks of their tokens at a position, the best first."""
    ranks, longer = ranking.tolist(), [row for row in rows if len(row) > position]
    return sorted(longer, key=lambda row: -ranks[row[position]])
