"""Searches side by side that leave their results on disk, step by step, and can be resumed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fuse.app.build import weights_of
from fuse.app.hints import Config
from fuse.app.interrupt import StopRequest
from fuse.app.run_folder import CHECKPOINT, RESULT, Report, RunFolder, anchored, limits_of
from fuse.app.versions import versions
from fuse.errors import FuseError
from fuse.search import checkpoint
from fuse.search.loop import Lane, SideBySide
from fuse.search.search import Search
from fuse.search.state import SearchState
from fuse.search.strategies.beam import name_of
from fuse.types import Result

log = logging.getLogger(__name__)

STEPS_BETWEEN = 10
"""Steps between checkpoints where the config gives seconds."""
WRITE_SHARE = 20
"""For how many times as long as writing a checkpoint takes none is written after it."""


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
        jobs: the searches and their folders; the checkpoint of all is in the first one's.
        every: how often it is written; None for never.
    """

    def __init__(self, jobs: Mapping[str, Job], every: CheckpointEvery | None) -> None:
        self.jobs = dict(jobs)
        self._folder = folder = next(iter(jobs.values())).folder
        self._every = every
        self._rounds = 0
        self._pending: dict[str, SearchState] = {}
        """The states of a checkpoint that is not yet written."""
        self._pending_rounds = 0
        self._written = -math.inf
        """When a checkpoint was last written, by `time.monotonic`."""
        self._write_seconds = 0.0
        """How long that took."""
        searches = {name: job.search for name, job in jobs.items()}
        states: dict[str, SearchState] = {}
        path = folder.path / CHECKPOINT
        if checkpoint.names(path) & set(searches):
            self._rounds, states = checkpoint.read(path, searches)
        elif any(job.folder.num_steps for job in self.jobs.values()):
            raise FuseError(
                f"{folder.path}: holds no checkpoint, so that its run cannot go on; "
                "choose another folder"
            )
        resumed: list[SearchState | None] = []
        traces = []
        for name, job in self.jobs.items():
            state = states.get(name)
            resumed.append(None if state is None else job.search.reopened(state))
            traces.append(job.folder.cut_trace(0 if state is None else state.step))
        self.found: dict[str, Result | Exception] = {}
        """The result of each search that has found something, or the error that it ended with."""
        self.searches = SideBySide(list(searches.values()), resumed, traces)

    def state(self, name: str) -> SearchState | None:
        """Return where a search stands; None where it could not begin."""
        return self.searches.lanes[list(self.jobs).index(name)].state

    def go(self, stop: StopRequest) -> None:
        """Search until all have ended, or a stop is asked for; then write the results."""
        for _ in self.rounds(stop):
            pass

    def rounds(self, stop: StopRequest) -> Iterator[None]:
        """Do what `go` does, and yield after every step that all have made."""
        self._checkpoint()
        self._report_running()
        while self.searches.active and not stop.signal:
            before = [len(lane.trace) for lane in self.searches.lanes]
            self.searches.step()
            self._rounds += 1
            self._append(before)
            self._checkpoint()
            self._report_running()
            yield
        self._write_checkpoint()
        self._finish()

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
        self._pending, self._pending_rounds = {}, self._rounds
        for name, lane in zip(self.jobs, self.searches.lanes, strict=True):
            if lane.state is not None and lane.error is None:
                self._pending[name] = lane.state
        wait = max(self._every.seconds, WRITE_SHARE * self._write_seconds)
        if time.monotonic() - self._written >= wait:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        """Write the states that are not yet written."""
        if not self._pending or any(job.folder.behind for job in self.jobs.values()):
            return
        began = time.monotonic()
        try:
            content = checkpoint.to_bytes(self._pending, self._pending_rounds)
        except FuseError as error:  # a state of somebody's own; the search goes on
            self._folder.problem(CHECKPOINT, str(error))
            self._every = None
        else:
            self._folder.write(CHECKPOINT, content)
        self._pending, self._written = {}, time.monotonic()
        self._write_seconds = self._written - began

    def _report_running(self) -> None:
        """Write what each search has found so far."""
        for job, lane in self._lanes():
            if lane.error is None and lane.state is not None and lane.state.best is not None:
                result = job.search.result(lane.state, rescore=False)
                job.folder.write_json(RESULT, report(result, job, "running"))

    def _finish(self) -> None:
        """Write the final results."""
        found = self.found
        results = self.searches.results()
        for name, lane, result in zip(self.jobs, self.searches.lanes, results, strict=True):
            job, over = self.jobs[name], lane.state is not None and bool(lane.state.ended)
            if isinstance(result, Result):
                found[name] = result
                job.folder.write_json(
                    RESULT, report(result, job, "done" if over else "interrupted")
                )
            elif lane.state is not None and lane.state.best is None and not over:
                nothing = {"status": "interrupted", "prompt": "", "steps": 0, **job.facts}
                job.folder.write_json(RESULT, nothing)
            else:
                found[name] = result
                self._report_failure(job, result)

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


def facts_of(config: Config, search: Search, command: str, setup_seconds: float) -> Report:
    """Return what the report of a run holds beside the result.

    Args:
        command: the command line that repeats it.
    """
    return {
        "item": config["item"],
        "setup_seconds": setup_seconds,
        "seed": config["seed"],
        "image": anchored(config["image"], "image"),
        "method": config["method"]["name"],
        "models": weights_of(config, search.objective),
        "weights": {name: term.weight for name, term in search.objective.terms.items()},
        "limits": limits_of(config),
        "command": command,
    }


def report(result: Result, job: Job, status: str) -> Report:
    """Return the content of `result.json`."""
    fields = asdict(result)
    del fields["trace"]
    return {
        "status": status,
        **fields,
        **job.facts,
        "strategy": name_of(job.search.first_strategy),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
