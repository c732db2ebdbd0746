"""All files of results of a run.

They are made from the `result.json` of the items' folders, which alone are the truth: whole, in the
order of the input, and renamed into place. So each is valid at every moment, and holds also what a
killed run or another process has left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from fuse.app.formats import sidecar
from fuse.app.formats.done import Done
from fuse.app.hints import Config
from fuse.app.items import Items
from fuse.app.run_folder import RESULT, RunFolder, waiting_lock
from fuse.registry import FORMATS

WRITE_SHARE = 20
"""For how many times as long as writing the files takes they are not written again."""


class ResultFiles:
    """The files of one run.

    Args:
        folder: of the run.
        items: what it goes through.
        config: its configuration, with `formats` and `sidecar`.
    """

    def __init__(self, folder: RunFolder, items: Items, config: Config) -> None:
        self._folder = folder
        self._items = items
        self._formats = [FORMATS[name] for name in config["formats"]]
        if config["sidecar"]:
            self._formats.append(partial(sidecar.write, replace=config["sidecar"] == "overwrite"))
        self._due = 0.0
        """When the files may be written again, by `time.monotonic`."""

    def update(self) -> None:
        """Write all files, if the last time is long enough ago."""
        if time.monotonic() >= self._due:
            began = time.monotonic()
            self.write()
            self._due = time.monotonic() + WRITE_SHARE * (time.monotonic() - began)

    def write(self) -> None:
        """Write all files; of several processes one at a time."""
        with waiting_lock(self._folder.path, ".results"):
            for write in self._formats:
                write(self._done(), self._folder)

    def _done(self) -> Iterator[Done]:
        """Go through the items that are done."""
        names = [path.parent.name for path in self._folder.path.glob(f"*/{RESULT}")]
        for name in self._items.in_order(names):
            own = RunFolder(self._folder.path / name, [])
            done = Done.of(own.path, own.result() or {})
            if done is not None:
                yield done
