"""Texts of a user's file: one a line, or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuse.errors import FuseError

JSON_LINES = ".jsonl"
TEXT = "text"
"""The key of a record's text."""


def records(corpus: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, which is never held whole: the objects of JSON Lines, or
    {"text": LINE} for the lines of any other file; blank lines are left out.

    Raises:
        FuseError: there is no such file, or it holds something else.
    """
    path = Path(corpus).expanduser()
    if not path.is_file():
        raise FuseError(
            f"corpus={corpus}: no such file; give a file of one text a line, or a {JSON_LINES} "
            f"file of objects with the key {TEXT}"
        )
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                is_json = path.suffix == JSON_LINES
                yield _record(corpus, number, line) if is_json else {TEXT: line}
    except (OSError, UnicodeDecodeError) as error:
        raise FuseError(f"corpus={corpus}: expected a text file in UTF-8 ({error})") from error


def texts(corpus: str) -> Iterator[str]:
    """Yield the text of each record, with single blanks between its words; blank ones are left out.

    Raises:
        FuseError: as `records`; a record has no text.
    """
    for record in records(corpus):
        text = record.get(TEXT)
        if not isinstance(text, str):
            raise FuseError(
                f"corpus={corpus}: a record with the keys {', '.join(record) or '(none)'} has no "
                f"{TEXT}; give each one under this key"
            )
        if text.strip():
            yield " ".join(text.split())


def _record(corpus: str, number: int, line: str) -> dict[str, Any]:
    """Return the object of a line of JSON."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__}")
    except (ValueError, RecursionError) as error:
        raise FuseError(
            f"corpus={corpus}: line {number} is no JSON object ({error}); repair it"
        ) from error
    return record
