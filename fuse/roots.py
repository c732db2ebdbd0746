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
class Gap:
    """What is read anew of a row, where its loss is estimated by what is known of a root that few tokens set it apart from.

    That is the changed tokens and `WINDOW` more, from `start` up to `stop`, and all from `last` on, the last of the prompt.
    Between these the same tokens stand, `shift` places farther on than in the root.
    """

    root: int
    start: int
    stop: int
    shift: int
    last: int

    @property
    def left(self) -> int:
        """How many tokens are not read anew."""
        return max(0, self.last - max(0, self.stop - self.start))


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

    def gaps(self, rows: Sequence[Encoded]) -> list[Gap]:
        """The gap of each row to the root that its prompt, with what stands before, begins and ends most like."""
        prompts = [row.ids[: row.free[1]] for row in rows]
        heads = self._heads(prompts)
        tails = Roots([root[::-1] for root in self.rows])._heads([ids[::-1] for ids in prompts])
        # No token counts twice
        lengths, own = torch.tensor([len(ids) for ids in prompts]), torch.tensor([len(root) for root in self.rows])
        tails = torch.minimum(tails, torch.minimum(lengths[:, None], own) - heads)
        root = (heads + tails).argmax(1)
        line = torch.arange(len(rows))
        starts, stops, shifts = heads[line, root], lengths - tails[line, root] + WINDOW, lengths - own[root]
        known = zip(root.tolist(), starts.tolist(), stops.tolist(), shifts.tolist(), (lengths - 1).tolist(), strict=True)
        return [Gap(*numbers) for numbers in known]


def stale(gaps: Sequence[Gap], width: int) -> Int[Tensor, "b t"]:
    """`Branch.stale` of rows with these gaps, as wide as their batch."""
    place = torch.arange(width)
    start, stop, shift, last = torch.tensor([(gap.start, gap.stop, gap.shift, gap.last) for gap in gaps])[..., None].unbind(1)
    known = torch.where(place < start, place, torch.where(place >= stop, place - shift, -1))
    return torch.where(place < last, known, -1)
