"""Strategies keep the best. Each only selects; what is selected is expanded in the next step.

A new strategy is one class: `init` gives its private state, `select` takes it and a step's scored candidates and returns
the next state and the beam. The state is a value: never kept in `self`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuse.errors import FuseError
from fuse.types import Ids

Entry = tuple[float, Ids]
"""A loss and its free tokens; sorts by loss, equal losses by tokens, so that the order is always the same."""


class Strategy(ABC):
    """Decides which scored sequences are expanded next."""

    @property
    def width(self) -> int:
        """The most sequences that are expanded in one step."""
        return 1

    @abstractmethod
    def init(self) -> Any:
        """The state before the first step."""

    @abstractmethod
    def select(self, state: Any, scored: Sequence[Entry], buffer_size: int) -> tuple[Any, list[Ids]]:
        """The next state and beam; `buffer_size` is how many earlier entries the method lets compete again."""


@dataclass(frozen=True)
class Beam(Strategy):
    """The `beam_width` best; 1 is greedy search."""

    beam_width: int = 16

    def __post_init__(self) -> None:
        if self.beam_width < 1:
            raise FuseError(f"strategy.beam_width={self.beam_width}: expected at least 1")

    @property
    def width(self) -> int:
        return self.beam_width

    def init(self) -> list[Entry]:
        return []

    def select(self, state: list[Entry], scored: Sequence[Entry], buffer_size: int) -> tuple[list[Entry], list[Ids]]:
        pool = sorted({*state, *scored})
        return pool[:buffer_size], [ids for _, ids in pool[: self.beam_width]]


@dataclass(frozen=True)
class UniformCost(Strategy):
    """Uniform-cost search: the cheapest of all that wait is expanded, one a step, and never again.

    What is scored and not yet expanded waits in a frontier of at most `frontier_max_size` entries, the cheapest; prompts
    of different lengths wait side by side.
    """

    frontier_max_size: int = 256

    def __post_init__(self) -> None:
        if self.frontier_max_size < 1:
            raise FuseError(f"strategy.frontier_max_size={self.frontier_max_size}: expected at least 1")

    def init(self) -> tuple[list[Entry], frozenset[Ids]]:
        """The frontier, and what has been expanded."""
        return [], frozenset()

    def select(
        self, state: tuple[list[Entry], frozenset[Ids]], scored: Sequence[Entry], buffer_size: int
    ) -> tuple[tuple[list[Entry], frozenset[Ids]], list[Ids]]:
        frontier, expanded = state
        waiting = sorted({*frontier, *(entry for entry in scored if entry[1] not in expanded)})
        if not waiting:
            return state, []
        (_, cheapest), *rest = waiting
        return (rest[: self.frontier_max_size], expanded | {cheapest}), [cheapest]


def name_of(strategy: Strategy) -> str:
    """A strategy's name in `conf/strategy`."""
    if strategy == Beam(1):
        return "greedy"
    return next((name for name, kind in STRATEGIES.items() if type(strategy) is kind), type(strategy).__name__)


STRATEGIES: dict[str, type[Strategy]] = {"beam": Beam, "uniform_cost": UniformCost}
"""Every strategy by its name in `conf/strategy`; the contract tests run over this list."""
