"""`dataset/`: an image folder for `datasets.load_dataset`, ready to be pushed to the hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from fuse.app.formats import jsonl
from fuse.app.formats.done import Done
from fuse.app.run_folder import RunFolder

FOLDER = "dataset"


def write(items: Iterable[Done], folder: RunFolder) -> None:
    """Write `dataset/`: the pictures, as links where the file system has them, and the metadata.

    Where the items are no pictures, it holds the metadata alone.
    """
    own = folder.inner(FOLDER)
    own.write_parts(jsonl.NAME, _lines(items, own))


def _lines(items: Iterable[Done], own: RunFolder) -> Iterator[bytes]:
    for item in items:
        row = dict(item.row)
        if item.picture is not None:
            row["file_name"] = name = _name(item.name, item.picture)
            try:
                _add(item.picture, own.path / name)
            except OSError as error:
                own.problem(name, error.strerror or type(error).__name__)
                continue
        yield jsonl.line(row)


def _name(name: str, picture: Path) -> str:
    """Return an item's name with the suffix of a picture, without which `datasets` passes it by."""
    if Path(name).suffix == picture.suffix != "":
        return name
    return name + (picture.suffix or f".{_format(picture)}")


def _format(picture: Path) -> str:
    from PIL import Image

    with Image.open(picture) as image:
        return (image.format or "png").lower()


def _add(picture: Path, target: Path) -> None:
    """Put a picture into the folder, if it is not there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # of another file system, or one without such links
        os.link(picture.resolve(), target)
        return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(picture, fresh)
    fresh.replace(target)
