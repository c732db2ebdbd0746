"""The pictures that `image` stands for: one, those of a folder, or a list of both."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from fuse.app.items import ALONE, Item, Items
from fuse.app.run_folder import CHECKPOINT, CONFIG, INDEX, JOB, LOCK, PAGE, RESULT, TRACE
from fuse.errors import FuseError, one_line
from fuse.images.fetching import is_address

MOST_NAMED = 5
"""How many files that are skipped are named in one line."""
LONGEST_NAME_BYTES = 180
"""Of the name of a result's folder; most file systems take 255."""
_RUN_FILES = (CHECKPOINT, CONFIG, LOCK, RESULT, TRACE, JOB, PAGE, INDEX, ".hydra",
              "find_prompt.log", "metadata.jsonl", "results.csv", "coco_results.json", "dataset",
              "word_cloud.png")  # fmt: skip
"""Names that a run folder uses itself."""
PASSED_BY = "its name begins with . or __, or has no suffix of a picture"
_UNSAFE = frozenset('/\\:*?"<>|')
"""What some file system does not take in a name."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is no picture, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Pictures:
    """Pictures by the names of their results' folders, and what was skipped."""

    paths: dict[str, Path]
    skipped: tuple[Skipped, ...] = ()

    @property
    def note(self) -> str | None:
        """One line about what was skipped; None if nothing was."""
        if not self.skipped:
            return None
        plural = "s" if len(self.skipped) > 1 else ""
        return f"{len(self.skipped)} file{plural} skipped: {_named(self.skipped)}"


def picture_items(value: Any, nested: bool = False) -> Items:
    """Return the pictures that `image` stands for as items of a run; null is no picture.

    Raises:
        FuseError: there is no path, or no picture.
    """
    if value is None or is_address(value):
        return ALONE
    pictures = find_pictures(value, nested)
    if "" in pictures.paths:
        return ALONE
    top = None if isinstance(value, list) or not _is_folder(_path(value)) else _path(value)

    def each() -> Iterator[Item]:
        for name, path in pictures.paths.items():
            file_name = path if top is None else path.relative_to(top)
            yield Item(name, {"image": str(path)}, {"file_name": file_name.as_posix()})

    names = tuple(pictures.paths)
    return Items(each, len(names), names, pictures.note)


def find_pictures(value: Any, nested: bool = False) -> Pictures:
    """Return the pictures that a value of `image` stands for.

    A path of a file, or of nothing, is one picture with the name "": whoever reads it says what is
    wrong. Of a folder, those files are pictures whose content begins as one, and those whose suffix
    promises one; they are in the order of their names.

    Args:
        value: a path, a pattern such as `pictures/**/*.png`, or a list of paths of pictures and
            folders.
        nested: whether the folders in a folder are looked through.

    Raises:
        FuseError: there is no path, or no picture.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise FuseError("image=[]: an empty list; expected pictures, such as [a.png,b.png]")
        paths = [_path(one) for one in value]
    else:
        path = _path(value)
        paths = [path] if _is_folder(path) else _matches(path)
        if not paths:
            return Pictures({"": path})
    found: list[tuple[str, Path]] = []
    skipped: list[Skipped] = []
    for path in paths:
        if not _is_folder(path):
            found.append((path.name, path))
            continue
        for one in _pictures_of(path, nested, skipped):
            found.append(("_".join(one.relative_to(path).parts), one))
    if not found:
        why = f"a folder without pictures ({_named(skipped)})" if skipped else "an empty folder"
        raise FuseError(f"image={one_line(value)}: {why}; expected pictures in it")
    return Pictures(_by_unique_name(found), tuple(skipped))


def _matches(path: Path) -> list[Path]:
    """Return what a pattern stands for, in the order of the names; nothing where it is a path."""
    try:
        if not set(str(path)) & set("*?[") or path.exists():
            return []
        return [Path(one) for one in sorted(glob(str(path), recursive=True))]  # noqa: PTH207
    except OSError:
        return []


def _path(value: Any) -> Path:
    """Return what is given as a path.

    Raises:
        FuseError: it is none.
    """
    text = "" if value is None else str(value)
    if is_address(text):
        raise FuseError(f"image={one_line(text)}: an address among others; give it alone")
    if not text.strip() or "\0" in text:
        raise FuseError(
            f"image={one_line(text)}: no path; expected a picture, a folder, or a list of them"
        )
    return Path(text)


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder's; a path that cannot be followed is not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _pictures_of(folder: Path, nested: bool, skipped: list[Skipped]) -> list[Path]:
    """Return the pictures of a folder in the order of their names; the others join `skipped`.

    Raises:
        FuseError: the folder cannot be listed.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise FuseError(
            f"image={one_line(folder)}: the folder cannot be listed "
            f"({one_line(error.strerror)}); give one that you may read"
        ) from error
    found = []
    for path in paths:
        if nested and _is_folder(path) and not path.is_symlink():  # links may lead in a circle
            try:
                found += _pictures_of(path, nested, skipped)
            except FuseError as error:
                skipped.append(Skipped(path, f"cannot be listed: {_reason_of(error)}"))
            continue
        reason = _why_skipped(path, nested)
        if reason is None:
            found.append(path)
        else:
            skipped.append(Skipped(path, reason))
    return found


