"""Uniform-cost search: expand the cheapest of all that wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from typing_extensions import Doc

from fuse.options import Count, check_options
from fuse.search.strategies.base import Strategy, merged
from fuse.types import Entry, Evaluation, Ids


@dataclass(frozen=True)
class Frontier:
    """What waits to be expanded, the cheapest first, and what has been expanded."""

    waiting: tuple[Entry, ...] = ()
    expanded: frozenset[Ids] = frozenset()


@dataclass(frozen=True)
class UniformCost(Strategy):
    """Expand the cheapest of all that wait, one a step, and none twice: uniform-cost search.

    What is scored and not yet expanded waits in a frontier of at most `frontier_max_size` entries,
    the cheapest; prompts of different lengths wait side by side.
    """

    frontier_max_size: Annotated[Count, Doc("entries that wait")] = 256

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def num_ranked(self) -> int:
        return self.frontier_max_size + 1

    def init(self, buffer_size: int = 0) -> Frontier:
        return Frontier()

    def select(
        self, state: Frontier, evaluated: Evaluation, rng: torch.Generator
    ) -> tuple[Frontier, list[Ids]]:
        new = [entry for entry in evaluated.entries() if entry.ids not in state.expanded]
        waiting = merged(state.waiting, new)
        if not waiting:
            return state, []
        cheapest, *rest = waiting
        expanded = state.expanded | {cheapest.ids}
        return Frontier(tuple(rest[: self.frontier_max_size]), expanded), [cheapest.ids]
