"""What a run of several searches goes through: pictures, texts, vectors, rows of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from fuse.app.hints import Config
from fuse.app.run_folder import RunFolder


@dataclass(frozen=True)
class Item:
    """One of the things that a prompt is searched for.

    Args:
        name: of its folder in the run's; "" where the run is for it alone.
        values: of `image`, `target` or `target_vector`: what stands there for this item.
        row: how its line in the results begins.
        content: the bytes of a picture that has no file yet; it is kept in the item's folder under
            `row["file_name"]`.
    """

    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None

    def configured(self, config: Config, folder: RunFolder) -> dict[str, Any]:
        """Return the configuration of this item's search.

        Args:
            folder: the item's own.
        """
        values = dict(self.values)
        if self.content is not None:
            name = self.row["file_name"]
            values["image"] = str(folder.path / name)
            if not (folder.path / name).is_file():
                folder.write(name, self.content)
        return {**replaced(config, config, values), "item": dict(self.row)}


@dataclass(frozen=True)
class Items:
    """Things to search for, in the order of the input.

    Args:
        each: goes through them, each time from the beginning.
        num: how many they are; None where that is not known before the end.
        names: the names of all; None for numbers, whose order is that of the input.
        note: one line about what was skipped.
    """

    each: Callable[[], Iterable[Item]]
    num: int | None = None
    names: tuple[str, ...] | None = None
    note: str | None = None

    def groups(self, size: int) -> Iterator[list[Item]]:
        """Go through the items, so many at a time."""
        items = iter(self.each())
        while group := list(islice(items, size)):
            yield group

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return those names that are names of items, in the order of the input."""
        if self.names is None:
            return sorted(name for name in names if name.isdecimal())
        known = set(names)
        return [name for name in self.names if name in known]


ALONE = Items(lambda: [Item()], 1, ("",))
"""The one item of a run that is no run of several."""


def numbered(index: int) -> str:
    """Return the name of an item that has none of its own."""
    return f"{index:08d}"


def replaced(config: Any, above: Config, values: Mapping[str, Any]) -> Any:
    """Return a configuration with other values wherever it has what stands at its top.

    Args:
        config: the whole, or a part of it.
        above: the whole.
    """
    if not isinstance(config, Mapping):
        return config
    found = {}
    for key, value in config.items():
        if key in values and value == above[key]:
            found[key] = values[key]
        else:
            found[key] = replaced(value, above, values)
    return found