def _reason_of(error: FuseError) -> str:
    return one_line(getattr(error.__cause__, "strerror", None) or error)


def _why_skipped(path: Path, nested: bool) -> str | None:
    """Return why something of a folder is not taken for a picture; None if it is taken."""
    from fuse.images.formats import picture_suffixes
    from fuse.images.reading import why_no_file, why_not_read

    if _is_folder(path):
        return "a link to a folder" if nested else "a folder; nested=true looks through it"
    promised = path.suffix.lower() in picture_suffixes() and not path.name.startswith(".")
    if promised:
        return None  # a result, or a line that says what is wrong
    return why_no_file(path) or why_not_read(path)


def note_of_others(folder: Path, taken: Collection[str]) -> str | None:
    """Return one line about the files of a folder, and of those within, that are not among the
    pictures taken from it; None if there are no others.
    """
    from fuse.images.reading import why_no_file, why_not_read

    skipped: list[Skipped] = []
    for where, _, names in sorted(os.walk(folder)):  # follows no links, which may lead in a circle
        for name in sorted(names):
            path = Path(where, name)
            if str(path) in taken or name.startswith("metadata."):
                continue
            reason = ""
            if len(skipped) < MOST_NAMED:
                reason = why_no_file(path) or why_not_read(path) or PASSED_BY
            skipped.append(Skipped(path, reason))
    return Pictures({}, tuple(skipped)).note


def _by_unique_name(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return paths by names that are safe for folders, and differ in more than case."""
    paths: dict[str, Path] = {}
    taken = {_folded(name) for name in _RUN_FILES}
    for wanted, path in found:
        safe = _safe(wanted)
        name, number = safe, 1
        while _folded(name) in taken:
            number += 1
            name_part, dot, suffix = safe.rpartition(".")
            name = f"{name_part}_{number}{dot}{suffix}" if name_part else f"{safe}_{number}"
        taken.add(_folded(name))
        paths[name] = path
    return paths


def _safe(name: str) -> str:
    """Return a name that every file system takes, with `_` for what one of them does not."""
    kept = "".join("_" if c in _UNSAFE or not c.isprintable() else c for c in name)
    cut = kept.encode()[-LONGEST_NAME_BYTES:].decode(errors="ignore")  # the suffix stays
    return cut.strip(" .") or "picture"


def _folded(name: str) -> str:
    """Return what file systems without case, or with another Unicode form, make of a name."""
    return unicodedata.normalize("NFC", name).casefold()


def _named(skipped: Sequence[Skipped]) -> str:
    """Name the first of what was skipped, with the reasons."""
    named = [f"{one_line(one.path.name)} ({one.reason})" for one in skipped[:MOST_NAMED]]
    more = len(skipped) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
