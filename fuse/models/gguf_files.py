"""Look at the header of a GGUF file before anything is made of it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from fuse.errors import FuseError
from fuse.models.build_limits import StoredSize

SUFFIX = ".gguf"
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Formats of `struct` for the types of plain values."""
STRING, ARRAY = 8, 9
MAX_ENTRIES = 2**16
"""The most entries of metadata, or tensors, that a header may tell of."""
MAX_DIMENSIONS = 8
NUMBERS_PER_BYTE = 8
"""No type packs more numbers into one byte."""


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Args:
        metadata: single values by their keys; lists are left out.
        shapes: of each tensor, by its name.
    """

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def stored(self) -> StoredSize:
        """How much the tensors hold."""
        return StoredSize(len(self.shapes), sum(map(_product, self.shapes.values())))


def read_header(path: Path) -> Header:
    """Return the header of a GGUF file; nothing is read beside it.

    Raises:
        FuseError: it is damaged, or tells of more than the file can hold.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path.stat().st_size)
        try:
            return reader.header()
        except (_Odd, struct.error, UnicodeDecodeError, OverflowError) as error:
            raise FuseError(
                f"model_id={path}: its header cannot be read ({error}); "
                "fetch the file anew or choose another model"
            ) from error


def as_dense() -> dict[str, Any]:
    """Return the options with which transformers unpacks a file's weights.

    Its newer versions would fetch a kernel from the hub, compiled code, to compute with packed
    ones.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def read_once() -> Iterator[None]:
    """Let transformers read a file once within a context, and not anew for each of its needs."""
    import numpy

    library: Any = import_module("gguf")

    class Reader(library.GGUFReader):
        """Reads from a plain array, of which a part takes less time than of a mapped file; and
        lists, such as a vocabulary of strings, at once.
        """

        @property
        def data(self) -> Any:
            """The bytes of the file."""
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(numpy.ndarray)

        def _get_field_parts(self, start: int, kind: int) -> tuple[int, list[Any], list[int], Any]:
            """Return the size of a value, its parts, which of them are data, and its types."""
            if kind != ARRAY or sys.byteorder == "big" or self.byte_order == "S":
                return super()._get_field_parts(start, kind)
            inner, count = struct.unpack_from("<IQ", self._plain, start)
            if inner == STRING:
                size, parts = _strings(memoryview(self._plain), start + 12, count)
            elif inner in NUMBERS:
                numbers = self._get(start + 12, self.gguf_scalar_to_np[inner], count)
                size, parts = numbers.nbytes, [numbers[i : i + 1] for i in range(count)]
            else:
                return super()._get_field_parts(start, kind)
            types = [library.GGUFValueType(one) for one in ((kind, inner) if count else (kind,))]
            return 12 + size, parts, list(range(count)), types

    before = library.GGUFReader, library.get_tensor_name_map
    library.GGUFReader, library.get_tensor_name_map = (
        cache(Reader),
        cache(library.get_tensor_name_map),
    )
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map = before


def _strings(data: memoryview, start: int, count: int) -> tuple[int, list[bytes]]:
    """Return how many bytes a list of strings takes, and the strings."""
    found, at = [], start
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(bytes(data[at + 8 : at + 8 + length]))
        at += 8 + length
    return at - start, found


class _Odd(ValueError):
    """A header says something that cannot be true."""


class _Reader:
    """Reads a header from its beginning on, never beyond the end of the file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def header(self) -> Header:
        """Read the whole header."""
        if self._take(4) != b"GGUF":
            raise _Odd("it is no GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            raise _Odd(f"its version is {version}, expected 2 or 3")
        num_tensors, num_entries = self._count(MAX_ENTRIES), self._count(MAX_ENTRIES)
        metadata, shapes = {}, {}
        for _ in range(num_entries):
            key, kind = self._string(), self._number("I")
            value = self._value(kind)
            if kind != ARRAY:
                metadata[key] = value
        for _ in range(num_tensors):
            name = self._string()
            shapes[name] = tuple(self._number("Q") for _ in range(self._dimensions()))
            self._number("I")
            self._number("Q")
            if _product(shapes[name]) > NUMBERS_PER_BYTE * self._size:
                raise _Odd(f"its tensor {name:.60} is larger than the file")
        return Header(metadata, shapes)

    def _value(self, kind: int) -> Any:
        """Read a value; of a list nothing is kept."""
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(self._format(kind))
        inner = self._number("I")
        if inner == STRING:
            for _ in range(self._count(self._left // 8)):
                self._skip(self._count(self._left))
        else:
            width = struct.calcsize(f"<{self._format(inner)}")
            self._skip(width * self._count(self._left // width))
        return None

    def _format(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise _Odd(f"it holds a value of an unknown type {kind}")
        return NUMBERS[kind]

    def _dimensions(self) -> int:
        count = self._number("I")
        if count > MAX_DIMENSIONS:
            raise _Odd(f"a tensor has {count} dimensions")
        return int(count)

    def _count(self, most: int) -> int:
        count = self._number("Q")
        if count > most:
            raise _Odd(f"it tells of {count} entries, and has room for {most}")
        return int(count)

    def _string(self) -> str:
        return self._take(self._count(self._left)).decode()

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    @property
    def _left(self) -> int:
        return self._size - self._file.tell()

    def _take(self, length: int) -> bytes:
        if length > self._left:
            raise _Odd("it ends too early")
        return self._file.read(length)

    def _skip(self, length: int) -> None:
        self._file.seek(length, 1)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
