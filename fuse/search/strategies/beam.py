"""Beam search: keep the best of each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from typing_extensions import Doc

from fuse.options import Count, CountOrNone, check_options
from fuse.registry import STRATEGIES
from fuse.search.strategies.base import Strategy, merged
from fuse.types import Entry, Evaluation, Ids


@dataclass(frozen=True)
class BeamState:
    """How many entries compete again, and the best so far, at most so many."""

    buffer_size: int
    buffer: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Beam(Strategy):
    """Keep the best of each step: beam search; a beam of 1 is greedy search.

    With a `distance`, a prompt is kept only if it differs by at least so many tokens from every
    better one that is kept (diverse beam search, as arXiv 1610.02424, by a threshold): tokens are
    counted that the one holds and the other does not, wherever they stand.
    """

    beam_width: Annotated[Count, Doc("prompts that are kept")] = 16
    distance: Annotated[
        CountOrNone, Doc("by how many tokens those that are kept differ, at least; 0: by any")
    ] = 0

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
        if self.distance > 1:
            pool = apart(pool, self.distance, max(self.beam_width, state.buffer_size))
        buffer = tuple(pool[: state.buffer_size])
        return BeamState(state.buffer_size, buffer), [
            entry.ids for entry in pool[: self.beam_width]
        ]


def apart(entries: Sequence[Entry], distance: int, count: int) -> list[Entry]:
    """Return the first `count` entries that differ by `distance` tokens from each one before."""
    kept: list[tuple[Entry, Counter[int]]] = []
    for entry in entries:
        own = Counter(entry.ids)
        if all((own - one).total() + (one - own).total() >= distance for _, one in kept):
            kept.append((entry, own))
        if len(kept) == count:
            break
    return [entry for entry, _ in kept]


def name_of(strategy: Strategy) -> str:
    """Return a strategy's name in `conf/strategy`."""
    return "greedy" if strategy == Beam(1) else STRATEGIES.name_of(strategy)
