"""`results.csv`: a table with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from fuse.app.formats.done import Done
from fuse.app.run_folder import RunFolder

NAME = "results.csv"


def write(items: Iterable[Done], folder: RunFolder) -> None:
    """Write `results.csv`; the first row says which columns there are."""
    folder.write_parts(NAME, _lines(items))


def _lines(items: Iterable[Done]) -> Iterator[bytes]:
    columns: list[str] = []
    for item in items:
        if not columns:
            columns = list(item.row)
            yield csv_line(columns)
        yield csv_line([item.row.get(name, "") for name in columns])


def csv_line(values: Sequence[object]) -> bytes:
    """Return values as one line of CSV."""
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().encode(errors="backslashreplace")
