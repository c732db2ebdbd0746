"""Rows of a data set, read one after the other by `datasets`: pictures, texts or vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fuse import hub
from fuse.app.items import Item, Items, numbered
from fuse.app.pictures import note_of_others
from fuse.errors import FuseError
from fuse.models.model_files import first_line
from fuse.options import shown

if TYPE_CHECKING:
    from datasets import IterableDataset

BUILDERS = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
}
"""Who reads local files, by their suffix. None of them runs code or unpickles anything."""
COUNTED = ("imagefolder", "json", "csv", "text")
"""Whose rows are quickly counted; pictures are not opened for that."""
KEYS = {"picture": "image", "text": "target", "vector": "target_vector"}
"""In whose place in the configuration the value of a column stands, by what it is."""
USUAL = ("target", "text", "caption")
"""Columns that are taken where several hold texts."""


def row_items(
    value: str, split: str | None, column: str | None, kind: str | None = None, key: str = "data"
) -> Items:
    """Return the rows of a data set as items of a run.

    Args:
        value: a `datasets` id, with its configuration after a colon; a folder, a file or a pattern
            of files: pictures, webdataset's .tar, .parquet, .arrow, .jsonl, .csv, .txt.
        split: None for `train`, or the only one.
        column: None for the one that holds pictures, else texts, else vectors.
        kind: what the column has to hold, of `KEYS`; None for any.
        key: what errors call the value.

    Raises:
        FuseError: it cannot be read, or has no such split or column.
    """
    source = _Source(value, split, key)
    first = next(source.rows(), None)
    if first is None:
        raise FuseError(f"{key}={shown(value)}: holds no rows; give another one")
    name = _column(first, column, kind, f"{key}={shown(value)}")

    def each() -> Iterator[Item]:
        for index, row in enumerate(source.rows(name)):
            yield _item(index, row[name], source.root, KEYS[_kind(first[name]) or "text"])

    return Items(each, source.count(), note=source.note())


class _Source:
    """A data set whose rows are read when they are asked for."""

    def __init__(self, value: str, split: str | None, key: str) -> None:
        self._where = f"{key}={shown(value)}"
        path = Path(value).expanduser()
        self.root = path if path.is_dir() else path.parent
        """The folder of local files."""
        self._builder, options = self._local(path)
        source: str = self._builder or value.partition(":")[0]
        if self._builder is None:
            options = {"name": value.partition(":")[2] or None}
            reason = hub.why_unreachable()
            if reason:
                raise FuseError(
                    f"{self._where}: no such file or folder, and the hub cannot be reached "
                    f"({reason}); give a local one"
                )
        with self._complaining():
            import datasets

            datasets.disable_progress_bars()
            found = datasets.load_dataset(source, streaming=True, **options)
            self._has_splits = len(found) > 1
            self._stream: IterableDataset = self._chosen(found, split).decode(False)

    def _local(self, path: Path) -> tuple[str | None, dict[str, Any]]:
        """Return who reads local files, and which they are; None where there are none."""
        from fuse.images.formats import picture_suffixes

        if path.is_dir():
            suffixes = {file.suffix.lower() for file in path.rglob("*")}
            if suffixes & set(picture_suffixes()):
                return "imagefolder", {"data_dir": str(path)}
            for suffix, builder in BUILDERS.items():
                if suffix in suffixes:
                    files = sorted(str(file) for file in path.rglob(f"*{suffix}"))
                    return builder, {"data_files": files}
            raise FuseError(
                f"{self._where}: a folder without pictures or files that are read "
                f"({', '.join(BUILDERS)})"
            )
        files = [str(path)] if path.is_file() else sorted(glob(str(path)))  # noqa: PTH207
        if not files:
            return None, {}
        suffix = Path(files[0]).suffix.lower()
        if suffix not in BUILDERS:
            raise FuseError(f"{self._where}: expected a file that ends with {', '.join(BUILDERS)}")
        return BUILDERS[suffix], {"data_files": files}

    def _chosen(self, found: Mapping[str, IterableDataset], split: str | None) -> IterableDataset:
        name = split or ("train" if "train" in found or len(found) != 1 else next(iter(found)))
        if name not in found:
            raise FuseError(
                f"split={shown(name)}: {self._where} has no such split; expected one of "
                f"{', '.join(found)}"
            )
        return found[name]

    def rows(self, column: str | None = None) -> Iterator[dict[str, Any]]:
        """Go through the rows, of which only one column is read."""
        stream = self._stream if column is None else self._stream.select_columns([column])
        with self._complaining():
            yield from stream

    def note(self) -> str | None:
        """Return one line about the files of a folder of pictures that are none of its rows."""
        if self._builder != "imagefolder" or self._has_splits:
            return None
        taken = set()
        for row in self.rows():
            taken |= {value["path"] for value in row.values() if _kind(value) == "picture"}
        return note_of_others(self.root, taken)

    def count(self) -> int | None:
        """Return how many rows there are; None where that takes reading them all."""
        splits = self._stream.info.splits or {}
        known = splits.get(str(self._stream.split))
        if known is not None and known.num_examples:
            return int(known.num_examples)
        return sum(1 for _ in self.rows()) if self._builder in COUNTED else None

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """Put what goes wrong with the data set within this context into one line."""
        try:
            yield
        except FuseError:
            raise
        except Exception as error:  # of any type: files are damaged in any way
            raise FuseError(
                f"{self._where}: could not be read ({type(error).__name__}: {first_line(error)})"
            ) from error


def _kind(value: Any) -> str | None:
    """Return what a value of a column is: a picture, a text or a vector; None for others."""
    if isinstance(value, Mapping):
        return "picture" if {"bytes", "path"} <= set(value) else None
    if isinstance(value, str):
        return "text"
    numbers = isinstance(value, Sequence) and not isinstance(value, bytes) and len(value)
    if numbers and all(isinstance(one, int | float) for one in value):
        return "vector"
    return None


def _column(first: Mapping[str, Any], column: str | None, kind: str | None, where: str) -> str:
    """Return the column that is meant, by the first row.

    Raises:
        FuseError: there is no such column, or several may be meant.
    """
    kinds = {name: _kind(value) for name, value in first.items()}
    if column is not None and kinds.get(column) is not None and kind in (None, kinds[column]):
        return column
    for wanted in [kind] if kind else KEYS:
        names = [name for name, one in kinds.items() if one == wanted]
        usual = [name for name in USUAL if name in names]
        if column is None and names and (len(names) == 1 or usual):
            return (usual or names)[0]
    known = ", ".join(f"{name} ({one or 'none of these'})" for name, one in kinds.items())
    raise FuseError(
        f"column={shown(column)}: {where} needs a column with pictures, texts or lists of numbers; "
        f"it has {known}"
    )


def _item(index: int, value: Any, root: Path, key: str) -> Item:
    """Return a row as an item."""
    name = numbered(index)
    if key == "target":
        return Item(name, {key: value}, {"row": index, "target": value})
    if key == "target_vector":
        return Item(name, {key: value or []}, {"row": index})
    path, content = (value or {}).get("path"), (value or {}).get("bytes")
    if content is None and path is not None:
        file = Path(path)
        known = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        return Item(name, {key: path}, {"file_name": known.as_posix(), "row": index})
    file_name = f"{name}{_suffix(path)}"
    return Item(name, {key: None}, {"file_name": file_name, "row": index}, content)


def _suffix(path: str | None) -> str:
    """Return the suffix of a picture's name where it is one that pictures have."""
    from fuse.images.formats import picture_suffixes

    suffix = PurePosixPath(path or "").suffix.lower()
    return suffix if suffix in picture_suffixes() else ".png"
