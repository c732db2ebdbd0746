"""Image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fuse.errors import FuseError

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(path: str | Path, key: str = "image") -> Image:
    """Open an image file in RGB, turned upright, transparent parts on white.

    Args:
        key: what the path is called in messages.

    Raises:
        FuseError: there is no such file, or it is not an image.
    """
    from PIL import Image, ImageOps

    if not Path(path).is_file():
        raise FuseError(
            f"{key}={path}: no such file; give the path of a picture, such as images/house.png"
        )
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(white, upright).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FuseError(
            f"{key}={path}: not a picture that can be read ({error}); give a PNG, JPEG or WebP file"
        ) from error
