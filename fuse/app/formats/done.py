"""An item that is done, as the files of results tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """An item that is done.

    Args:
        name: its own, and that of its folder.
        folder: where its result is.
        row: what it is, the `text` that was found, and the losses.
        picture: the file that was looked at; None where it is no picture.
    """

    name: str
    folder: Path
    row: Row
    picture: Path | None

    @staticmethod
    def of(folder: Path, report: Mapping[str, Any]) -> Done | None:
        """Return an item by its folder and the content of its `result.json`; None if it is not
        done.
        """
        if report.get("status") != "done" or "item" not in report:
            return None
        losses = {f"loss_{name}": term["loss"] for name, term in report["terms"].items()}
        row = {**report["item"], "text": report["prompt"], "loss": report["loss"], **losses}
        picture = Path(report["image"]) if "file_name" in row else None
        unicode = {key: _as_unicode(value) for key, value in row.items()}
        return Done(folder.name, folder, unicode, picture)


def _as_unicode(value: Any) -> Any:
    """Return a text that every reader of JSON takes: the bytes of a name that are no Unicode are
    shown as `\\xff`.
    """
    if not isinstance(value, str):
        return value
    try:
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half of a pair, which stands for no byte
        return value.encode(errors="backslashreplace").decode()
