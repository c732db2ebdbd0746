"""Pictures whose pixels are whole, while something that is said about them is not."""

from __future__ import annotations

PNG_MARK, JPEG_MARK = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
"""Chunks of PNG that tell what is seen: the pixels, what is transparent, and which side is up."""
_APP, _ADOBE, _COMMENT, _SCAN = range(0xE0, 0xF0), 0xEE, 0xFE, 0xDA
"""Markers of JPEG. Adobe's segment tells how colours are stored."""


def bare(data: bytes) -> bytes | None:
    """Return a PNG or JPEG file without its texts, profiles and previews; None for other files."""
    if data.startswith(PNG_MARK):
        return _bare_png(data)
    if data.startswith(JPEG_MARK):
        return _bare_jpeg(data)
    return None


def _bare_png(data: bytes) -> bytes:
    """Keep the chunks that tell what is seen; a chunk is a length, a name, content, a checksum."""
    kept, start = [PNG_MARK], len(PNG_MARK)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in KEPT_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _bare_jpeg(data: bytes) -> bytes:
    """Leave out the segments of applications, and comments, that stand before the first scan."""
    kept, start = [JPEG_MARK], len(JPEG_MARK)
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != _SCAN:
        marker = data[start + 1]
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == _ADOBE or (marker not in _APP and marker != _COMMENT):
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])
