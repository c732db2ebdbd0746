"""What a run leaves on disk: its config, `result.json`, `trace.jsonl` and a checkpoint.

Files are written whole, under another name first, and renamed into place, so that no half-written
one is ever seen; the trace grows line by line. What cannot be written is remembered, and never
costs the result.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fuse.app.schema import verbatim_keys
from fuse.errors import FuseError

if TYPE_CHECKING:
    from fuse.types import Step  # which takes long to import

LIMITS = ("steps", "time_limit", "max_evaluations", "stop_loss", "stop_at_label")
"""What ends a run: a resume may change it."""
OUTPUT = ("formats", "sidecar", "metric")
"""What tells of a run's results: a resume may change it, too."""
VIEWS = ("quiet", "report", "tensorboard", "wandb", "trackio")
"""What shows a run, and changes nothing of it."""
NOT_COMPARED = {*LIMITS, *OUTPUT, *VIEWS, "resume", "dry_run", "scoring.workers"}
CONFIG, RESULT, TRACE, CHECKPOINT = (
    "config.json",
    "result.json",
    "trace.jsonl",
    "checkpoint.safetensors",
)
LOCK, JOB = ".lock", "job.json"
_HALF_WRITTEN = re.compile(r"\.(?!lock\.).+\.\d+", re.DOTALL)
"""The name of a file that is being written: its own, and the number of the process."""
PAGE, INDEX = "report.html", "index.html"
"""What `fuse.app.report` makes of a run, and of a folder of runs."""

Report = dict[str, Any]
"""The content of `result.json`."""


class RunFolder:
    """The files of one search.

    Args:
        path: the folder; made with the first file.
        problems: what could not be written joins it, each file once.
    """

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self._problems = problems
        self._failed: set[str] = set()
        self._waiting = b""
        """Lines of the trace that are not yet written."""

    def inner(self, name: str) -> RunFolder:
        """Return a folder in this one, whose problems are this one's."""
        found = RunFolder(self.path / name, self._problems)
        found._failed = self._failed
        return found

    def write(self, name: str, content: bytes) -> bool:
        """Write a file whole, or leave the older one as it is; say whether that was possible."""
        return self.write_parts(name, [content])

    def write_parts(self, name: str, parts: Iterable[bytes]) -> bool:
        """Write a file whole, as `write` does, of parts that need not be there at once."""
        target = self.path / name
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                for part in parts:
                    file.write(part)
            fresh.replace(target)
        except OSError as error:
            self._remember(name, error)
            _remove(fresh)
            return False
        return True

    def write_json(self, name: str, content: Mapping[str, Any]) -> bool:
        """Write a file as JSON, as `write` does."""
        return self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def append(self, step: Step) -> None:
        """Add one line to the trace; where that fails, it waits for the next one."""
        self._waiting += (json.dumps(_as_dict(step)) + "\n").encode()
        path = self.path / TRACE
        size = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            size = path.stat().st_size if path.exists() else 0
            with path.open("ab") as file:
                file.write(self._waiting)
        except OSError as error:
            self._remember(TRACE, error)
            _truncate(path, size)
        else:
            self._waiting = b""

    @property
    def behind(self) -> bool:
        """Whether the trace lacks lines that could not be written."""
        return bool(self._waiting)

    @property
    def num_steps(self) -> int:
        """How many steps the trace holds."""
        return len(self.steps())

    def cut_trace(self, num_steps: int) -> list[Step]:
        """Keep the first steps of the trace, and return them.

        Raises:
            FuseError: the trace does not hold them.
        """
        steps = [step for step in self.steps() if step.step <= num_steps]
        if len(steps) != num_steps:
            raise FuseError(
                f"{self.path / TRACE}: holds {len(steps)} of {num_steps} steps; "
                "begin anew in another folder"
            )
        lines = [json.dumps(_as_dict(step)) + "\n" for step in steps]
        self.write(TRACE, "".join(lines).encode())
        return steps

    def result(self) -> Report | None:
        """Return the content of `result.json`; None where there is none."""
        return read_json(self.path / RESULT)

    def done(self, limits: Mapping[str, Any]) -> bool:
        """Whether the run was finished, with these limits."""
        result = self.result() or {}
        return result.get("status") == "done" and result.get("limits") == limits

    def steps(self) -> list[Step]:
        """Return the whole lines of the trace."""
        path = self.path / TRACE
        found = []
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            try:
                found.append(_as_step(json.loads(line)))
            except (ValueError, TypeError, KeyError, RecursionError):
                break
        return found

    def problem(self, name: str, reason: str) -> None:
        """Note once that a file cannot be written."""
        path = str(self.path / name)
        if path not in self._failed:
            self._failed.add(path)
            self._problems.append(f"{path}: could not be written ({reason})")

    def _remember(self, name: str, error: OSError) -> None:
        """Note an error of the file system."""
        self.problem(name, error.strerror or type(error).__name__)


