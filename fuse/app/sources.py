"""Where the items of a run come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuse.app.hints import Config
from fuse.app.items import ALONE, Items
from fuse.app.pictures import picture_items
from fuse.errors import FuseError
from fuse.options import shown

SEVERAL = ("data", "targets", "target_vector")
"""Options that stand for several items each; beside them, `image` does."""


def items_of(config: Config) -> Items:
    """Return what a checked configuration is to be run for.

    Raises:
        FuseError: it cannot be read, speaks of several things at once, or of what no model reads.
    """
    given = [name for name in SEVERAL if config[name] is not None]
    if len(given) > 1:
        names = " and ".join(f"{name}={shown(config[name])}" for name in given)
        raise FuseError(f"{names}: each says what to go through; give one of them")
    if not given:
        return picture_items(config["image"], config["nested"])
    items = _of(given[0], config)
    first = ALONE if items is ALONE else next(iter(items.each()), None)
    if first is None:
        raise FuseError(f"{given[0]}={shown(config[given[0]])}: holds nothing to search for")
    keys = ["target_vector"] if isinstance(first, Items) else list(first.values)
    for key in keys:
        if not _is_read(config, key):
            raise FuseError(
                f"{given[0]}={shown(config[given[0]])}: no model of this run reads {key} from the "
                "top; choose one that does, such as experiment=sentence for texts"
            )
    return items


def _of(name: str, config: Config) -> Items:
    """Return what one option stands for."""
    value, column = config[name], config["column"]
    if name == "target_vector":
        from fuse.app.vector_rows import vector_items

        return vector_items(value, column) or ALONE
    from fuse.app.rows import BUILDERS, row_items
    from fuse.app.texts import line_items

    if name == "data":
        return row_items(value, config["split"], column)
    if Path(value).suffix.lower() in BUILDERS and not value.endswith(".txt"):
        return row_items(value, config["split"], column, "text", "targets")
    return line_items(value)


def _is_read(config: Config, key: str) -> bool:
    """Whether a model has at a key what stands at the top."""
    entries: list[Any] = [config["primary"], *config["secondary"].values()]
    if "caption" in (config["method"]["name"], config["init"]) and key == "image":
        return True
    return any(key in entry and entry[key] == config[key] for entry in entries)
