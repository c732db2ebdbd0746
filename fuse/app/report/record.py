"""Read what runs have left in their folders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fuse.app.hints import Config
from fuse.app.items import replaced
from fuse.app.run_folder import RESULT, Report, RunFolder, anchored, saved_config
from fuse.errors import FuseError
from fuse.types import Step

MOST_LEVELS = 8
"""How far above the folder of one picture that of its run is, at most."""


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it.

    Args:
        folder: where it is.
        result: the content of `result.json`.
        config: what was run, with this picture or text; None where it is not known.
    """

    folder: Path
    result: Report
    config: Config | None = None

    @property
    def item(self) -> dict[str, Any]:
        """What it was run for, as a line of the results of several begins; empty where alone."""
        return item_of(self.result)

    @cached_property
    def trace(self) -> list[Step]:
        """Its steps, read when they are asked for: an index of many runs asks for none."""
        return RunFolder(self.folder, []).steps()

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """Each term's loss, weight, text and ids."""
        return self.result["terms"]

    @property
    def weights(self) -> dict[str, float]:
        """Each term's weight."""
        return {name: term["weight"] for name, term in self.terms.items()}


def read_run(folder: Path) -> RunRecord:
    """Return the record of a run folder.

    Raises:
        FuseError: it holds no run that has found something.
    """
    result = RunFolder(folder, []).result()
    if result is None:
        raise FuseError(f"{folder}: holds no {RESULT}; give the folder of a run")
    if not isinstance(result.get("terms"), dict) or not isinstance(result.get("prompt"), str):
        raise FuseError(f"{folder}: its run has found nothing; give the folder of another one")
    config = config_of(folder)
    result = {**result, "image": anchored(result.get("image"), "image", folder)}
    if config is not None:
        found = {"image": result.get("image"), "target": item_of(result).get("target")}
        values = {key: value for key, value in found.items() if value is not None and key in config}
        config = replaced(config, config, values)
    return RunRecord(folder, result, config)


def item_of(result: Report) -> dict[str, Any]:
    """Return what a result is for, where it is one of several; older ones do not say."""
    item = result.get("item")
    return item if isinstance(item, dict) else {}


def config_of(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of a run: of its folder, or of the folder of pictures around it."""
    for level in [folder.absolute(), *folder.absolute().parents][:MOST_LEVELS]:
        config = saved_config(level)
        if config is not None:
            return config if {"primary", "secondary", "method"} <= set(config) else None
    return None


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of all runs in a folder, itself included, in the order of their names."""
    return sorted(path.parent for path in folder.rglob(RESULT) if path.is_file())
