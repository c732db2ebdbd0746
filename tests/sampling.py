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
