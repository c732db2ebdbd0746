"""Some of many cases in the default tests, all of them in `pytest -m full`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], every: int) -> list[Any]:
    """Return the cases, of which every so-manieth stays in the default tests."""
    found = []
    for number, case in enumerate(cases):
        found.append(pytest.param(case, marks=[pytest.mark.full] if number % every else []))
    return found


def sampled_pairs(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    """Return all pairs, of which about one for each of the first stays in the default tests."""
    found, others = [], list(second)
    for number, one in enumerate(first):
        for position, other in enumerate(others):
            marks = [] if position == number % len(others) else [pytest.mark.full]
            found.append(pytest.param(one, other, marks=marks))
    return found
