"""Searches side by side that leave their results on disk, step by step, and can be resumed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fuse.app.interrupt import StopRequest
from fuse.app.run_folder import CHECKPOINT, RESULT, Report, RunFolder
from fuse.app.versions import versions
from fuse.errors import FuseError
from fuse.search import checkpoint
from fuse.search.loop import Lane, SideBySide
from fuse.search.search import Search
from fuse.search.state import SearchState
from fuse.search.strategies import name_of
from fuse.types import Result

log = logging.getLogger(__name__)

STEPS_BETWEEN = 10
"""Steps between checkpoints where the config gives seconds."""


@dataclass(frozen=True)
class CheckpointEvery:
    """How often a checkpoint is written: after so many steps, if so many seconds have passed since
    the last one.

    Before a checkpoint all caches are emptied, so that what follows depends on it alone. They are
    emptied after so many
    steps whether one is written or not: the same config gives the same run, however quick the
    machine.
    """

    steps: int = STEPS_BETWEEN
    seconds: float = 0.0

    @staticmethod
    def parse(value: Any) -> CheckpointEvery | None:
        """Return what `checkpoint_every` means: a number of steps, a text such as 30s, or null for
        none.

        Raises:
            FuseError: it is none of these.
        """
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return CheckpointEvery(value)
        seconds = str(value).removesuffix("s")
        if str(value).endswith("s") and seconds.replace(".", "", 1).isdecimal():
            return CheckpointEvery(STEPS_BETWEEN, float(seconds))
        raise FuseError(
            f"checkpoint_every={value}: expected a number of steps such as 10, "
            "seconds such as 30s, or null"
        )


@dataclass(frozen=True)
class Job:
    """One search of a run, with its own folder and what its report holds beside the result."""

    search: Search
    folder: RunFolder
    facts: Mapping[str, Any]


class Run:
    """Searches side by side, by name, with one checkpoint for all.

    Args:
        jobs: the searches and their folders.
        folder: where the checkpoint is.
        every: how often it is written; None for never.
    """

    def __init__(
        self, jobs: Mapping[str, Job], folder: RunFolder, every: CheckpointEvery | None
    ) -> None:
        self.jobs = dict(jobs)
        self._folder = folder
        self._every = every
        self._rounds = 0
        self._pending: bytes | None = None
        """A checkpoint that was not yet due."""
        self._written = 0.0
        searches = {name: job.search for name, job in jobs.items()}
        states: dict[str, SearchState] = {}
        path = folder.path / CHECKPOINT
        if checkpoint.names(path) & set(searches):
            self._rounds, states = checkpoint.read(path, searches)
        resumed: list[SearchState | None] = []
        traces = []
        for name, job in self.jobs.items():
            state = states.get(name)
            resumed.append(None if state is None else job.search.reopened(state))
            traces.append(job.folder.cut_trace(0 if state is None else state.step))
        self.searches = SideBySide(list(searches.values()), resumed, traces)

    def go(self, stop: StopRequest) -> dict[str, Result | Exception]:
        """Search until all have ended, or a stop is asked for; then write the results.

        Returns:
            The result of each search, or the error that it ended with.
        """
        self._checkpoint()
        self._report_running()
        while self.searches.active and not stop.signal:
            before = [len(lane.trace) for lane in self.searches.lanes]
            self.searches.step()
            self._rounds += 1
            self._append(before)
            self._checkpoint()
            self._report_running()
        if self._pending is not None:
            self._folder.write(CHECKPOINT, self._pending)
        return self._finish()

    def _lanes(self) -> list[tuple[Job, Lane]]:
        return list(zip(self.jobs.values(), self.searches.lanes, strict=True))

    def _append(self, before: list[int]) -> None:
        """Add what is new to each trace."""
        for (job, lane), count in zip(self._lanes(), before, strict=True):
            for step in lane.trace[count:]:
                job.folder.append(step)

    def _checkpoint(self) -> None:
        """Empty the caches, and write all states, after as many steps as the config says."""
        if self._every is None or self._rounds % self._every.steps:
            return
        self.searches.clear()
        states = {}
        for name, lane in zip(self.jobs, self.searches.lanes, strict=True):
            if lane.state is not None and lane.error is None:
                states[name] = lane.state
        self._pending = checkpoint.to_bytes(states, self._rounds)
        now = time.monotonic()
        if not self._written or now - self._written >= self._every.seconds:
            self._folder.write(CHECKPOINT, self._pending)
            self._pending, self._written = None, now

    def _report_running(self) -> None:
        """Write what each search has found so far."""
        for job, lane in self._lanes():
            if lane.error is None and lane.state is not None and lane.state.best is not None:
                result = job.search.result(lane.state, rescore=False)
                job.folder.write_json(RESULT, report(result, job, "running"))

    def _finish(self) -> dict[str, Result | Exception]:
        """Write the final results."""
        ended = [lane.state is not None and bool(lane.state.ended) for lane in self.searches.lanes]
        found = dict(zip(self.jobs, self.searches.results(), strict=True))
        for (name, job), is_over in zip(self.jobs.items(), ended, strict=True):
            result = found[name]
            if isinstance(result, Result):
                status = "done" if is_over else "interrupted"
                job.folder.write_json(RESULT, report(result, job, status))
            else:
                self._report_failure(job, result)
        return found

    def _report_failure(self, job: Job, error: Exception) -> None:
        """Write that a search has failed, and why, beside what it had found."""
        reason = str(error) or type(error).__name__
        if not isinstance(error, FuseError):
            reason = f"{type(error).__name__}: {reason}"
            log.info("a search has failed", exc_info=error)
        if job.folder.path.exists():
            before = job.folder.result() or {}
            job.folder.write_json(
                RESULT, {**before, "status": "failed", "reason": reason, **job.facts}
            )


def report(result: Result, job: Job, status: str) -> Report:
    """Return the content of `result.json`."""
    fields = asdict(result)
    del fields["trace"]
    return {
        "status": status,
        **fields,
        **job.facts,
        "strategy": name_of(job.search.first_strategy),
        "versions": versions(),
    }
