"""How pictures are read."""

from __future__ import annotations

from dataclasses import dataclass

from fuse.errors import FuseError, one_line, one_of

FITS = ("crop", "pad")


@dataclass(frozen=True)
class ReadingOptions:
    """What a picture is shown on, how it becomes a square, and how large it may be.

    Args:
        background: the colour behind transparent parts and beside a padded picture: a name of
            CSS's, `#rrggbb`, `rgb(...)`, `hsl(...)`.
        fit: `crop` leaves the picture as it is, so that a model that wants a square takes its
            middle; `pad` makes it a square by strips of the background, so that all of it is seen.
        max_pixels: most pixels, width times height; checked before they are decoded.
        max_bytes: most bytes of a file; checked before it is read.

    Raises:
        FuseError: one of them is not what it should be.
    """

    background: str = "white"
    fit: str = "crop"
    max_pixels: int = 200_000_000
    max_bytes: int = 500_000_000

    def __post_init__(self) -> None:
        self.colour  # noqa: B018  (raises)
        if self.fit not in FITS:
            raise FuseError(f"fit={one_line(self.fit)}: {one_of(self.fit, FITS)}")
        for name in ("max_pixels", "max_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FuseError(f"{name}={one_line(value)}: expected a whole number above 0")

    @property
    def colour(self) -> tuple[int, int, int]:
        """The background's red, green and blue, each from 0 to 255."""
        from PIL import ImageColor

        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except (ValueError, TypeError, AttributeError):
            raise FuseError(
                f"background={one_line(self.background)}: not a colour; "
                "expected a name such as white, or #rrggbb"
            ) from None
        return red, green, blue
