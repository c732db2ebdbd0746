"""Beam search: keep the best of each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from typing_extensions import Doc

from fuse.options import Count, check_options
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


def name_of(strategy: Strategy) -> str:
    """Return a strategy's name in `conf/strategy`."""
    return "greedy" if strategy == Beam(1) else STRATEGIES.name_of(strategy)
