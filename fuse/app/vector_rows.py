"""Vectors that are sought, one after the other: the rows of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fuse.app.items import Item, Items, numbered
from fuse.app.vectors import open_vectors


def vector_items(value: str | Sequence[float | str], column: str | None = None) -> Items | None:
    """Return the rows of a file as items of a run; None where it is a single one.

    Raises:
        FuseError: it cannot be read.
    """
    vectors = open_vectors(value, column) if isinstance(value, str) else None
    if vectors is None or vectors.num == 1:
        return None
    rows = vectors.rows

    def each() -> Iterator[Item]:
        for index, row in enumerate(rows()):
            yield Item(numbered(index), {"target_vector": row}, {"row": index})

    return Items(each, vectors.num)
