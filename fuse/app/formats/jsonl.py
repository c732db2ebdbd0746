"""`metadata.jsonl`: an object a line, as image folders of `datasets` have it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fuse.app.formats.done import Done, Row
from fuse.app.run_folder import RunFolder

NAME = "metadata.jsonl"


def write(items: Iterable[Done], folder: RunFolder) -> None:
    """Write `metadata.jsonl`: put beside pictures, it makes an image folder of them."""
    folder.write_parts(NAME, (line(item.row) for item in items))


def line(row: Row) -> bytes:
    """Return a row as one line of JSON."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
