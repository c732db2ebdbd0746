"""How pictures are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator
from typing_extensions import Doc

from fuse.options import AtLeastOne, Words, check_options


def _colour(name: str) -> str:
    """Return the name of a colour that Pillow knows; a validator of pydantic."""
    from PIL import ImageColor

    ImageColor.getrgb(name)  # raises ValueError
    return name


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

    background: Annotated[
        str,
        AfterValidator(_colour),
        Words("a colour such as white, or #rrggbb"),
        Doc("the colour behind transparent parts and beside a padded picture"),
    ] = "white"
    fit: Annotated[
        Literal["crop", "pad"],
        Doc("crop: a model that wants a square takes the middle; pad: it sees the whole picture"),
    ] = "crop"
    max_pixels: Annotated[AtLeastOne, Doc("of a picture, checked before it is decoded")] = (
        200_000_000
    )
    max_bytes: Annotated[AtLeastOne, Doc("of a picture's file, checked before it is read")] = (
        500_000_000
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def colour(self) -> tuple[int, int, int]:
        """The background's red, green and blue, each from 0 to 255."""
        from PIL import ImageColor

        red, green, blue = ImageColor.getrgb(self.background)[:3]
        return red, green, blue
