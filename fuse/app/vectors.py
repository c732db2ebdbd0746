"""Read vectors from a file, a row at a time, or one from numbers that were typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.losses import direction
from fuse.models.model_files import first_line
from fuse.options import shown

MAX_BYTES = 2**24
"""A JSON file of a vector is not larger: a million numbers as text."""
BATCH_ROWS = 256
"""How many rows of a parquet file are read at once."""


@dataclass(frozen=True)
class Vectors:
    """The rows of a file.

    Args:
        num: how many they are.
        rows: goes through them, as lists of numbers.
    """

    num: int
    rows: Callable[[], Iterator[list[float]]]


def read_vector(value: str | Sequence[float | str]) -> Float[Tensor, " e"]:
    """Return the unit vector that a path or a list of numbers stands for.

    Args:
        value: a file of one row, as `open_vectors` reads it, or numbers.

    Raises:
        FuseError: it cannot be read, is no single row of finite numbers, or has no direction.
    """
    if isinstance(value, str):
        vectors = open_vectors(value)
        if vectors.num != 1:
            raise FuseError(
                f"target_vector={shown(value)}: holds {vectors.num} rows, expected one; give "
                "target_vector=FILE at the top, which searches for each of them"
            )
    return direction(read_numbers(value, "target_vector"), f"target_vector={shown(value)}")


def read_numbers(value: str | Sequence[float | str], key: str) -> Float[Tensor, "*_"]:
    """Return the tensor that a path or a list of numbers stands for: one row, or several; errors
    begin with the key.
    """
    if isinstance(value, str):
        rows = list(open_vectors(value, key=key).rows())
        return torch.tensor(rows[0] if len(rows) == 1 else rows)
    with _complaining(value, key):
        return torch.tensor([float(number) for number in value])


def open_vectors(value: str, column: str | None = None, key: str = "target_vector") -> Vectors:
    """Return the vectors of a file, which are read when they are asked for.

    Args:
        value: the path of a `.npy`, or a `.safetensors` file of one tensor, each of one or two
            dimensions; of a `.parquet` file with a column of lists; of a `.json` file of one list.
        column: of a parquet file; None for the only one that holds lists.

    Raises:
        FuseError: it cannot be read, or holds no numbers.
    """
    path = Path(value).expanduser()
    with _complaining(value, key):
        if path.suffix not in READERS:
            raise ValueError(f"none of {', '.join(READERS)}")
        return READERS[path.suffix](path, column)


@contextmanager
def _complaining(value: Any, key: str) -> Iterator[None]:
    """Put what goes wrong with a vector within this context into one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, RecursionError, OverflowError) as error:
        raise FuseError(
            f"{key}={shown(value)}: could not be read ({first_line(error)}); expected a "
            ".npy or .safetensors file, a .parquet file with a column of lists, a .json file of "
            "one list, or a list of numbers"
        ) from error


def _json(path: Path, column: str | None) -> Vectors:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    row = [float(number) for number in json.loads(path.read_text(encoding="utf-8"))]
    return Vectors(1, lambda: iter([row]))


def _npy(path: Path, column: str | None) -> Vectors:
    import numpy

    table = numpy.load(path, mmap_mode="r", allow_pickle=False)
    if table.dtype.kind not in "fiu":
        raise ValueError(f"it holds {table.dtype}, expected numbers")
    rows = table[None] if table.ndim == 1 else table
    return Vectors(_num_rows(rows.shape), lambda: (row.tolist() for row in rows))


def _safetensors(path: Path, column: str | None) -> Vectors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise ValueError(f"it holds {len(names)} tensors, expected one")
            shape = file.get_slice(names[0]).get_shape()
            one = file.get_tensor(names[0]).float().tolist() if len(shape) == 1 else None
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if one is not None:
        return Vectors(1, lambda: iter([one]))
    return Vectors(_num_rows(shape), partial(_tensor_rows, path, names[0]))


def _tensor_rows(path: Path, name: str) -> Iterator[list[float]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        rows = file.get_slice(name)
        for index in range(rows.get_shape()[0]):
            yield rows[index].float().tolist()


def _parquet(path: Path, column: str | None) -> Vectors:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        lists = [field.name for field in file.schema_arrow if _is_vector(pa, field.type)]
        num = file.metadata.num_rows
    if column is None and len(lists) != 1:
        raise ValueError(f"columns of lists of numbers: {lists or 'none'}; give column=NAME")
    if column is not None and column not in lists:
        raise ValueError(f"no column {column} of lists of numbers; there are: {lists or 'none'}")
    return Vectors(num, partial(_parquet_rows, path, column or lists[0]))


def _is_vector(pa: Any, kind: Any) -> bool:
    """Whether a column's type is a list of numbers."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list or pa.types.is_fixed_size_list(kind)):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _parquet_rows(path: Path, column: str) -> Iterator[list[float]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            for row in batch.column(0):
                yield row.as_py() or []


def _num_rows(shape: Sequence[int]) -> int:
    """Return the first of two dimensions."""
    if len(shape) != 2 or not shape[0]:
        raise ValueError(f"its shape is {list(shape)}, expected one or more rows")
    return shape[0]


READERS: dict[str, Callable[[Path, str | None], Vectors]] = {
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".json": _json,
}
"""By the suffix of a file."""
