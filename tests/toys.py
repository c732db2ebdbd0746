"""Toy parts, written against the public interface alone, as a user would write them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

import fuse


@dataclass(frozen=True)
class Temperature:
    """Where an annealing stands: the entry it holds, and how hot it is."""

    kept: fuse.Entry | None
    value: float


@dataclass(frozen=True)
class Annealing(fuse.Strategy):
    """Simulated annealing: a worse candidate is taken with the probability exp(-rise /
    temperature).
    """

    temperature: float = 2.0
    cooling: float = 0.9

    def init(self, buffer_size: int = 0) -> Temperature:
        return Temperature(None, self.temperature)

    def select(
        self, state: Temperature, evaluated: fuse.Evaluation, rng: torch.Generator
    ) -> tuple[Temperature, list[tuple[int, ...]]]:
        new, kept = min(evaluated.entries(), default=None), state.kept
        chance = float(torch.rand((), generator=rng))
        if kept is None or (
            new is not None and chance < math.exp(min(0.0, (kept.loss - new.loss) / state.value))
        ):
            kept = new
        return Temperature(kept, state.value * self.cooling), [kept.ids] if kept else []


@dataclass(frozen=True)
class Pareto(fuse.Strategy):
    """Keeps candidates that no other one beats in every term, the `most` best by their sum."""

    most: int = 8

    @property
    def width(self) -> int:
        return self.most

    def init(self, buffer_size: int = 0) -> tuple[fuse.Entry, ...]:
        return ()

    def select(
        self, state: tuple[fuse.Entry, ...], evaluated: fuse.Evaluation, rng: torch.Generator
    ) -> tuple[tuple[fuse.Entry, ...], list[tuple[int, ...]]]:
        pool = sorted({*state, *evaluated.entries()})
        front = [one for one in pool if not any(beats(other, one) for other in pool)]
        kept = tuple(front[: self.most])
        return kept, [entry.ids for entry in kept]


def beats(a: fuse.Entry, b: fuse.Entry) -> bool:
    """Whether a is at least as good in all terms, and better in one."""
    pairs = list(zip(a.terms, b.terms, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@dataclass(frozen=True)
class Chain:
    """Where a Metropolis-Hastings chain stands, and the chance that was drawn for its next move."""

    ids: tuple[int, ...]
    loss: float = math.inf
    chance: float = 0.0


@dataclass(frozen=True)
class MetropolisHastings(fuse.Method):
    """Draws one symmetric swap, and accepts it with the probability exp(-rise / temperature)."""

    greedy_only = True
    temperature: float = 1.0
    prompt_length: int = 6
    steps: int = 50

    def init(self, guide: fuse.Guide, start: tuple[int, ...], rng: torch.Generator) -> Any:
        row = start or fuse.random_prompt(guide, self.prompt_length, rng)
        return Chain(row), [row]

    def propose(
        self, state: Chain, beam: Any, guide: fuse.Guide, rng: torch.Generator
    ) -> fuse.Candidates:
        tokens = guide.allowed.nonzero().flatten().tolist()
        drawn = []
        for _ in range(20):
            row = list(state.ids)
            position = int(torch.randint(len(row), (), generator=rng))
            row[position] = tokens[int(torch.randint(len(tokens), (), generator=rng))]
            drawn.append(tuple(row))
        chance = float(torch.rand((), generator=rng))
        kept = fuse.first_valid(drawn, guide, 1)
        return fuse.Candidates(kept, [0] * len(kept), replace(state, chance=chance))

    def observe(self, state: Chain, evaluated: fuse.Evaluation) -> Chain:
        for new in evaluated.entries():
            if state.chance < math.exp(min(0.0, (state.loss - new.loss) / self.temperature)):
                return Chain(new.ids, new.loss)
        return state
