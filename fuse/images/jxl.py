"""How large a JPEG XL picture is. Its plug-in says so only after it has decoded all of it.

The header is that of ISO/IEC 18181-1, the boxes around it those of 18181-2.
"""

from __future__ import annotations

from typing import IO

CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_PART_INDEX = {b"jxlc": 0, b"jxlp": 4}
"""Boxes that hold the picture, or the first part of it, and how much stands before it there."""
_SIDE_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by the code for it less 1."""
_HEADER_BYTES = 16


def jxl_size(file: IO[bytes]) -> tuple[int, int] | None:
    """Return the width and height, in pixels, of a JPEG XL file; None for other files."""
    file.seek(0)
    start = file.read(len(CONTAINER))
    if start.startswith(CODESTREAM):
        file.seek(0)
    elif start != CONTAINER or not _seek_picture(file):
        return None
    header = file.read(_HEADER_BYTES)
    if not header.startswith(CODESTREAM):
        return None
    bits = _Bits(header[len(CODESTREAM) :])
    small = bool(bits.take(1))
    height = _side(bits, small)
    ratio = bits.take(3)
    if not ratio:
        return _side(bits, small), height
    above, below = _RATIOS[ratio - 1]
    return height * above // below, height


def _seek_picture(file: IO[bytes]) -> bool:
    """Go to the picture among the boxes; a box is a length, a name, and maybe a longer length."""
    while True:
        start, head = file.tell(), file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if name in _PART_INDEX:
            file.seek(_PART_INDEX[name], 1)
            return True
        if length < 8:
            return False
        file.seek(start + length)


def _side(bits: _Bits, small: bool) -> int:
    if small:
        return (bits.take(5) + 1) * 8
    return bits.take(_SIDE_BITS[bits.take(2)]) + 1


class _Bits:
    """Numbers of some bits, from the lowest bit of the first byte on."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        """Return the next number."""
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value
