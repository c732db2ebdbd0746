"""Rows that a model has read, and what others have in common with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.types import Ids, Trunk
from fuse.vocabulary import Encoded

WINDOW = 1
"""How many tokens behind the changed ones are read anew where a loss is estimated."""


@dataclass(frozen=True)
class Overlap:
    """What a row and a root have in common: the tokens before `start`, and those from `stop` up to `end`.

    The latter stand `shift` places farther on than in the root.
    """

    root: int
    start: int
    stop: int
    shift: int
    end: int

    @property
    def length(self) -> int:
        """How many tokens they have in common."""
        return max(0, self.end - max(0, self.stop - self.start))


class Roots:
    """Rows of ids that others may go on from, and the trunk that the model made of them, once it has.

    Where all rows begin with `prefix`, it is looked at but once.
    """

    def __init__(self, rows: Sequence[Ids], prefix: Ids = (), before: Roots | None = None) -> None:
        self.rows = list(rows)
        self.before = before
        self.trunk: Trunk | None = None
        self._prefix = prefix if all(row[: len(prefix)] == prefix for row in rows) else ()
        self._width = max((len(row) - len(self._prefix) for row in self.rows), default=0)
        self._table = self._tails(self.rows, filler=-1)

    def _tails(self, rows: Sequence[Ids], filler: int) -> Int[Tensor, "n w"]:
        """What stands behind the prefix, as wide as the longest root."""
        tails = [row[len(self._prefix) :][: self._width] for row in rows]
        filled = [[*tail, *[filler] * (self._width - len(tail))] for tail in tails]
        return torch.tensor(filled, dtype=torch.long).reshape(len(rows), self._width)

    def _heads(self, rows: Sequence[Ids]) -> Int[Tensor, "n r"]:
        """How many tokens each row begins with as each root does."""
        alike = (self._tails(rows, filler=-2)[:, None] == self._table).cumprod(-1).sum(-1)
        skipped = len(self._prefix)
        begun = torch.tensor([row[:skipped] == self._prefix for row in rows])
        return torch.where(begun[:, None], skipped + alike, 0)

    def shared(self, rows: Sequence[Ids], limits: Sequence[int]) -> tuple[list[int], list[int]]:
        """For each row the root that it shares the longest beginning with, of at most `limits[i]` tokens, and its length."""
        if not self.rows or not rows:
            return [0] * len(rows), [0] * len(rows)
        longest, line = self._heads(rows).max(1)
        return line.tolist(), torch.minimum(longest, torch.tensor(limits)).tolist()

    def hold(self, rows: Sequence[Ids]) -> bool:
        """Whether each row is the beginning of a root."""
        lengths = [len(row) for row in rows]
        return self.shared(rows, lengths)[1] == lengths

    def beginnings(self, rows: Sequence[Ids], limits: Sequence[int]) -> list[Overlap]:
        """What each row begins with as a root does, at most `limits[i]` tokens."""
        return [Overlap(root, length, length, 0, length) for root, length in zip(*self.shared(rows, limits), strict=True)]

    def overlaps(self, rows: Sequence[Encoded]) -> list[Overlap]:
        """What the prompt of each row, with what stands before, has in common with the root that it begins and ends most like.

        Left out are the `WINDOW` tokens behind those that differ, and the prompt's last one.
        """
        prompts = [row.ids[: row.free[1]] for row in rows]
        heads = self._heads(prompts)
        tails = Roots([root[::-1] for root in self.rows])._heads([ids[::-1] for ids in prompts])
        # No token counts twice
        lengths, own = torch.tensor([len(ids) for ids in prompts]), torch.tensor([len(root) for root in self.rows])
        tails = torch.minimum(tails, torch.minimum(lengths[:, None], own) - heads)
        root = (heads + tails).argmax(1)
        line = torch.arange(len(rows))
        starts, stops, shifts = heads[line, root], lengths - tails[line, root] + WINDOW, lengths - own[root]
        found = zip(root.tolist(), starts.tolist(), stops.tolist(), shifts.tolist(), (lengths - 1).tolist(), strict=True)
        return [Overlap(*numbers) for numbers in found]


def known_places(overlaps: Sequence[Overlap], width: int) -> Int[Tensor, "b t"]:
    """`Branch.known` of rows with these overlaps, as wide as their batch."""
    place = torch.arange(width)
    numbers = torch.tensor([(overlap.start, overlap.stop, overlap.shift, overlap.end) for overlap in overlaps])
    start, stop, shift, end = numbers[..., None].unbind(1)
    found = torch.where(place < start, place, torch.where(place >= stop, place - shift, -1))
    return torch.where(place < end, found, -1)
