"""The prefix cache: token sequences that a causal model has read, and what others have in common
with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.nn.batch import CachedPrefixes, CacheHits
from fuse.text.template import Encoded
from fuse.types import Ids

ESTIMATE_WINDOW = 1
"""How many tokens behind the changed ones are read anew where a loss is estimated."""


@dataclass(frozen=True)
class CacheMatch:
    """What a sequence has in common with row `row` of the cache.

    The tokens before `start`, and those from `stop` up to `end`, which stand `shift` positions
    farther on than in the cache.
    """

    row: int
    start: int
    stop: int
    shift: int
    end: int

    @property
    def num_cached_tokens(self) -> int:
        """How many tokens they have in common."""
        return min(self.start, self.end) + max(0, self.end - max(self.stop, self.start))


NO_MATCH = CacheMatch(0, 0, 0, 0, 0)
"""Nothing in common."""


class PrefixCache:
    """Sequences of ids that others may go on from, and their keys and values, once these are
    computed.

    Args:
        rows: the sequences.
        prefix: what all of them begin with, if it is known; it is compared but once.
        parent: an older cache from which this one can be computed.
    """

    def __init__(
        self, rows: Sequence[Ids], prefix: Ids = (), parent: PrefixCache | None = None
    ) -> None:
        self.rows = list(rows)
        self.parent = parent
        self.prefixes: CachedPrefixes | None = None
        """None until the model has read the rows."""
        self._prefix = prefix if all(row[: len(prefix)] == prefix for row in rows) else ()
        self._width = max((len(row) - len(self._prefix) for row in self.rows), default=0)
        self._table = self._behind_prefix(self.rows, filler=-1)

    def __len__(self) -> int:
        return len(self.rows)

    def first_position(self, first: int | None) -> int:
        """Return the first position whose prediction the cache has to keep.

        It is `first`, or where that is None the last position of the shortest row.
        """
        return min(map(len, self.rows)) - 1 if first is None else max(first, 0)

    def match_prefix(self, rows: Sequence[Ids], limits: Sequence[int]) -> list[CacheMatch]:
        """Match each row with the cached one that shares the longest beginning, of at most
        `limits[i]` tokens.
        """
        if not self.rows or not rows:
            return [NO_MATCH] * len(rows)
        lengths, best = self._shared_beginnings(rows).max(1)
        lengths = torch.minimum(lengths, torch.tensor(limits))
        found = zip(best.tolist(), lengths.tolist(), strict=True)
        return [CacheMatch(row, length, length, 0, length) for row, length in found]

    def match_both_ends(self, rows: Sequence[Encoded]) -> list[CacheMatch]:
        """Match each row with the cached one that shares the most tokens at both ends.

        The rows are compared up to the end of the prompt. Its last token is never part of a match,
        nor are the `ESTIMATE_WINDOW` tokens behind those that differ.
        """
        prompts = [row.ids[: row.free[1]] for row in rows]
        beginnings = self._shared_beginnings(prompts)
        backward = PrefixCache([cached[::-1] for cached in self.rows])
        ends = backward._shared_beginnings([ids[::-1] for ids in prompts])
        # No token counts twice
        lengths = torch.tensor([len(ids) for ids in prompts])
        cached_lengths = torch.tensor([len(cached) for cached in self.rows])
        ends = torch.minimum(ends, torch.minimum(lengths[:, None], cached_lengths) - beginnings)
        best = (beginnings + ends).argmax(1)
        index = torch.arange(len(rows))
        starts, stops = beginnings[index, best], lengths - ends[index, best] + ESTIMATE_WINDOW
        numbers = torch.stack([best, starts, stops, lengths - cached_lengths[best], lengths - 1], 1)
        return [CacheMatch(*row) for row in numbers.tolist()]

    def holds(self, rows: Sequence[Ids]) -> bool:
        """Whether each row is the beginning of a cached one."""
        lengths = [len(row) for row in rows]
        return [match.end for match in self.match_prefix(rows, lengths)] == lengths

    def _behind_prefix(self, rows: Sequence[Ids], filler: int) -> Int[Tensor, "n w"]:
        """Return what stands behind the prefix, as wide as the longest cached row."""
        tails = [row[len(self._prefix) :][: self._width] for row in rows]
        filled = [[*tail, *[filler] * (self._width - len(tail))] for tail in tails]
        return torch.tensor(filled, dtype=torch.long).reshape(len(rows), self._width)

    def _shared_beginnings(self, rows: Sequence[Ids]) -> Int[Tensor, "n r"]:
        """Return with how many equal tokens each row and each cached one begin."""
        # [n 1 w] == [r w] -> [n r w]
        equal = self._behind_prefix(rows, filler=-2)[:, None] == self._table
        length = len(self._prefix)
        begun = torch.tensor([row[:length] == self._prefix for row in rows])
        return torch.where(begun[:, None], length + equal.cumprod(-1).sum(-1), 0)


def cache_hits(
    prefixes: CachedPrefixes,
    matches: Sequence[CacheMatch],
    width: int,
    device: torch.device,
    *,
    packed: bool = True,
    approximate: bool = False,
) -> CacheHits:
    """Return what rows with these matches take from the cache, in a batch `width` tokens wide."""
    position = torch.arange(width)
    numbers = torch.tensor([(m.start, m.stop, m.shift, m.end) for m in matches])
    start, stop, shift, end = numbers[..., None].unbind(1)
    cached = torch.where(position >= stop, position - shift, -1)
    cached = torch.where(position < start, position, cached)
    cached = torch.where(position < end, cached, -1)
    row = torch.tensor([match.row for match in matches])
    return CacheHits(prefixes, row.to(device), cached.to(device), approximate, packed)
