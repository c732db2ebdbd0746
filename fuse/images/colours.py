"""The colours of a picture, as a person would see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
"""Modes whose colours are multiplied by alpha, and those in which they are not."""
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339
"""Tags of TIFF: whether 0 is white; whether numbers have a sign."""


def as_seen(image: Image) -> Image:
    """Return a picture in RGB, or in RGBA if parts of it are transparent.

    Numbers of more than 8 bits are scaled to 8, where Pillow would clip them. Profiles of colours
    are left aside, as they are by the models' own training.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _with_clear_level(image, _scaled(image))
    if image.mode in _STRAIGHT:
        image = image.convert(_STRAIGHT[image.mode])
    named_clear = image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    clear = named_clear or image.mode in ("LA", "PA", "RGBA")
    return image.convert("RGBA" if clear else "RGB")


def _scaled(image: Image) -> Image:
    """Return a picture of one channel, of 16 or 32 bits or of real numbers, in 8 bits."""
    from PIL import Image as images

    values = _values(image)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    dark, bright = _ends(image, low, high)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    levels = (values - dark) / (bright - dark)
    if _tags(image).get(_PHOTOMETRIC) == 0:  # Pillow heeds it in 8 bits alone
        levels = 1 - levels
    return images.fromarray(_rounded(levels))


def _values(image: Image) -> Float[np.ndarray, "h w"]:
    """Return the numbers of a picture of one channel."""
    values: Shaped[np.ndarray, "h w"] = np.asarray(image)
    if image.mode == "I" and _tags(image).get(_SAMPLE_FORMAT) in (1, (1,)):
        values = values.view(np.uint32)  # without a sign in the file, with one in Pillow
    return values.astype(np.float64 if image.mode == "I" else np.float32)


def _ends(image: Image, low: float, high: float) -> tuple[float, float]:
    """Return which numbers are black and white.

    The format tells for 16 bits. Numbers of 32 bits and real ones are commonly of 0 to 1, of 8 or
    of 16 bits: the narrowest of these that holds them all counts. Others go from their lowest, or
    0, to their highest.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 0.0, 65535.0
    if low < 0:
        return low, max(high, low + 1)
    for limit in (1.0, 255.0, 65535.0)[image.mode == "I" :]:
        if high <= limit:
            return 0.0, limit
    return 0.0, high


def _with_clear_level(image: Image, gray: Image) -> Image:
    """Make transparent what has the one level, of 16 bits, that the file calls so."""
    level = image.info.get("transparency")
    if not isinstance(level, int):
        return gray.convert("RGB")
    from PIL import Image as images

    opaque = np.where(np.asarray(image) == level, 0, 255).astype(np.uint8)
    seen = gray.convert("RGBA")
    seen.putalpha(images.fromarray(opaque))
    return seen


def _rounded(levels: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Turn numbers from 0 to 1 into bytes."""
    return (np.clip(levels, 0, 1) * 255 + 0.5).astype(np.uint8)


def _tags(image: Image) -> Any:
    """Return the tags of a TIFF file; none for others."""
    return getattr(image, "tag_v2", {})
