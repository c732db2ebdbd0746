"""Simulated annealing: hold one prompt, and take a worse one by chance, ever more rarely."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from typing_extensions import Doc

from fuse.options import NotNegative, check_options
from fuse.search.strategies.base import Strategy
from fuse.types import Entry, Evaluation, Ids


@dataclass(frozen=True)
class Held:
    """The entry that is expanded, and the temperature of the next step."""

    entry: Entry | None
    temperature: float


@dataclass(frozen=True)
class Anneal(Strategy):
    """Take a worse prompt by chance, ever more rarely: simulated annealing.

    Of each step the best candidate takes the place of the prompt that is held, with the probability
    min(1, exp(-(its loss - the held one's) / T)) (Metropolis et al. 1953; Kirkpatrick et al. 1983).
    T is `temperature` at first, and `cooling` times as high after each step; at 0 no worse one is
    taken.
    """

    temperature: Annotated[
        NotNegative, Doc("rise of the loss that is taken by chance 1/e in the first step")
    ] = 0.5
    cooling: Annotated[float, Gt(0), Le(1), Doc("factor of the temperature after a step")] = 0.9

    def __post_init__(self) -> None:
        check_options(self)

    def init(self, buffer_size: int = 0) -> Held:
        return Held(None, self.temperature)

    def select(
        self, state: Held, evaluated: Evaluation, rng: torch.Generator
    ) -> tuple[Held, list[Ids]]:
        entry, new = state.entry, min(evaluated.entries(), default=None)
        if new is not None and (entry is None or _takes(entry, new, state.temperature, rng)):
            entry = new
        return Held(entry, state.temperature * self.cooling), [entry.ids] if entry else []


def _takes(held: Entry, new: Entry, temperature: float, rng: torch.Generator) -> bool:
    """Whether a new entry takes the place of the one that is held."""
    rise = new.loss - held.loss
    if rise <= 0 or temperature <= 0:
        return rise <= 0
    return float(torch.rand((), generator=rng)) < math.exp(-rise / temperature)
