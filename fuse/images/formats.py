"""Which kinds of files are read as pictures, and what the others are.

A format is read only if nothing but Pillow, or a plug-in of the extra `images`, takes part. EPS is
left out because it starts Ghostscript; WMF, BUFR, GRIB, HDF5 and MPEG, which are stubs for code of
others; FPX and MIC, which need such code; and IPTC, which opens what it holds in any format.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache

from fuse.images.jxl import CODESTREAM, CONTAINER

_COMMON = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL", "JPEG2000", "ICO")
_PROGRAMS = ("ICNS", "PPM", "PSD", "QOI", "DDS", "DIB", "CUR", "SGI", "PCX", "DCX", "SUN", "MSP")
_RARE = ("FLI", "FITS", "BLP", "FTEX", "GBR", "MCIDAS", "PIXAR", "XBM", "XPM", "XVTHUMB")
MARKED = (*_COMMON, *_PROGRAMS, *_RARE)
"""Formats whose files begin with a mark of their own."""
UNMARKED = ("IM", "IMT", "PCD", "SPIDER", "TGA")
"""Formats that are guessed from numbers in a header: tried last."""
PLUG_INS = {"HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin", "AVIF": "a newer Pillow"}
"""What reads formats that Pillow itself may not read."""
PLUG_IN_SUFFIXES = (".heic", ".heif", ".hif", ".avif", ".jxl")

_SIGNATURES = (
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"GRIB", "GRIB"),
    (0, b"BUFR", "BUFR"),
    (0, b"\0\0\1\xb3", "MPEG"),
    (0, b"\0\0\1\xba", "MPEG"),
    (0, b"<svg", "SVG"),
    (0, b"<!doctype html", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"PK\3\4", "a ZIP archive"),
)
"""What files begin with that people take for pictures: where, what, and its name."""
_BRANDS = {
    "HEIF": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
    "AVIF": (b"avif", b"avis"),
}
"""The first brands of files that are boxes of ISO's."""
_MARKS = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")
"""What damaged pictures of common formats still begin with."""


@cache
def readable_formats(unmarked: bool = True) -> tuple[str, ...]:
    """Return the formats that are read here, by Pillow's names.

    Args:
        unmarked: those too that are only guessed.
    """
    from PIL import Image

    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers itself)
    return tuple(name for name in MARKED + UNMARKED * unmarked if name in Image.OPEN)


@cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of formats that are read here or with the plug-ins."""
    from PIL import Image

    formats = readable_formats()
    known = Image.registered_extensions()
    return frozenset(PLUG_IN_SUFFIXES) | {s for s, name in known.items() if name in formats}


def foreign_name(head: bytes) -> str | None:
    """Return what a file is that people take for a picture, and that is not read; None for others.

    Args:
        head: its first 512 bytes or so.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, mark, name in _SIGNATURES:
        if head[start:].startswith(mark) or (mark[:1] == b"<" and text.startswith(mark)):
            return name
    return "SVG" if text.startswith(b"<?xml") and b"<svg" in text else None


def describe(head: bytes) -> str:
    """Return what a file is that is not read, and what to do.

    Args:
        head: its first 512 bytes or so.
    """
    if not head.strip(b"\0"):
        return "it holds nothing but zeros; fetch it anew"
    needed = _plug_in(head)
    if needed is not None and needed not in readable_formats():
        return f"{needed} needs {PLUG_INS[needed]}: pip install 'fuse-prompt[images]'"
    name = foreign_name(head)
    if name is not None:
        return f"it is {name}, which is not read; give it as PNG or JPEG"
    if needed is not None or head.startswith(_MARKS):
        return "damaged, so that no picture is found in it; fetch it anew"
    return "not a picture; give a PNG, JPEG or WebP file"


def _plug_in(head: bytes) -> str | None:
    """Return the format, of those that may need a plug-in, that a file begins like."""
    if head.startswith((CODESTREAM, CONTAINER)):
        return "JXL"
    for name, brands in _BRANDS.items():
        if head[4:8] == b"ftyp" and head[8:12] in brands:
            return name
    return None
