"""From a path to a picture; whatever is wrong with the file is one line."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fuse.errors import FuseError, one_line
from fuse.images.damage import bare
from fuse.images.fetching import fetched, is_address
from fuse.images.formats import describe, foreign_name, readable_formats
from fuse.images.jxl import jxl_size
from fuse.images.options import ReadingOptions

if TYPE_CHECKING:
    from PIL.Image import Image

HEAD_BYTES = 512
"""How much of a file is looked at to say what it is."""
_ORIENTATION = 0x0112
"""The tag of EXIF."""


def open_image(
    path: str | Path, key: str = "image", options: ReadingOptions | None = None
) -> Image:
    """Open an image file in RGB, as a person would see it.

    The content tells the format, whatever the suffix says. The first frame of several is taken,
    turned upright if the file says how, on the background's colour where it is transparent. More
    than 8 bits are scaled to 8. A file that is cut off is refused, even if some of its pixels are
    there: what is missing would be grey, and become part of what is found.

    Args:
        path: of a file, or an address, http:// or https://, which is fetched.
        key: what the path is called in messages.
        options: the background, the fit and the limits.

    Raises:
        FuseError: there is no such file, or no picture can be read from it.
    """
    options = options or ReadingOptions()
    where = f"{key}={one_line(path)}"
    reason = "" if is_address(path) else why_no_file(path)
    if reason:
        raise FuseError(f"{where}: {reason}; give the path of a picture, such as images/house.png")
    from fuse.images.colours import as_seen
    from fuse.images.framing import framed

    head = b""
    try:
        with _opened(path, options, where) as file, _quiet_pillow(options.max_pixels):
            _check_bytes(_size(file), options, where)
            head = file.read(HEAD_BYTES)
            image = as_seen(_upright(_decoded(file, options, where)))
        return framed(image, options, where)
    except FuseError:
        raise
    except Exception as error:  # of any type: files are damaged in any way
        raise FuseError(f"{where}: {_reason(error, head, options)}") from error


def _opened(path: str | Path, options: ReadingOptions, where: str) -> IO[bytes]:
    """Return a file that is open, or what an address holds."""
    if is_address(path):
        return fetched(str(path), options.max_bytes, where)
    return Path(path).open("rb")


def _size(file: IO[bytes]) -> int:
    return file.getbuffer().nbytes if isinstance(file, BytesIO) else os.fstat(file.fileno()).st_size


def why_no_file(path: str | Path) -> str | None:
    """Return why a path is not one of a file that can be read to its end; None if it is."""
    try:
        mode = Path(path).stat().st_mode if str(path) else 0
    except FileNotFoundError:
        return "a link to nowhere" if Path(path).is_symlink() else "no such file"
    except (OSError, ValueError) as error:
        return one_line(getattr(error, "strerror", None) or error)
    if not mode:
        return "no path"
    if stat.S_ISDIR(mode):
        return "a folder"
    return None if stat.S_ISREG(mode) else "not a file, but a pipe, a socket or a device"


def why_not_read(path: str | Path) -> str | None:
    """Return why the content of a file is none of a picture; None if it begins as one.

    Formats without a mark of their own are not guessed.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Path(path).open("rb") as file, _quiet_pillow(None):
            if not os.fstat(file.fileno()).st_size:
                return "empty"
            head = file.read(HEAD_BYTES)
            Image.open(file, formats=readable_formats(unmarked=False))
    except UnidentifiedImageError:
        return describe(head)
    except OSError as error:
        return one_line(error.strerror) if error.strerror else None
    except Exception:
        return None  # a picture, if a damaged one: whoever reads it will say so
    return None


def _check_bytes(size: int, options: ReadingOptions, where: str) -> None:
    if not size:  # some files of the system, too, which never end
        raise FuseError(f"{where}: empty; give a PNG, JPEG or WebP file")
    if size > options.max_bytes:
        raise FuseError(
            f"{where}: {size} bytes, more than max_bytes={options.max_bytes}; "
            "give a smaller file, or raise max_bytes"
        )


def _check_pixels(width: int, height: int, options: ReadingOptions, where: str) -> None:
    if width * height > options.max_pixels:
        raise FuseError(
            f"{where}: {width} x {height} pixels, more than max_pixels={options.max_pixels}; "
            "give a smaller picture, or raise max_pixels"
        )


def _decoded(file: IO[bytes], options: ReadingOptions, where: str) -> Image:
    """Return the pixels of a file; where what is said beside them is damaged, without that."""
    try:
        return _load(file, options, where)
    except (FuseError, MemoryError):
        raise
    except Exception:
        file.seek(0)
        data = bare(file.read())
        if data is None:
            raise
        return _load(BytesIO(data), options, where)


def _load(file: IO[bytes], options: ReadingOptions, where: str) -> Image:
    """Decode a picture, if it is not too large."""
    from PIL import Image

    size = jxl_size(file)
    if size is not None:
        _check_pixels(*size, options, where)
    file.seek(0)
    guess = foreign_name(file.read(HEAD_BYTES)) is None
    image = Image.open(file, formats=readable_formats(unmarked=guess))
    _check_pixels(*image.size, options, where)
    with _without_stderr() if image.format == "TIFF" else nullcontext():
        image.load()
    return image


def _upright(image: Image) -> Image:
    """Turn a picture as its file says; where that cannot be read, take it as it stands."""
    from PIL.Image import Transpose

    turns: dict[object, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return image  # the plug-in has turned it
    try:
        value = image.getexif().get(_ORIENTATION)
        if isinstance(value, bytes):  # of a type that tells nothing: a number, and zeros
            value = sum(value)
        turn = turns.get(value)
    except Exception:  # of any type: tags are damaged in any way
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format
    return turned


def _reason(error: Exception, head: bytes, options: ReadingOptions) -> str:
    """Return what is wrong with a file, in one line."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return describe(head)
    if isinstance(error, Image.DecompressionBombError):
        most = f"max_pixels={options.max_pixels}"
        return f"more pixels than {most}; give a smaller picture, or raise max_pixels"
    if isinstance(error, MemoryError):
        return "too large for the memory of this machine; give a smaller picture"
    if isinstance(error, OSError) and error.strerror:
        return f"{one_line(error.strerror)}; give a file that can be read"
    if "truncated" in str(error).lower():
        return f"cut off: a part of it is missing ({one_line(error)}); fetch it anew"
    kind, first = type(error).__name__, (str(error).strip().splitlines() or ["no reason given"])[0]
    return f"damaged, or of a kind that is not read ({kind}: {one_line(first)}); fetch it anew"


@contextmanager
def _quiet_pillow(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow have our limit of pixels, and no warnings, within a context."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Send to nowhere what C code writes to standard error, within a context: libtiff's own
    complaints, beside the error that it returns.
    """
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, AttributeError, ValueError):  # there is no standard error
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
