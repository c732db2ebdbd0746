"""The share of a run that is this process's, of several that `accelerate launch` or torchrun began.

They do not wait for each other: each searches for its own groups of items, and the files of results
are made from what all have left. So a process that is lost costs its share alone, which the same
command finishes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fuse.app.run_folder import claim

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One process of several.

    Args:
        rank: which one it is, from 0.
        num: how many they are.
    """

    rank: int = 0
    num: int = 1

    @staticmethod
    def of_process() -> Shard:
        """Return what the environment says, as PyTorch's launchers set it."""
        rank, num = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if rank.isdecimal() and num.isdecimal() and int(rank) < int(num):
            return Shard(int(rank), int(num))
        return Shard()

    def own(self, groups: Iterable[T]) -> Iterator[T]:
        """Go through those groups that are this process's: the same for any number of processes
        as far as what is in a group.
        """
        for index, group in enumerate(groups):
            if index % self.num == self.rank:
                yield group

    def own_number(self, num: int | None, size: int) -> int | None:
        """Return how many of so many items are in the groups of this process."""
        if num is None:
            return None
        starts = range(self.rank * size, num, self.num * size)
        return sum(min(size, num - start) for start in starts)

    def begin(self, folder: Path) -> None:
        """Say that this process is at work."""
        with suppress(OSError):  # only of several processes there is one
            self._mark(folder).unlink(missing_ok=True)

    def finish(self, folder: Path) -> bool:
        """Say that this process has finished, and return whether it is the last one."""
        if self.num == 1:
            return True
        with suppress(OSError):
            self._mark(folder).touch()
        return all(Shard(rank, self.num)._mark(folder).exists() for rank in range(self.num))

    def _mark(self, folder: Path) -> Path:
        return folder / f".finished-{self.rank}-of-{self.num}"


def new_folder(path: str) -> str:
    """Make a new folder, as `claim` does, which is the same for all processes."""
    shard = Shard.of_process()
    return claim(path) if shard.num == 1 else _agreed(path, lambda: claim(path), shard)


@cache
def folder_of_run(path: str) -> str:
    """Return the folder that was made for a path, once in a process; the resolver `new_folder`."""
    return new_folder(path)


def _agreed(key: str, make: Callable[[], str], shard: Shard) -> str:
    """Return what the first process has made, to all; through PyTorch's store of keys."""
    store, kind = _store(), key.partition("/")[0]
    if shard.rank == 0:
        store.set(kind, make())
    return str(store.get(kind).decode())


@cache
def _store() -> Any:
    """Return the store that the launcher speaks of, which lives as long as the process."""
    from torch.distributed import rendezvous

    return next(iter(rendezvous("env://")))[0]


def own_gpu(count: int) -> str:
    """Return the GPU that is this process's, of so many."""
    rank = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{int(rank) % count}" if rank.isdecimal() else "cuda"