def lock(folder: Path, shared: bool = False, name: str = LOCK) -> IO[bytes] | None:
    """Keep other processes out of a folder for as long as the file returned is open.

    None where the file system has no such locks, or the folder cannot be written.

    Args:
        shared: let in others that share it, too.
        name: of the file.

    Raises:
        FuseError: another process is at work there.
    """
    try:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("wb")
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FuseError(f"{folder}: another process is at work there; wait for its end") from None
    except (ImportError, OSError):
        return None
    return file


def remove_half_written(folder: Path) -> None:
    """Remove what a killed process was writing in a run's folder and in those within it.

    Nobody else may be at work there.
    """
    for path in chain(folder.glob(".*.*"), folder.glob("*/.*.*")):
        if _HALF_WRITTEN.fullmatch(path.name):
            _remove(path)


@contextmanager
def waiting_lock(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time into this context, where the file system has locks."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            file = stack.enter_context((folder / name).open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_not_passed(folder: RunFolder, limits: Mapping[str, Any]) -> None:
    """Raise FuseError where a run has gone beyond limits that it is to go on with."""
    result = folder.result() or {}
    for name, key in (
        ("steps", "steps"),
        ("max_evaluations", "evaluations"),
        ("time_limit", "seconds"),
    ):
        done = result.get(key)
        known = result.get("limits", {}).get(name) == limits[name]
        if limits[name] is not None and not known and done is not None and done > limits[name]:
            raise FuseError(
                f"{name}={limits[name]}: the run in {folder.path} has reached {done:g} already; "
                "give more, or another folder"
            )


def limits_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ends a run."""
    return {name: config[name] for name in LIMITS}


def claim(path: str) -> str:
    """Make a new folder, and return its name: `path`, or `path` with a number where others were
    quicker.
    """
    number = 1
    while True:
        name = path if number == 1 else f"{path}_{number}"
        try:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).mkdir()
            return name
        except FileExistsError:
            number += 1
            if number > 1000:
                return path
        except OSError:
            return path  # whoever writes there will say what is wrong


def saved_config(folder: Path) -> dict[str, Any] | None:
    """Return the config that a run folder remembers; None where it has none.

    Files that lie in the folder are found there, wherever it has been moved to.
    """
    config = read_json(folder / CONFIG)
    return None if config is None else anchored(config, folder=folder)


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two configs differ, with both values: parts before their options;
    limits are left out.
    """
    old, new = flat(anchored(saved)), flat(anchored(given))
    found = []
    for key in sorted({*old, *new}, key=lambda key: (not key.endswith(".name"), key)):
        compared = NOT_COMPARED.isdisjoint((key, key.partition(".")[0]))
        if compared and old.get(key) != new.get(key):
            found.append(f"{key}={new.get(key)} (there {old.get(key)})")
    return found


def check_same_run(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder holds the same run already, so that this one goes on with it.

    Raises:
        FuseError: it holds another run's result.
    """
    saved = saved_config(folder)
    if saved is None:
        if any((folder / name).exists() for name in (RESULT, TRACE, CHECKPOINT)):
            raise FuseError(f"{folder}: holds another run's result; choose another folder")
        return False
    found = differences(saved, config)
    if found:
        raise FuseError(
            f"{folder}: holds a run with other options: {', '.join(found[:5])}"
            f"{' and more' * (len(found) > 5)}; choose another folder"
        )
    return True


def anchored(config: Any, key: str = "", folder: Path | None = None) -> Any:
    """Return a configuration whose paths mean the same in every working directory.

    A value that may be a hub id is a path if there is such a file or folder.

    Args:
        folder: where relative paths begin; None for the working directory.
    """
    if isinstance(config, Mapping):
        return {name: anchored(value, name, folder) for name, value in config.items()}
    if isinstance(config, list):
        return [anchored(value, key, folder) for value in config]
    mark = verbatim_keys().get(key)
    if not isinstance(config, str) or mark is None or not mark.or_null:
        return config
    path = (folder or Path()) / config
    return str(path.absolute()) if _exists(path) else config


def from_inside(config: Any, folder: Path) -> Any:
    """Return a configuration, or a text, that names the files of a folder as one does there."""
    if isinstance(config, Mapping):
        return {name: from_inside(value, folder) for name, value in config.items()}
    if isinstance(config, list):
        return [from_inside(value, folder) for value in config]
    within = f"{folder.absolute()}{os.sep}"
    return config.replace(within, "") if isinstance(config, str) else config


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = (
                list(value)
                if isinstance(value, Sequence | set) and not isinstance(value, str)
                else value
            )
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a file; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _as_dict(step: Step) -> dict[str, Any]:
    return {**vars(step), "beam": [vars(row) for row in step.beam]}


def _as_step(fields: dict[str, Any]) -> Step:
    from fuse.types import BeamRow, Step

    beam = tuple(BeamRow(**row) for row in fields.get("beam", ()))
    return Step(**{**fields, "free_ids": tuple(fields["free_ids"]), "beam": beam})


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _truncate(path: Path, size: int) -> None:
    try:
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)
    except OSError:
        return
