"""EPO's population (arXiv 2402.01702): each member is the best prompt by its own weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from fuse.options import MAX_COUNT, Count, Positive, check_options
from fuse.search.strategies.base import Strategy, merged
from fuse.types import Entry, Evaluation, Ids


@dataclass(frozen=True)
class Population:
    """The members, whether they compete with the next step's candidates, and the Pareto front."""

    earlier_compete: bool
    members: tuple[Entry, ...] = ()
    front: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Pareto(Strategy):
    """Keep the best prompt under each of several weights of fluency: EPO (arXiv 2402.01702).

    Member i of n minimises f_i x (the primary's loss x weight) + (the sum of the others' loss x
    weight), where f_i = `lowest` x (`highest` / `lowest`)^(i / (n - 1)), i = 0 ... n - 1, are
    spaced evenly on a logarithmic scale; a single member has the mean of the two on that scale.
    Members of earlier steps compete again where the method's own earlier prompts would
    (`buffer_size` above 0).

    `front` holds what no other prompt beats in every term: the best of all by the sum, the best
    under each f_i, and of the rest those of the lowest sum, `front_max_size` in all.
    """

    population: Annotated[Count, Doc("prompts that are kept, each the best by its own weights")] = 8
    lowest: Annotated[Positive, Doc("factor of the primary's weight for the first member")] = 0.1
    highest: Annotated[Positive, Doc("factor of the primary's weight for the last member")] = 10.0
    front_max_size: Annotated[Count, Doc("prompts of the front, those of the lowest sum")] = 256

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def width(self) -> int:
        return self.population

    @property
    def num_ranked(self) -> int:
        return MAX_COUNT  # a candidate that is poor by the sum may be the best by other weights

    @property
    def factors(self) -> list[float]:
        """The factor of the primary's weight, for each member."""
        if self.population == 1:
            return [(self.lowest * self.highest) ** 0.5]
        ratio = self.highest / self.lowest
        return [self.lowest * ratio ** (i / (self.population - 1)) for i in range(self.population)]

    def init(self, buffer_size: int = 0) -> Population:
        return Population(buffer_size > 0)

    def select(
        self, state: Population, evaluated: Evaluation, rng: torch.Generator
    ) -> tuple[Population, list[Ids]]:
        new, weights = evaluated.entries(), [evaluated.weights.get(t, 1.0) for t in evaluated.terms]
        members = self._members(
            merged(state.members if state.earlier_compete else (), new), weights
        )
        # What nothing goes on from may be the best all the same
        front = non_dominated(merged(state.front, [*new, *evaluated.left_out]), weights)
        first = {entry.ids for entry in [*front[:1], *self._members(front, weights)]}
        by_rank = sorted(front, key=lambda entry: (entry.ids not in first, entry))
        kept = tuple(sorted(by_rank[: self.front_max_size]))
        population = Population(state.earlier_compete, tuple(members), kept)
        return population, [entry.ids for entry in members]

    def front(self, state: Population) -> Sequence[Entry]:
        return state.front

    def _members(self, pool: Sequence[Entry], weights: Sequence[float]) -> list[Entry]:
        """Return the best entry under each factor, each once; of equal ones the first."""
        if not pool:
            return []
        losses = weighted(pool, weights)
        fluency, rest = losses[:, 0], losses[:, 1:].sum(1)
        found = {}
        for factor in self.factors:
            totals = (factor * fluency + rest).tolist()
            best = pool[min(range(len(pool)), key=totals.__getitem__)]
            found[best.ids] = best
        return list(found.values())


def non_dominated(entries: Sequence[Entry], weights: Sequence[float]) -> list[Entry]:
    """Return the entries that no other one beats: with no term worse, and one better."""
    losses, kept = weighted(entries, weights), []
    for entry, own in zip(entries, losses, strict=True):
        beaten = (losses <= own).all(1) & (losses < own).any(1)
        if not beaten.any():
            kept.append(entry)
    return kept


def weighted(entries: Sequence[Entry], weights: Sequence[float]) -> Float[Tensor, "n t"]:
    """Return each term's share of the entries' weighted sums."""
    losses = torch.tensor([entry.terms for entry in entries], dtype=torch.float64)
    return losses.reshape(len(entries), len(weights)) * torch.tensor(weights, dtype=torch.float64)
