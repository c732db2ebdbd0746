"""Types of options that stand for texts, paths and vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen

from fuse.options import Number, Whole, Words

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Verbatim:
    """Mark a text that is taken from the command line exactly as it is typed.

    Args:
        or_null: whether an unquoted null is no text, but none.
    """

    or_null: bool = False


Text = Annotated[str, Verbatim()]
Path = Annotated[str, MinLen(1), Verbatim(or_null=True), Words("a path")]
ModelId = Annotated[str, MinLen(1), Verbatim(or_null=True), Words("a hub id or a local folder")]
Pictures = Annotated[Path | list[Path] | None, Words("a picture, a folder, a list, or null")]
Vector = Annotated[
    Path | list[Number | Path] | None,
    Words("a .npy, .safetensors, .parquet or .json file, a list of numbers, or null"),
]
Wanted = Annotated[
    Text | Whole | Number | None, Words("a class's name or number, a rating such as 0.9, or null")
]
