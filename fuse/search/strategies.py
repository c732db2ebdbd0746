"""Strategies keep the best. Each only selects; what is selected is expanded in the next step.

To write one: a frozen dataclass whose fields are its options, with `init`, which returns the state
before the first step, and `select`, which takes the state and a step's evaluation and returns the
next state and the beam. The state is a value: it is never kept in `self`, and is made of numbers,
texts, tensors, tuples, lists, dictionaries and dataclasses, so that it can be written to a
checkpoint. All chance comes from `rng`. One line in `fuse/registry.py` enrols it everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from typing_extensions import Doc

from fuse.options import Count, check_options
from fuse.registry import STRATEGIES
from fuse.types import Entry, Evaluation, Ids


class Strategy(ABC):
    """Decides which scored sequences are expanded next."""

    @property
    def width(self) -> int:
        """How many sequences are expanded in one step, at most."""
        return 1

    @property
    def num_ranked(self) -> int:
        """How many of a step's candidates may be compared with one another now or later."""
        return self.width

    @abstractmethod
    def init(self, buffer_size: int = 0) -> Any:
        """Return the state before the first step.

        Args:
            buffer_size: how many of the best earlier sequences the method lets compete with new
                ones.
        """

    @abstractmethod
    def select(
        self, state: Any, evaluated: Evaluation, rng: torch.Generator
    ) -> tuple[Any, Sequence[Ids]]:
        """Return the next state and the beam. An empty beam ends the search."""


def merged(older: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """Return all entries, the best first; of a sequence that comes again the older entry stays."""
    by_ids = {entry.ids: entry for entry in [*new, *older]}
    return sorted(by_ids.values())


@dataclass(frozen=True)
class BeamState:
    """How many entries compete again, and the best so far, at most so many."""

    buffer_size: int
    buffer: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Beam(Strategy):
    """Keep the best of each step: beam search; a beam of 1 is greedy search."""

    beam_width: Annotated[Count, Doc("prompts that are kept")] = 16

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def width(self) -> int:
        return self.beam_width

    def init(self, buffer_size: int = 0) -> BeamState:
        return BeamState(buffer_size)

    def select(
        self, state: BeamState, evaluated: Evaluation, rng: torch.Generator
    ) -> tuple[BeamState, list[Ids]]:
        pool = merged(state.buffer, evaluated.entries())
        buffer = tuple(pool[: state.buffer_size])
        return BeamState(state.buffer_size, buffer), [
            entry.ids for entry in pool[: self.beam_width]
        ]


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


def name_of(strategy: Strategy) -> str:
    """Return a strategy's name in `conf/strategy`."""
    return "greedy" if strategy == Beam(1) else STRATEGIES.name_of(strategy)
