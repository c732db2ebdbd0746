"""Files that visitors give."""

from __future__ import annotations

import shutil
from pathlib import Path

from fuse.app.report.page import picture
from fuse.app.run_folder import CHECKPOINT, CONFIG, PAGE, RESULT, TRACE
from fuse.errors import FuseError
from fuse.images import ReadingOptions, open_image

MAX_FILE_BYTES = 20_000_000
"""Of a picture or an embedding."""
MAX_PIXELS = 50_000_000
PREVIEW_SIZE = 256
"""The longer side of a picture as it is shown, in pixels."""
OWN_FILES = (CONFIG, RESULT, TRACE, CHECKPOINT, PAGE)
"""Names that a run folder has for itself."""


def uploaded(path: str | None, what: str) -> str:
    """Return the path of a file that was given.

    Raises:
        FuseError: there is none, or it is too large.
    """
    if not path:
        raise FuseError(f"{what}: none was given; drop a file, or choose an example")
    if not Path(path).is_file():
        raise FuseError(f"{what}: it is not there any more; give it again")
    if Path(path).stat().st_size > MAX_FILE_BYTES:
        raise FuseError(f"{what}: it has more than {MAX_FILE_BYTES:,} bytes; give a smaller file")
    return path


def picture_of(path: str) -> str | None:
    """Return the data address of an uploaded picture, made small.

    Raises:
        FuseError: it is none, or too large.
    """
    return picture(checked_picture(path), PREVIEW_SIZE)


def checked_picture(path: str | None) -> str:
    """Return the path of an uploaded picture.

    Raises:
        FuseError: it is none, or too large.
    """
    found = uploaded(path, "picture")
    open_image(found, "picture", ReadingOptions(max_pixels=MAX_PIXELS))
    return found


def kept(path: str, folder: Path) -> str:
    """Keep what was uploaded in the run folder, under the name that the visitor knows.

    Returns:
        Its path there.

    Raises:
        FuseError: it is not there, or too large.
    """
    given = Path(uploaded(path, "file"))
    name = f"given-{given.name}" if given.name in OWN_FILES else given.name
    folder.mkdir()
    shutil.copyfile(given, folder / name)
    return str(folder / name)
