"""What the jobs of a sweep have found: a table, `sweep.csv`, and how the whole ends.

Each job leaves `job.json` in its folder, whichever process it was in; who began the sweep gathers
them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.app.formats.done import Done
from fuse.app.formats.table import csv_line
from fuse.app.overrides import decoded, unquoted
from fuse.app.run_folder import JOB, RESULT, RunFolder, read_json
from fuse.errors import FuseError, one_of

TABLE = "sweep.csv"
FOLDER = "hydra.sweep.dir="


@dataclass(frozen=True)
class JobOutcome:
    """How a job has ended.

    Args:
        number: its place in the sweep.
        overrides: its options, as they may be typed.
        exit_code: what a run of it alone would have ended with.
        failures: lines about what went wrong.
        value: of what the sweep compares; None where nothing was found.
        items: how many have a result.
        text: what was found, where it is one.
    """

    number: int
    overrides: dict[str, str]
    exit_code: int
    failures: list[str]
    value: float | None
    items: int = 0
    text: str = ""


def leave(folder: RunFolder, outcome: JobOutcome) -> None:
    """Write `job.json`."""
    folder.write_json(JOB, vars(outcome))


def measured(folder: Path, metric: str) -> tuple[float | None, list[Done]]:
    """Return the mean of a loss over what a job has found, None where it has found nothing; and
    what it has found.

    Args:
        metric: `loss`, the sum, or the name of a term.

    Raises:
        FuseError: there is no such term.
    """
    found = []
    for path in [*folder.glob(RESULT), *folder.glob(f"*/{RESULT}")]:
        done = Done.of(path.parent, read_json(path) or {})
        if done is not None:
            found.append(done)
    values = []
    for done in found:
        known = {key.removeprefix("loss_"): key for key in done.row if key.startswith("loss")}
        if metric not in known:
            raise FuseError(f"metric={metric}: {one_of(metric, known)}")
        values.append(done.row[known[metric]])
    return (math.fsum(values) / len(values) if values else None), found


def readable(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values of overrides by their keys, without what they are encoded in."""
    found = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        match = re.fullmatch(r"\"\$\{text:'(.*)'\}\"", value, re.DOTALL)
        found[key] = decoded(match[1]) if match else unquoted(value)
    return found


def named_folder(arguments: Sequence[str]) -> Path | None:
    """Return the folder of a sweep that a command line names."""
    named = [text.removeprefix(FOLDER) for text in arguments if text.startswith(FOLDER)]
    if not named:
        return None
    return Path(readable([f"{FOLDER}{named[-1]}"])[FOLDER[:-1]])


def gathered(folder: Path) -> list[JobOutcome]:
    """Return how the jobs of a sweep have ended, in their order."""
    found = []
    for path in folder.glob(f"**/{JOB}"):
        fields: Any = read_json(path)
        if fields is not None and "number" in fields:
            found.append(JobOutcome(**fields))
    return sorted(found, key=lambda outcome: outcome.number)


def columns(jobs: Sequence[JobOutcome]) -> list[str]:
    """Return the options in which the jobs differ."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def rows_of(jobs: Sequence[JobOutcome]) -> list[list[Any]]:
    """Return a table of jobs with its header: options, results, and what went wrong."""
    keys, metric = columns(jobs), jobs[0].overrides.get("metric", "loss")
    rows: list[list[Any]] = [["job", *keys, metric, "results", "text", "exit_code", "failure"]]
    for job in jobs:
        value = "" if job.value is None else job.value
        options = [job.overrides.get(key, "") for key in keys]
        failure = "; ".join(job.failures)
        rows.append([job.number, *options, value, job.items, job.text, job.exit_code, failure])
    return rows


def write_table(folder: RunFolder, rows: Sequence[Sequence[Any]]) -> None:
    """Write `sweep.csv`."""
    folder.write_parts(TABLE, (csv_line(row) for row in rows))
