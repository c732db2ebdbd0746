"""What one call of the command line does: its runs, their results, and how it ends."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fuse.app import console, live
from fuse.app.config import register_resolvers
from fuse.app.formats.done import Done
from fuse.app.formats.files import ResultFiles
from fuse.app.interrupt import StopRequest
from fuse.app.items import ALONE, Item, Items
from fuse.app.overrides import as_argument, as_typed, encoded
from fuse.app.run_folder import (
    CONFIG,
    LOCK,
    PAGE,
    RunFolder,
    anchored,
    check_not_passed,
    check_same_run,
    limits_of,
    lock,
    remove_half_written,
)
from fuse.app.shard import Shard
from fuse.app.sources import SEVERAL, items_of
from fuse.app.sweep import JobOutcome, gathered, leave, measured, rows_of, write_table
from fuse.app.tally import Tally
from fuse.errors import FuseError
from fuse.memo import trim_heap

if TYPE_CHECKING:
    from fuse.app.run import CheckpointEvery, Job, Run
    from fuse.types import Result

log = logging.getLogger(__name__)

WRONG_INPUT, NOT_WRITTEN = 2, 1
"""Exit codes."""

Config = Mapping[str, Any]


class Session:
    """Runs, their mistakes, and what could not be written.

    Args:
        stop: says whether a signal has asked for a stop.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self.began = False
        """Whether a run was entered, so that its folder is there."""
        self.problems: list[str] = []
        """What could not be written."""
        self.resumable: Path | None = None
        """The folder of a run that can be resumed."""
        self._locks: list[IO[bytes] | None] = []
        self._codes: list[int] = []
        self._told: set[str] = set()
        self._failures: list[str] = []
        """What was said about what went wrong, each time that it did."""
        self._models: Any = {}
        self._overrides: Sequence[str] = ()
        """Those of the command line, by which the run can be repeated."""

    def __reduce__(self) -> tuple[Callable[[], Session], tuple[()]]:
        """Be, in another process, the session of that process."""
        return session_of_worker, ()

    @property
    def exit_code(self) -> int:
        """What the process ends with; what could not be written is shown first."""
        while self.problems:
            self.fail(self.problems.pop(0), NOT_WRITTEN)
        if self.stop.signal:
            return 128 + self.stop.signal
        return max(self._codes, default=0)

    def fail(self, message: str, code: int = WRONG_INPUT) -> None:
        """Show in one line, or in a line each, what went wrong; nothing is told twice."""
        self._codes.append(code)
        self._failures.append(message)
        for line in message.splitlines():
            if line not in self._told:
                self._told.add(line)
                _quietly(console.fail, line)

    def crash(self, error: Exception, folder: Path) -> None:
        """Show one line about an error that is no mistake of the user's; the log has the whole of
        it.
        """
        log.info("a run has failed", exc_info=error)
        self.fail(f"{type(error).__name__}: {error}; {folder}/find_prompt.log has the details", 1)

    @contextmanager
    def job(
        self, number: int, overrides: dict[str, str], folder: Path, metric: str
    ) -> Iterator[_Job]:
        """Make a job of a sweep within this context, and leave in its folder how it has ended."""
        job, before = _Job(), (len(self._codes), len(self._failures))
        try:
            yield job
        finally:
            done: list[Done] = []
            try:
                job.value, done = measured(folder, metric)
            except FuseError as error:
                self.fail(str(error))
            code = max(self._codes[before[0] :], default=0)
            if self.stop.signal:
                code = 128 + self.stop.signal
            failures = self._failures[before[1] :]
            text = done[0].row["text"] if len(done) == 1 else ""
            outcome = JobOutcome(number, overrides, code, failures, job.value, len(done), text)
            if folder.is_dir():
                leave(RunFolder(folder, self.problems), outcome)

    def show_sweep(self, folder: Path | None) -> None:
        """Show a table of a sweep's jobs, and write it; theirs are the exit codes, too."""
        jobs = gathered(folder) if folder is not None else []
        if folder is None or not jobs or Shard.of_process().rank:
            return
        rows = rows_of(jobs)
        write_table(RunFolder(folder, self.problems), rows)
        self._show(console.show_table, rows)
        self._write_index(folder)
        for job in jobs:
            if job.exit_code:
                self.fail("\n".join(job.failures), job.exit_code)

    def find(self, config: dict[str, Any], folder: Path, overrides: Sequence[str] = ()) -> None:
        """Search for the prompt of each item that the configuration speaks of.

        Args:
            overrides: those of the command line, by which the run can be repeated.

        Raises:
            FuseError: an option that cannot be used; a folder that holds another run.
        """
        from fuse.app.run import CheckpointEvery
        from fuse.app.threads import set_threads

        every = CheckpointEvery.parse(config["checkpoint_every"])
        items = items_of(config)
        if items.note is not None:
            console.note(items.note)
        if config["dry_run"]:
            from fuse.app.plan import plan_of

            self._show(console.show_plan, plan_of(config, items.num))
            return
        check_same_run(folder, config)
        set_threads(config["threads"])
        self._overrides = overrides
        shard = Shard.of_process()
        self._locks = [lock(folder, shared=shard.num > 1)]
        if shard.num > 1:
            self._locks.append(lock(folder, name=f"{LOCK}.{shard.rank}"))
        elif self._locks[0] is not None:
            remove_half_written(folder)
        self._search(items, config, folder, every, shard)
        if self.stop.signal:
            self.say_how_to_resume()

    def _search(
        self,
        items: Items,
        config: Config,
        folder: Path,
        every: CheckpointEvery | None,
        shard: Shard,
    ) -> None:
        """Search for this process's share of the items, and write the files of results."""
        size, is_alone = config["batch_images"], items is ALONE
        tally = Tally(shard.own_number(items.num, size))
        files = ResultFiles(RunFolder(folder, self.problems), items, config)
        is_last = shard.rank == 0
        shard.begin(folder)
        try:
            for group in shard.own(items.groups(size)):
                former = self._find_group(group, folder, config, every, None if is_alone else tally)
                if not former:
                    trim_heap()  # what short searches leave would add up
                if self.stop.signal:
                    break
                if not is_alone:
                    self._count(group, former, folder, tally, quiet=config["quiet"])
                    if shard.rank == 0:
                        files.update()
            else:
                is_last = shard.finish(folder) or is_last
        finally:
            if is_last and not is_alone:
                files.write()
                if config["report"]:
                    self._write_index(folder)

    def say_how_to_resume(self) -> None:
        """Show one line about how to go on, if there is a run to go on with."""
        if self.resumable is not None:
            value = as_argument("resume", str(self.resumable))
            console.note(f"stopped; go on with: python find_prompt.py {value}")

    def _find_group(
        self,
        group: list[Item],
        folder: Path,
        config: Config,
        every: CheckpointEvery | None,
        tally: Tally | None,
    ) -> bool:
        """Search for a few items side by side, or show what is there already; say which."""
        limits = limits_of(config)
        former = {item.name: RunFolder(folder / item.name, []) for item in group}
        for one in former.values():
            check_not_passed(one, limits)
        if all(one.done(limits) for one in former.values()):
            for name, one in former.items():
                self._show(console.show_former, name, one.result())
            return True
        configs = {}
        for item in group:
            own = RunFolder(folder / item.name, self.problems)
            configs[item.name] = item.configured(config, own)
        run = self._find_together(configs, folder, config, every, tally)
        if run is not None:
            for name, result in run.found.items():
                self._report(name, result, folder)
            if config["report"]:
                self._write_pages(run)
        return False

    def _count(
        self, group: list[Item], former: bool, folder: Path, tally: Tally, *, quiet: bool
    ) -> None:
        """Show how far the run is."""
        for item in group:
            tally.add(RunFolder(folder / item.name, []).result(), former)
        if not former and not quiet:
            console.note(tally.line())

    def _find_together(
        self,
        configs: Mapping[str, Config],
        folder: Path,
        whole: Config,
        every: CheckpointEvery | None,
        tally: Tally | None,
    ) -> Run | None:
        """Search side by side, each search with its own folder; None where none could begin."""
        from fuse.app.reach import NotToBeHadError
        from fuse.app.run import Run
        from fuse.app.threads import set_quickest
        from fuse.app.trackers import Tracked, all_of

        console.quiet_libraries()
        jobs = {}
        for name, config in configs.items():
            own = RunFolder(folder / name, self.problems)
            try:
                jobs[name] = self._job(config, own, whole)
            except NotToBeHadError:
                raise
            except FuseError as error:  # one bad picture does not cost the others' results
                named = name and "file_name" not in config["item"]
                self.fail(f"{name}: {error}" if named else str(error))
        if not jobs:
            return None
        if whole["threads"] == "auto":
            set_quickest(next(iter(jobs.values())).search, folder)
        # Only now, when the options have been of use
        RunFolder(folder, self.problems).write_json(CONFIG, anchored(whole))
        self.resumable = folder if every is not None else None
        steps = {name: job.search.most_steps for name, job in jobs.items()}
        line = None if tally is None else tally.line
        with ExitStack() as stack:
            views = stack.enter_context(live.shown(steps, quiet=whole["quiet"], line=line))
            for name, job in jobs.items():
                tracked = stack.enter_context(closing(Tracked(configs[name], job.folder.path)))
                tell = all_of([views[name], tracked])
                jobs[name] = replace(job, search=replace(job.search, on_step=tell))
            self.stop.searching = True
            try:
                run = Run(jobs, every)
                run.go(self.stop)
                return run
            finally:
                self.stop.searching = False

    def _write_pages(self, run: Run) -> None:
        """Write the page of each search that has found something."""
        from fuse.app.report.write import write_page

        for name, result in run.found.items():
            state = run.state(name)
            if not isinstance(result, Exception) and state is not None:
                write_page(run.jobs[name].folder, run.jobs[name].search, state)

    def _write_index(self, folder: Path) -> None:
        """Write the index of a folder in which several runs are, if they have pages."""
        if any(folder.glob(f"**/{PAGE}")):
            from fuse.app.report.write import write_index

            write_index(folder, self.problems)

    def _job(self, config: Config, folder: RunFolder, whole: Config) -> Job:
        """Build the search of one item.

        Args:
            whole: the configuration of the run.
        """
        from fuse.app.build import build
        from fuse.app.reach import reaching
        from fuse.app.run import Job, facts_of

        began = time.perf_counter()
        with reaching(config):
            shown = (iter, iter) if config["quiet"] else (console.fitting, console.reading)
            former = (folder.result() or {}).get("weights")
            search = build(config, shown[0], self._models, shown[1], former)
        command, seconds = self._command(config, whole), time.perf_counter() - began
        return Job(search, folder, facts_of(config, search, command, seconds))

    def _command(self, config: Config, whole: Config) -> str:
        """Return the command line that repeats the search of an item alone, or the whole run where
        its vector has no other name.
        """
        by_key = {override.partition("=")[0]: override for override in self._overrides}
        own = {name: config[name] for name in ("image", "target") if config[name] != whole[name]}
        if own:
            for name in (*SEVERAL, "split", "column", "nested", *own):
                by_key.pop(f"++{name}", None)
        typed = [as_typed(override) for override in by_key.values()]
        if "image" in own:
            typed.append(as_argument("image", str(own["image"])))
        if "target" in own:
            typed.append(as_typed(f"++target={encoded(str(own['target']))}"))
        return " ".join(["python find_prompt.py", *typed])

    def _report(self, name: str, result: Result | Exception, folder: Path) -> None:
        """Show a result, or the error that a search ended with."""
        if isinstance(result, FuseError):
            self.fail(f"{name}: {result}" if name else str(result))
        elif isinstance(result, Exception):
            self.crash(result, folder)
        else:
            if name:
                self._show(console.announce, name)
            self._show(console.show, result)

    def _show(self, function: Callable[..., None], *arguments: Any) -> None:
        """Write to standard output; remember once if that is not possible."""
        try:
            if sys.stdout is None:
                raise OSError(None, "closed")
            function(*arguments)
            sys.stdout.flush()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            self.problems.append(f"standard output: could not be written ({reason})")
            if isinstance(error, UnicodeError):
                return
            # What is still in its buffer would be tried once more at the end
            _quietly(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 1))


@dataclass
class _Job:
    """A job of a sweep that is under way: what the sweep compares, once it is known."""

    value: float | None = None


@cache
def session_of_worker() -> Session:
    """Return the one session of a process that a launcher has begun for jobs of a sweep.

    All jobs of the process share its models.
    """
    register_resolvers()
    console.set_up()
    return Session(StopRequest().__enter__())


def _quietly(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function whose failure cannot be reported."""
    try:
        function(*arguments)
    except OSError:
        return
