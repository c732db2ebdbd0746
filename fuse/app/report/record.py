"""Read what runs have left in their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.app.hints import Config
from fuse.app.pictures import with_image
from fuse.app.run_folder import RESULT, Report, RunFolder, saved_config
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
        trace: its steps.
        config: what was run, with this picture; None where it is not known.
    """

    folder: Path
    result: Report
    trace: Sequence[Step] = ()
    config: Config | None = None

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
    own = RunFolder(folder, [])
    result = own.result()
    if result is None:
        raise FuseError(f"{folder}: holds no {RESULT}; give the folder of a run")
    if not isinstance(result.get("terms"), dict) or not isinstance(result.get("prompt"), str):
        raise FuseError(f"{folder}: its run has found nothing; give the folder of another one")
    config = config_of(folder)
    if config is not None and isinstance(result.get("image"), str):
        config = with_image(config, config.get("image"), result["image"])
    return RunRecord(folder, result, own.steps(), config)


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
