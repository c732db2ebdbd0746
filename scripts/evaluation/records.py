"""Texts that were found, and the references that they are compared with."""

from __future__ import annotations

import csv
import io
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
        if not isinstance(row.get("text"), str):
            raise FuseError(f"RESULTS={path}: {key_of(row, path)} has no text")
        found.append(Record(key_of(row, path), row["text"], target, picture))
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
        for index, line in enumerate(_text(path).splitlines()):
            known[str(index)] = [line]
    else:
        for row in _rows(path):
            more = row.get("references", row.get("text"))
            texts = more if isinstance(more, list) else [more]
            if not all(isinstance(text, str) for text in texts):
                raise FuseError(
                    f"{path}: {key_of(row, path)} has no references; "
                    "expected `text`, or `references`, a list of texts"
                )
            known.setdefault(key_of(row, path), []).extend(texts)
    found = []
    for record in records:
        if known.get(record.key):
            found.append(replace(record, references=tuple(known[record.key])))
    if not found:
        raise FuseError(f"--references {path}: has none for {records[0].key} or any other item")
    return found


def key_of(row: dict[str, Any], path: Path) -> str:
    """Return what a row is known by.

    Raises:
        FuseError: it says neither its file nor its number.
    """
    if not row.get("file_name") and row.get("row") in (None, ""):
        raise FuseError(f"{path}: a row without `file_name` and `row`, by one of which it is known")
    return str(row.get("file_name") or row["row"])


def _rows(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise FuseError(f"{path}: line {number} is no JSON object; expected one a line")
        if row:
            found.append(row)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise FuseError(f"{path}: could not be read ({reason})") from error
