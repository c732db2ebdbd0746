"""`coco_results.json`: captions as COCO's evaluation reads results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from fuse.app.formats.done import Done, Row
from fuse.app.run_folder import RunFolder

NAME = "coco_results.json"


def write(items: Iterable[Done], folder: RunFolder) -> None:
    """Write `coco_results.json`: a list of objects with `image_id` and `caption`.

    An id is the number that a picture's name ends with, as COCO's do; where one has none, or two
    have the same, all ids are what the rows begin with: names of files, or numbers of rows.
    """
    found = [(_first(item.row), item.row["text"]) for item in items]
    numbers = [_number(first) for first, _ in found]
    has_numbers = None not in numbers and len(set(numbers)) == len(numbers)
    entries = []
    for number, (first, text) in zip(numbers, found, strict=True):
        entries.append({"image_id": number if has_numbers else first, "caption": text})
    folder.write(NAME, (json.dumps(entries) + "\n").encode())


def _first(row: Row) -> Any:
    return next(iter(row.values()))


def _number(first: Any) -> int | None:
    """Return the number in `COCO_val2014_000000391895.jpg`, and of a row itself."""
    if isinstance(first, int):
        return first
    match = re.fullmatch(r"(?:.*[_-])?(\d{1,18})", PurePosixPath(str(first)).stem, re.DOTALL)
    return int(match[1]) if match else None
