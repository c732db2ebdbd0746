"""What one call of the command line does: its runs, their results, and how it ends."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fuse.app import console, live
from fuse.app.interrupt import StopRequest
from fuse.app.overrides import as_argument, as_typed
from fuse.app.pictures import find_pictures, with_image
from fuse.app.run_folder import (
    CONFIG,
    RunFolder,
    anchored,
    check_not_passed,
    check_same_run,
    limits_of,
    lock,
)
from fuse.errors import FuseError

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
        self._lock: IO[bytes] | None = None
        self._codes: list[int] = []
        self._told: set[str] = set()
        self._models: Any = {}
        self._overrides: Sequence[str] = ()
        self.indexed: set[Path] = set()
        """Folders of several runs, which get an index when all have ended."""

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

    def find(self, config: dict[str, Any], folder: Path, overrides: Sequence[str] = ()) -> None:
        """Search for the prompt of a picture, or of each picture of a folder.

        Args:
            overrides: those of the command line, by which the run can be repeated.

        Raises:
            FuseError: an option that cannot be used; a folder that holds another run.
        """
        from fuse.app.run import CheckpointEvery

        every = CheckpointEvery.parse(config["checkpoint_every"])
        groups = _groups(config, config["batch_images"])
        if config["dry_run"]:
            from fuse.app.plan import plan_of

            self._show(console.show_plan, plan_of(config, sum(map(len, groups))))
            return
        check_same_run(folder, config)
        self._overrides = overrides
        if config["report"] and groups and "" not in groups[0]:
            self.indexed.add(folder)
        self._lock = lock(folder)
        for configs in groups:
            former = {name: RunFolder(folder / name, []) for name in configs}
            for one in former.values():
                check_not_passed(one, limits_of(config))
            if all(one.done(limits_of(config)) for one in former.values()):
                for name, one in former.items():
                    self._show(console.show_former, name, one.result())
            elif not self.stop.signal:
                run = self._find_together(configs, folder, config, every)
                for name, result in run.found.items() if run is not None else ():
                    self._report(name, result, folder)
                if run is not None and config["report"]:
                    self._write_pages(run)
        if self.stop.signal:
            self.say_how_to_resume()

    def say_how_to_resume(self) -> None:
        """Show one line about how to go on, if there is a run to go on with."""
        if self.resumable is not None:
            value = as_argument("resume", str(self.resumable))
            console.note(f"stopped; go on with: python find_prompt.py {value}")

    def _find_together(
        self,
        configs: Mapping[str, Config],
        folder: Path,
        whole: Config,
        every: CheckpointEvery | None,
    ) -> Run | None:
        """Search side by side, each search with its own folder; None where none could begin."""
        from fuse.app.run import Run
        from fuse.app.trackers import Tracked, all_of

        console.quiet_libraries()
        jobs = {}
        for name, config in configs.items():
            own = RunFolder(folder / name, self.problems)
            try:
                jobs[name] = self._job(config, own, name)
            except FuseError as error:  # one bad picture does not cost the others' results
                self.fail(str(error))
        if not jobs:
            return None
        # Only now, when the options have been of use
        RunFolder(folder, self.problems).write_json(CONFIG, anchored(whole))
        self.resumable = folder if every is not None else None
        steps = {name: job.search.most_steps for name, job in jobs.items()}
        with ExitStack() as stack:
            views = stack.enter_context(live.shown(steps, quiet=whole["quiet"]))
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

    def write_indexes(self) -> None:
        """Write the index of each folder in which several runs are."""
        from fuse.app.report.write import write_index

        for folder in sorted(self.indexed):
            write_index(folder, self.problems)

    def _job(self, config: Config, folder: RunFolder, name: str) -> Job:
        """Build the search of one picture."""
        from fuse.app.build import build, weights_of
        from fuse.app.reach import reaching
        from fuse.app.run import Job

        began = time.perf_counter()
        with reaching(config):
            search = build(config, iter if config["quiet"] else console.fitting, self._models)
        facts = {
            "setup_seconds": time.perf_counter() - began,
            "seed": config["seed"],
            "image": anchored(config["image"], "image"),
            "method": config["method"]["name"],
            "models": weights_of(config, search.objective),
            "limits": limits_of(config),
            "command": self._command(config["image"] if name else None),
        }
        return Job(search, folder, facts)

    def _command(self, image: str | None) -> str:
        """Return the command line that repeats a run.

        Args:
            image: the picture, where it is one of several.
        """
        by_key = {override.partition("=")[0]: override for override in self._overrides}
        typed = [as_typed(override) for override in by_key.values()]
        if image is not None:
            typed = [text for text in typed if not text.lstrip("'").startswith("image=")]
            typed.append(as_argument("image", image))
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


def _groups(config: dict[str, Any], size: int) -> list[dict[str, dict[str, Any]]]:
    """Return the configs of searches that go side by side, by name; "" for a run of one picture."""
    image = config["image"]
    if image is None:
        return [{"": config}]
    pictures = find_pictures(image, nested=config["nested"])
    if pictures.note is not None:
        console.note(pictures.note)
    if "" in pictures.paths:
        return [{"": config}]
    found = list(pictures.paths.items())
    groups = []
    for start in range(0, len(found), size):
        part = found[start : start + size]
        groups.append({name: with_image(config, image, str(path)) for name, path in part})
    return groups


def _quietly(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function whose failure cannot be reported."""
    try:
        function(*arguments)
    except OSError:
        return
