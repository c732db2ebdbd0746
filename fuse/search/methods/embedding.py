"""Embedding optimisation for targeted generation: many different prompts that make the primary say
a label.

A batch of continuous prompts on the token sphere descends the objective together with two
regularisers of its own; every discrete prompt on the way that makes the primary greedily say the
label is collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import Doc

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.options import Count, NotNegative, Share, Whole, check_options
from fuse.search.methods.base import PROMPT_LENGTH, WEIGHT_DECAY
from fuse.search.methods.continuous import Continuous
from fuse.statistics import num_non_finite
from fuse.types import Candidates, Ids

CENTROIDS = 256
"""How many centroids rows start from."""
NEIGHBOURS = 16
"""From how many neighbours of each of the label's tokens rows start."""
BANDWIDTH = 0.5
"""The distance, in units of the sphere's radius, at which two points begin to count as two."""


@dataclass(frozen=True)
class State:
    """The continuous prompts, the optimiser's state, the points that rows start from, and what was
    collected.
    """

    points: Float[Tensor, "b s d"]
    optimiser: Any
    pool: Float[Tensor, "c d"]
    found: tuple[Ids, ...] = ()


@dataclass(frozen=True)
class Embedding(Continuous):
    """Collect different prompts that make the primary say a label.

    Minimises the objective + `distance_weight` x mean distance to the closest token +
    `diversity_weight` x -log(1 + unique / total), by AdamW with `lr` and `weight_decay`, on
    `search_width` prompts at once.

    Of the objective's gradient the share `straight_through` is taken at the nearest tokens, as PEZ
    does, the rest at the
    continuous prompts: what descends for these alone often fails as tokens. `lr` is in units of the
    root mean square coordinate of a point; distances are in units of the sphere's radius, the mean
    norm of the allowed embeddings. unique / total is the share of different tokens, counted softly:
    a point counts 1 / (sum over all points of exp(-distance^2 / `BANDWIDTH`^2)). Rows start from
    k-means centroids of the table (`start` kmeans), allowed tokens (random) or the tokens nearest
    to the label's (label); a row that succeeds starts anew.
    """

    search_width: Annotated[Count, Doc("continuous prompts that descend side by side")] = 16
    start: Annotated[
        Literal["kmeans", "random", "label"],
        Doc("kmeans: centroids of the table; random: tokens; label: the label's neighbours"),
    ] = "kmeans"
    distance_weight: Annotated[NotNegative, Doc("of the mean distance to the closest token")] = 0.1
    diversity_weight: Annotated[NotNegative, Doc("of -log(1 + share of different tokens)")] = 0.1
    straight_through: Annotated[
        Share, Doc("share of the gradient that is taken at the nearest tokens")
    ] = 0.5
    lr: Annotated[NotNegative, Doc("learning rate, in units of a coordinate of the embeddings")] = (
        1.0
    )
    weight_decay: Annotated[NotNegative, WEIGHT_DECAY] = 0.0
    prompt_length: Annotated[Count, PROMPT_LENGTH] = 12
    steps: Annotated[Whole, Doc("at most")] = 300

    def __post_init__(self) -> None:
        check_options(self)

    def propose(
        self, state: State | None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates:
        state = state or self._begin(beam[0], guide, rng)
        gradient = self._gradient(state, guide)
        dropped = num_non_finite(gradient)
        unit = guide.radius / state.points.shape[-1] ** 0.5
        points, optimiser = self.descend(state.points / unit, unit * gradient, state.optimiser)
        points = guide.radius * normalize(points, dim=-1)
        spelled = guide.spelled(guide.vocabulary.decode(guide.nearest_rows(points)))
        rows = list(dict.fromkeys(row for row in spelled if row))
        said = zip(rows, guide.says_label(rows), strict=True)
        succeeded = {row: None for row, says in said if says}
        self._restart(
            [row in succeeded for row in spelled], points, optimiser, state.pool, guide, rng
        )
        found = tuple(dict.fromkeys([*state.found, *succeeded]))
        state = State(points, optimiser, state.pool, found)
        return Candidates(rows, [0] * len(rows), state, dropped)

    def _gradient(self, state: State, guide: Guide) -> Float[Tensor, "b s d"]:
        """Return the gradient of all terms; the objective's partly at the points, partly at the
        nearest tokens.
        """
        rows = guide.nearest_rows(state.points)
        nearest = guide.embeddings(rows)
        gradient = self._regulariser_gradient(state.points, nearest, guide.radius)
        share = self.straight_through
        if share < 1:
            gradient += (1 - share) * guide.embedding_gradient(rows, state.points)
        if share > 0:
            gradient += share * guide.embedding_gradient(rows, nearest)
        return gradient

    def _restart(
        self,
        again: Sequence[bool],
        points: Float[Tensor, "b s d"],
        optimiser: Any,
        pool: Float[Tensor, "c d"],
        guide: Guide,
        rng: torch.Generator,
    ) -> None:
        """Let some of the rows begin anew, in place."""
        rows = torch.tensor(again, device=points.device)
        points[rows] = self._draw(pool, int(rows.sum()), points.shape[1], guide.radius, rng)
        for moment in optimiser["state"][0].values():
            if moment.shape == points.shape:
                moment[rows] = 0.0

    def found(self, state: State | None) -> Sequence[Ids]:
        return state.found if state else ()

    def _begin(self, first: Ids, guide: Guide, rng: torch.Generator) -> State:
        """Return a batch from the pool; its first row is the first prompt."""
        table, tokens = guide.vocabulary.embedding.float(), guide.allowed.nonzero().flatten()
        if self.start == "label":
            if not guide.label_ids:
                raise FuseError(
                    "label=null: method.start=label begins near the label's tokens; give label=TEXT"
                )
            distance = torch.cdist(table[list(guide.label_ids)], table[tokens])
            count = min(NEIGHBOURS, len(tokens))
            pool = table[tokens[distance.topk(count, largest=False).indices.flatten()]]
        elif self.start == "kmeans":
            pool = _centroids(table[tokens], CENTROIDS, rng)
        else:
            pool = table[tokens]
        points = self._draw(pool, self.search_width, len(first), guide.radius, rng)
        points[0] = guide.radius * normalize(table[list(first)], dim=-1)
        return State(points, None, pool)

    def _draw(
        self,
        pool: Float[Tensor, "c d"],
        rows: int,
        length: int,
        radius: float,
        rng: torch.Generator,
    ) -> Float[Tensor, "b s d"]:
        """Draw new rows from points of the pool, on the sphere."""
        drawn = torch.randint(len(pool), (rows, length), generator=rng).to(pool.device)
        return radius * normalize(pool[drawn], dim=-1)

    @torch.enable_grad()
    def _regulariser_gradient(
        self, points: Float[Tensor, "b s d"], nearest: Float[Tensor, "b s d"], radius: float
    ) -> Float[Tensor, "b s d"]:
        """Return the gradient of the method's own two terms."""
        closest = nearest / radius
        leaf = (points / radius).requires_grad_()
        distance = (leaf - closest).square().sum(-1).add(1e-12).sqrt().mean(1).sum()
        flat = leaf.flatten(0, 1)
        alike = torch.exp(-(flat[:, None] - flat).square().sum(-1) / BANDWIDTH**2)
        unique = (1 / alike.sum(1)).mean()
        diversity = len(points) * torch.log1p(unique)
        loss = self.distance_weight * distance - self.diversity_weight * diversity
        return torch.autograd.grad(loss, leaf)[0] / radius


def _centroids(
    points: Float[Tensor, "n d"], count: int, rng: torch.Generator, rounds: int = 10
) -> Float[Tensor, "c d"]:
    """Return k-means centroids by Lloyd's rounds from points drawn at random.

    A centroid that loses all its points stays where it is.
    """
    drawn = torch.randperm(len(points), generator=rng)[:count].to(points.device)
    centroids = points[drawn].clone()
    for _ in range(rounds):
        owner = torch.cdist(points, centroids).argmin(1)
        total = torch.zeros_like(centroids).index_add_(0, owner, points)
        size = torch.bincount(owner, minlength=len(centroids))[:, None]
        centroids = torch.where(size > 0, total / size.clamp_min(1), centroids)
    return centroids
