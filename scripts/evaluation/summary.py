"""From numbers of each text to those of a run: means, bootstrap intervals, a Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number of a run, and the interval in which 95 of 100 resamples of its texts have it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def estimate(
    function: Callable[[Sequence[int]], float], num: int, resamples: int, seed: int = 0
) -> Estimate:
    """Return a number that is made of texts, with its bootstrap interval (percentiles).

    Args:
        function: tells the number of the texts at these indices.
        num: how many texts there are.
    """
    rng = np.random.default_rng(seed)
    values = [function(rng.integers(num, size=num).tolist()) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if values else (np.nan,) * 2
    return Estimate(function(range(num)), float(low), float(high))


def mean_of(values: Sequence[float]) -> Callable[[Sequence[int]], float]:
    """Return what tells the mean of the values at some indices."""
    array = np.asarray(values, dtype=np.float64)
    return lambda index: float(array[list(index)].mean())


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which points are on the Pareto front, where less is better in both."""
    found = []
    for x, y in points:
        found.append(not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points))
    return found
