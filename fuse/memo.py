"""A memo that is bounded in bytes, whatever its entries hold."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_MEMO_BYTES = 1 << 23
"""About how much memory one memo takes."""
STEPS_BETWEEN_TRIMS = 50
"""After how many steps of a search the allocator is asked for what it holds in vain."""
ENTRY_BYTES = 200
"""About what an entry costs beside its key and value."""


def trim_heap() -> None:
    """Give free memory back to the system, where the C library is GNU's.

    It keeps what lies between the entries of memos, hundreds of megabytes after a thousand steps.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


class Memo(Generic[K, V]):
    """Remember values by their keys, the latest ones, within a number of bytes.

    Args:
        size: about how many bytes a key and its value take.
        max_bytes: how many all of them may take; what came first goes first.
    """

    def __init__(self, size: Callable[[K, V], int], max_bytes: int = MAX_MEMO_BYTES) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._size = size
        self._max_bytes = max_bytes
        self.num_bytes = 0
        """About how many bytes the entries take."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    def __setitem__(self, key: K, value: V) -> None:
        self.update([(key, value)])

    def update(self, entries: Iterable[tuple[K, V]]) -> None:
        """Remember values; the older ones of the same keys go."""
        for key, value in entries:
            if key in self._entries:
                self.num_bytes -= ENTRY_BYTES + self._size(key, self._entries[key])
            self.num_bytes += ENTRY_BYTES + self._size(key, value)
            self._entries[key] = value

    def get_all(self, keys: Sequence[K]) -> list[V]:
        """Return the values of keys that are remembered, and forget the oldest that do not fit.

        Raises:
            KeyError: one is not remembered.
        """
        found = [self._entries[key] for key in keys]
        self.trim()
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.num_bytes = 0

    def look_up(self, keys: Sequence[K], make: Callable[[list[K]], Sequence[V]]) -> list[V]:
        """Return the value of each key; `make` computes those of all new keys at once.

        Nothing is forgotten before the answer is complete, however many keys are asked for.
        """
        new = [key for key in dict.fromkeys(keys) if key not in self._entries]
        self.update(zip(new, make(new), strict=True))
        return self.get_all(keys)

    def trim(self) -> None:
        """Forget the oldest entries until the others fit."""
        while self.num_bytes > self._max_bytes and self._entries:
            key, value = self._entries.popitem(last=False)
            self.num_bytes -= ENTRY_BYTES + self._size(key, value)
