"""Texts whose meanings are sought, one after the other: the lines of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fuse.app.items import Item, Items, numbered
from fuse.errors import FuseError
from fuse.options import shown


def line_items(value: str) -> Items:
    """Return the lines of a text file that are not blank as items of a run.

    Raises:
        FuseError: it cannot be read, is no UTF-8, or holds no text.
    """
    path = Path(value).expanduser()

    def each() -> Iterator[Item]:
        try:
            with path.open(encoding="utf-8-sig") as file:
                for index, line in enumerate(file):
                    text = line.strip()
                    if text:
                        row = {"row": index, "target": text}
                        yield Item(numbered(index), {"target": text}, row)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8"
            raise FuseError(
                f"targets={shown(value)}: could not be read ({reason}); give a text file with one "
                "text a line, or a .jsonl, .csv or .parquet file with a column of texts"
            ) from error

    return Items(each, sum(1 for _ in each()))
