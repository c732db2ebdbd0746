"""A text file beside each picture: of the same name, with the suffix `.txt`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fuse.app.formats.done import Done
from fuse.app.run_folder import RunFolder

COPY = "sidecar.txt"
"""In an item's folder: the text as it was written beside the picture."""


def write(items: Iterable[Done], folder: RunFolder, replace: bool = False) -> None:
    """Write the texts beside their pictures.

    A file that this run has not written, or that was changed since, is left as it is.

    Args:
        replace: whether such a file is replaced.
    """
    owners: dict[Path, Path] = {}
    for item in items:
        if item.picture is None or folder.path.absolute() in item.picture.absolute().parents:
            continue  # a picture that has no place of its own
        target = item.picture.with_suffix(".txt").absolute()
        owner = owners.setdefault(target, item.picture)
        if owner != item.picture:
            names = f"{owner.name}, and {item.picture.name} would have the same file"
            folder.problem(f"{target} of {item.picture.name}", f"it is that of {names}")
            continue
        try:
            _write_one(item, target, folder, replace)
        except OSError as error:
            folder.problem(str(target), str(error.strerror))


def _write_one(item: Done, target: Path, folder: RunFolder, replace: bool) -> None:
    content = f"{item.row['text']}\n".encode()
    copy = folder.inner(item.name)
    there, ours = _content(target), _content(item.folder / COPY)
    if there is None:
        _put(target, content, exclusive=True)
    elif there != content:
        if there != ours and not replace:
            folder.problem(
                str(target), "it is none of this run's; sidecar=overwrite would replace it"
            )
            return
        _put(target, content)
    if ours != content:
        copy.write(COPY, content)


def _put(target: Path, content: bytes, exclusive: bool = False) -> None:
    """Write a file whole; an exclusive one only where there is none."""
    fresh = target.with_name(f".sidecar.{os.getpid()}")  # a name may be as long as it can be
    try:
        fresh.write_bytes(content)
        if exclusive:
            _link(fresh, target)
        else:
            fresh.replace(target)
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def _link(fresh: Path, target: Path) -> None:
    """Give a file one more name, if nothing has that name."""
    try:
        os.link(fresh, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with target.open("xb") as file:
            file.write(fresh.read_bytes())


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
