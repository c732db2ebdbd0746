"""Strategies keep the best. Each only selects; what is selected is expanded in the next step.

A new strategy is one class: `init` gives its private state, `select` takes it and a step's scored candidates and returns
the next state and the beam. The state is a value: never kept in `self`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fuse.errors import FuseError
from fuse.types import Ids

Entry = tuple[float, Ids]
"""A loss and its free tokens; sorts by loss, equal losses by tokens, so that the order is always the same."""


class Strategy(ABC):
    """Decides which scored sequences are expanded next."""

    def init(self) -> list[Entry]:
        """The state before the first step."""
        return []

    @abstractmethod
    def select(self, state: list[Entry], scored: Sequence[Entry], buffer_size: int) -> tuple[list[Entry], list[Ids]]:
        """The next state and beam; `buffer_size` is how many earlier entries the method lets compete again."""


@dataclass(frozen=True)
class Beam(Strategy):
    """The `beam_width` best; 1 is greedy search."""

    beam_width: int = 16

    def __post_init__(self) -> None:
        if self.beam_width < 1:
            raise FuseError(f"strategy.beam_width={self.beam_width}: expected at least 1")

    def select(self, state: list[Entry], scored: Sequence[Entry], buffer_size: int) -> tuple[list[Entry], list[Ids]]:
        pool = sorted({*state, *scored})
        return pool[:buffer_size], [ids for _, ids in pool[: self.beam_width]]


STRATEGIES: dict[str, type[Strategy]] = {"beam": Beam}
"""Every strategy by its name in `conf/strategy`; the contract tests run over this list."""
