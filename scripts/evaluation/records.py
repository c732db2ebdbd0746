"""Texts that were found, and the references that they are compared with."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fuse.errors import FuseError

NAMES = ("metadata.jsonl", "results.csv")


@dataclass(frozen=True)
class Record:
    """One text that was found.

    Args:
        key: of the item: its file's name, or its row.
        references: right texts; empty where there are none.
        picture: the file that it describes; None where it describes none.
    """

    key: str
    text: str
    references: tuple[str, ...] = ()
    picture: Path | None = None


def read_results(path: Path, pictures: Path | None = None) -> list[Record]:
    """Return what a run has found.

    Args:
        path: a run's folder, its `metadata.jsonl` or its `results.csv`.
        pictures: the folder that names of files are relative to; None for the folder of `path`.

    Raises:
        FuseError: there is no result.
    """
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path)
    if not path.is_file():
        raise FuseError(f"RESULTS={path}: expected a run's folder, {' or '.join(NAMES)}")
    found = []
    for row in _rows(path):
        target = (str(row["target"]),) if row.get("target") else ()
        name = row.get("file_name")
        picture = (pictures or path.parent) / name if name else None
        found.append(Record(key_of(row), str(row["text"]), target, picture))
    if not found:
        raise FuseError(f"RESULTS={path}: holds no result")
    return found


def with_references(records: list[Record], path: Path) -> list[Record]:
    """Return those records for which a file has references.

    Args:
        path: a `.txt` file, whose lines are those of rows; or a `.jsonl` or `.csv` file with
            `file_name` or `row`, and `text` or `references`.

    Raises:
        FuseError: it has none for any record.
    """
    known: dict[str, list[str]] = {}
    if path.suffix == ".txt":
        for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            known[str(index)] = [line]
    else:
        for row in _rows(path):
            more = row.get("references", row.get("text"))
            known.setdefault(key_of(row), []).extend([more] if isinstance(more, str) else more)
    found = []
    for record in records:
        if known.get(record.key):
            found.append(replace(record, references=tuple(known[record.key])))
    if not found:
        raise FuseError(f"--references {path}: has none for {records[0].key} or any other item")
    return found


def key_of(row: dict[str, Any]) -> str:
    """Return what a row is known by."""
    return str(row["file_name"] if row.get("file_name") else row["row"])


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file if line.strip()]
