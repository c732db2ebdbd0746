"""What a strategy is, and how to write one.

A strategy only selects; what it selects is expanded in the next step. To write one: one file with a
frozen dataclass whose fields are its options (`fuse/options.py`), with `init`, which returns the
state before the first step, and `select`, which takes the state and a step's evaluation and returns
the next state and the beam. The state is a value: it is never kept in `self`, and is made of
numbers, texts, tensors, tuples, lists, dictionaries and dataclasses, so that it can be written to a
checkpoint. All chance comes from `rng`. One line in `fuse/registry.py` enrols it everywhere, and
`python scripts/write_conf.py` writes `conf/strategy/NAME.yaml`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

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

    def front(self, state: Any) -> Sequence[Entry]:
        """Return the Pareto front up to this state; empty where the strategy keeps none."""
        return ()


def merged(older: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """Return all entries, the best first; of a sequence that comes again the older entry stays."""
    by_ids = {entry.ids: entry for entry in [*new, *older]}
    return sorted(by_ids.values())
