"""How far a run of several searches is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any


class Tally:
    """Counts items, and says how long the others will take.

    Args:
        num: how many items the run has; None where that is not known.
    """

    def __init__(self, num: int | None) -> None:
        self._num = num
        self._began = time.monotonic()
        self._former = 0
        """How many were done already."""
        self._searched = 0
        self._failed = 0

    def add(self, report: Mapping[str, Any] | None, former: bool = False) -> None:
        """Count one more item.

        Args:
            report: the content of its `result.json`; None where there is none.
            former: whether it was done already.
        """
        self._failed += (report or {}).get("status") != "done"
        self._former += former
        self._searched += not former

    def line(self) -> str:
        """Return how many are done, how many a minute, the time left, and how many failed."""
        done = self._former + self._searched
        parts = [f"{done} of {'?' if self._num is None else self._num}"]
        seconds = time.monotonic() - self._began
        if self._searched:
            parts.append(f"{60 * self._searched / max(seconds, 1e-9):.1f} a minute")
            if self._num is not None:
                left = max(self._num - done, 0) * seconds / self._searched
                parts.append(f"{timedelta(seconds=round(left))} left")
        parts.append(f"{self._failed} failed")
        return ", ".join(parts)
