"""The picture on its background, and what of it a model would not see."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from fuse.images.options import ReadingOptions

log = logging.getLogger(__name__)

LEAST_KEPT = 0.4
"""The share of a picture that a crop to a square has to keep; below it, a warning."""
LONGEST_STRIP = 16
"""How many times as long as wide a picture may be: models make its short side hundreds of pixels
long, and of a strip the memory for the long one has no bounds."""
LARGEST_SQUARE = 2048
"""The side, in pixels, to which a picture is shrunk before it is padded: models see less."""
NEAR, SAMPLE, LEAST_VISIBLE = 24, 256, 0.01
"""Levels of 255 between colours that look alike; the side of the small picture that is looked at;
the share of what is opaque that has to differ from the background."""


def framed(image: Image, options: ReadingOptions, where: str) -> Image:
    """Return a picture in RGB as it is to be shown to a model.

    Args:
        image: in RGB or RGBA, upright.
        where: what warnings name: a key and a path.
    """
    flat = _on_background(image, options.colour)
    _warn_of_nothing_visible(image, options, where)
    if options.fit == "pad":
        return _padded(flat, options.colour)
    kept = min(flat.size) / max(flat.size)
    if kept < LEAST_KEPT:
        log.warning(
            "%s: %d x %d pixels, of which a square crop, as CLIP makes it, keeps %.2g%%; "
            "fit=pad keeps all",
            *(where, *flat.size, 100 * kept),
        )
    return _middle(flat)


def _on_background(image: Image, colour: tuple[int, int, int]) -> Image:
    """Lay a picture on a colour."""
    from PIL import Image as images

    if image.mode == "RGB":
        return image
    ground = images.new("RGBA", image.size, (*colour, 255))
    return images.alpha_composite(ground, image).convert("RGB")


def _warn_of_nothing_visible(image: Image, options: ReadingOptions, where: str) -> None:
    """Warn of a picture that vanishes on its background, or is of one colour."""
    from PIL import Image as images

    small = image.resize(
        (min(image.width, SAMPLE), min(image.height, SAMPLE)), images.Resampling.BOX
    )
    flat = np.asarray(_on_background(small, options.colour)).astype(int)
    if int(np.ptp(flat, axis=(0, 1)).max()) == 0 and image.mode == "RGB":
        log.warning("%s: all of it is of one colour: nothing is to be seen", where)
    if image.mode == "RGB":
        return
    alpha = np.asarray(small.getchannel("A"))
    opaque = (alpha > NEAR).mean()
    visible = (np.abs(flat - options.colour).max(axis=2) > NEAR).mean()
    if not opaque:
        log.warning("%s: all of it is transparent: nothing is to be seen", where)
    elif alpha.min() < 255 - NEAR and visible < LEAST_VISIBLE * opaque:
        log.warning(
            "%s: what is opaque of it has nearly the colour of the background, %s, and is not "
            "to be seen; give another, such as background=%s",
            *(where, options.background, "black" if sum(options.colour) > 384 else "white"),
        )


def _padded(image: Image, colour: tuple[int, int, int]) -> Image:
    """Return the whole picture in the middle of a square."""
    from PIL import Image as images

    if max(image.size) > LARGEST_SQUARE:
        scale = LARGEST_SQUARE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), images.Resampling.BICUBIC)
    side = max(image.size)
    square = images.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _middle(image: Image) -> Image:
    """Cut a strip to its middle, which is all that a crop to a square reads of it."""
    longest = LONGEST_STRIP * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
