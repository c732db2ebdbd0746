"""Embedding optimisation for targeted generation: many different prompts that make the primary say a label.

A batch of continuous prompts on the token sphere descends the objective together with two regularisers of its own; every
discrete prompt on the way that makes the primary greedily say the label is collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.methods.base import require_choices, require_not_negative, require_positive
from fuse.methods.continuous import Continuous
from fuse.types import Ids

CENTROIDS = 256
STARTS = ("kmeans", "random", "label")


@dataclass(frozen=True)
class State:
    """The continuous prompts [b s d], the optimiser's memory, the points that rows start from, and what was collected."""

    points: Float[Tensor, "b s d"]
    memory: Any
    pool: Float[Tensor, "c d"]
    found: tuple[Ids, ...] = ()


@dataclass(frozen=True)
class Embedding(Continuous):
    """Minimises the objective + `distance_weight` x mean distance to the closest token + `diversity_weight` x
    -log(1 + unique / total), by AdamW with `lr` and `weight_decay`, on `search_width` prompts at once.

    Of the objective's gradient the share `straight_through` is taken at the nearest tokens, as PEZ does, the rest at the
    continuous prompts: what descends for these alone often fails as tokens. `lr` is in units of the root mean square
    coordinate of a point; distances are in units of the sphere's radius, the mean norm of the allowed embeddings.
    unique / total is the share of different tokens, counted softly: a point counts 1 / (sum over all points of
    exp(-distance^2 / `BANDWIDTH`^2)).
    Rows start from k-means centroids of the table (`start` kmeans), allowed tokens (random) or the tokens nearest to the
    label's (label); a row that succeeds starts anew.
    """

    search_width: int = 16
    start: str = "kmeans"
    distance_weight: float = 0.1
    diversity_weight: float = 0.1
    straight_through: float = 0.5
    lr: float = 1.0
    weight_decay: float = 0.0
    prompt_length: int = 12
    steps: int = 300

    def __post_init__(self) -> None:
        require_positive(self, "search_width", "prompt_length")
        require_not_negative(self, "distance_weight", "diversity_weight")
        require_choices(self, "start", STARTS)
        if not 0 <= self.straight_through <= 1:
            raise FuseError(f"method.straight_through={self.straight_through}: expected a number from 0 to 1")

    def propose(self, state: State | None, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[State, list[Ids]]:
        state = state or self._begin(beam[0], guide, generator)
        radius = guide.radius
        rows = guide.nearest_rows(state.points)
        nearest = guide.vocabulary.embedding[torch.tensor(rows, device=state.points.device)].float()
        # The objective's gradient, partly at the points and partly at the tokens nearest to them
        at = [(1 - self.straight_through, state.points), (self.straight_through, nearest)]
        gradient = self._regulariser_gradient(state.points, nearest, radius)
        gradient += sum((share * guide.embedding_gradient(where, rows) for share, where in at if share), torch.zeros_like(gradient))
        unit = radius / state.points.shape[-1] ** 0.5
        points, memory = self.descend(state.points / unit, unit * gradient, state.memory)
        points = radius * normalize(points, dim=-1)
        spelled = guide.spelled(guide.vocabulary.decode(guide.nearest_rows(points)))
        rows = list(dict.fromkeys(row for row in spelled if row))
        succeeded = {row for row, said in zip(rows, guide.says_label(rows), strict=True) if said}
        again = torch.tensor([row in succeeded for row in spelled], device=points.device)
        fresh = self._draw(state.pool, int(again.sum()), points.shape[1], radius, generator)
        points[again] = fresh
        for moment in memory["state"][0].values():
            if moment.shape == points.shape:
                moment[again] = 0.0
        found = tuple(dict.fromkeys([*state.found, *(row for row in rows if row in succeeded)]))
        return State(points, memory, state.pool, found), rows

    def found(self, state: State | None) -> Sequence[Ids]:
        return state.found if state else ()

    def _begin(self, first: Ids, guide: Guide, generator: torch.Generator) -> State:
        """A batch from the pool; its first row is the first prompt."""
        table, tokens = guide.vocabulary.embedding.float(), guide.allowed.nonzero().flatten()
        if self.start == "label":
            if not guide.label_ids:
                raise FuseError("label=null: method.start=label begins near the label's tokens; give label=TEXT")
            distance = torch.cdist(table[list(guide.label_ids)], table[tokens])
            pool = table[tokens[distance.topk(min(16, len(tokens)), largest=False).indices.flatten()]]
        else:
            pool = _centroids(table[tokens], CENTROIDS, generator) if self.start == "kmeans" else table[tokens]
        points = self._draw(pool, self.search_width, len(first), guide.radius, generator)
        points[0] = guide.radius * normalize(table[list(first)], dim=-1)
        return State(points, None, pool)

    def _draw(
        self, pool: Float[Tensor, "c d"], rows: int, length: int, radius: float, generator: torch.Generator
    ) -> Float[Tensor, "b s d"]:
        """New rows from points of the pool, on the sphere."""
        drawn = torch.randint(len(pool), (rows, length), generator=generator).to(pool.device)
        return radius * normalize(pool[drawn], dim=-1)

    def _regulariser_gradient(
        self, points: Float[Tensor, "b s d"], nearest: Float[Tensor, "b s d"], radius: float
    ) -> Float[Tensor, "b s d"]:
        """The gradient of the method's own two terms."""
        closest = nearest / radius
        leaf = (points / radius).requires_grad_()
        distance = (leaf - closest).square().sum(-1).add(1e-12).sqrt().mean(1).sum()
        flat = leaf.flatten(0, 1)
        alike = torch.exp(-(flat[:, None] - flat).square().sum(-1) / BANDWIDTH**2)
        unique = (1 / alike.sum(1)).mean()
        loss = self.distance_weight * distance - self.diversity_weight * len(points) * torch.log1p(unique)
        return torch.autograd.grad(loss, leaf)[0] / radius


BANDWIDTH = 0.5
"""The distance, in units of the sphere's radius, at which two points begin to count as two."""


def _centroids(points: Float[Tensor, "n d"], count: int, generator: torch.Generator, rounds: int = 10) -> Float[Tensor, "c d"]:
    """k-means by Lloyd's rounds from points drawn at random; a centroid that loses all its points stays where it is."""
    centroids = points[torch.randperm(len(points), generator=generator)[:count].to(points.device)].clone()
    for _ in range(rounds):
        owner = torch.cdist(points, centroids).argmin(1)
        total = torch.zeros_like(centroids).index_add_(0, owner, points)
        size = torch.bincount(owner, minlength=len(centroids))[:, None]
        centroids = torch.where(size > 0, total / size.clamp_min(1), centroids)
    return centroids
