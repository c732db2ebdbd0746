"""Searches of several visitors, one after another, and how each can be stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from fuse.app.interrupt import StopRequest
from fuse.app.web.panel import Panel
from fuse.app.web.searching import Searching, Wanted
from fuse.errors import FuseError

NONE = "none"
"""In place of a second method."""
MAX_WAITING = 20
"""Visitors that wait for their turn, at most."""
SECONDS_BETWEEN = 0.2
"""Of two looks at a search that go to the browser."""
Shown = tuple[Any, ...]


class Visitors:
    """Lets visitors search in the order in which they come.

    Args:
        searching: makes their searches.
    """

    def __init__(self, searching: Searching) -> None:
        self._searching = searching
        self._line: dict[StopRequest, tuple[str, str]] = {}
        """The session and the goal of each search; the first one has its turn."""

    def find(self, wanted: Wanted, other: str, session: str) -> Iterator[Shown]:
        """Wait for the turn, search, with a second method beside the first where one is named, and
        yield what both panels show.

        Raises:
            FuseError: with what a visitor can mend.
        """
        with self._in_line(session, wanted.goal) as (stop, num_before):
            while num_before() and not stop.signal:
                yield *Panel().values(_waiting(num_before())), *Panel().values()
                time.sleep(SECONDS_BETWEEN)
            both = [wanted] if other == NONE else [wanted, replace(wanted, method=other)]
            yield from self._search(both, stop)

    @contextmanager
    def _in_line(self, session: str, goal: str) -> Iterator[tuple[StopRequest, Callable[[], int]]]:
        """Stand in line within this context; give what stops the search, and tells how many are
        before it.
        """
        if len(self._line) > MAX_WAITING:
            raise FuseError(f"{MAX_WAITING} visitors are waiting already; try again later")
        stop = StopRequest()
        self._line[stop] = session, goal
        try:
            yield stop, lambda: list(self._line).index(stop)
        finally:
            del self._line[stop]

    def _search(self, both: Sequence[Wanted], stop: StopRequest) -> Iterator[Shown]:
        """Search, and yield what both panels show."""
        panels, looked = [Panel(), Panel()], 0.0
        if not stop.signal:
            yield *panels[0].values("reading the models"), *panels[1].values()
            for found in zip_longest(*(self._searching.search(one, stop) for one in both)):
                for panel, progress in zip(panels, found, strict=False):
                    panel.take(progress)
                ends = any(progress and progress.archive for progress in found)
                if ends or time.monotonic() - looked > SECONDS_BETWEEN:
                    looked = time.monotonic()
                    yield *panels[0].values(), *panels[1].values()
        if not looked:
            yield *panels[0].values("stopped before anything was found"), *panels[1].values()

    def stop(self, session: str, goal: str | None = None) -> None:
        """End a visitor's search after its step, or at once where its turn has not come.

        Args:
            goal: of the search; None for all of them.
        """
        for stop, (own, about) in list(self._line.items()):
            if own == session and goal in (None, about):
                stop.signal = signal.SIGINT


def _waiting(num_before: int) -> str:
    """Return what a visitor reads whose turn has not come."""
    return f"waiting: {num_before} search{'es' * (num_before > 1)} before yours"
