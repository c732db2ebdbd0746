"""All that a search knows between two steps, as one value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from fuse.memo import ENTRY_BYTES, MAX_MEMO_BYTES
from fuse.text.vocabulary import ID_BYTES
from fuse.types import Entry, Ids, Step


class ScoredLog(Mapping[Ids, tuple[float, ...]]):
    """Each term's loss of everything that a search has scored, in the order in which it was scored.

    It is a value: `extended` returns another one, which shares the entries of this one. Above a
    number of bytes the next one is empty again, and what it held is scored anew where it is
    proposed once more.
    """

    def __init__(self) -> None:
        self._entries: dict[Ids, tuple[int, tuple[float, ...]]] = {}
        """Each sequence with its number and its losses; entries beyond `_length` belong to later
        logs alone.
        """
        self._length = 0
        self._num_bytes = 0

    def extended(self, rows: Sequence[Ids], losses: Sequence[tuple[float, ...]]) -> ScoredLog:
        """Return a log that holds these sequences too."""
        log = ScoredLog()
        if self._num_bytes <= MAX_MEMO_BYTES:
            log._entries, log._length, log._num_bytes = self._entries, self._length, self._num_bytes
            if len(self._entries) > self._length:  # another log has gone on from here
                log._entries = {row: e for row, e in self._entries.items() if e[0] < self._length}
        for row, values in zip(rows, losses, strict=True):
            log._entries[row] = log._length, values
            log._length += 1
            log._num_bytes += ENTRY_BYTES + ID_BYTES * (len(row) + len(values))
        return log

    def __contains__(self, row: object) -> bool:
        entry = self._entries.get(row)  # type: ignore[call-overload]
        return entry is not None and entry[0] < self._length

    def __getitem__(self, row: Ids) -> tuple[float, ...]:
        if row not in self:
            raise KeyError(row)
        return self._entries[row][1]

    def known(self, rows: Sequence[Ids]) -> dict[Ids, tuple[float, ...]]:
        """Return the losses of those of the rows that were scored."""
        found = {}
        for row in rows:
            entry = self._entries.get(row)
            if entry is not None and entry[0] < self._length:
                found[row] = entry[1]
        return found

    def __iter__(self) -> Iterator[Ids]:
        return (row for row, (number, _) in self._entries.items() if number < self._length)

    def __len__(self) -> int:
        return self._length

    def tensors(self) -> dict[str, Tensor]:
        """Return the log as tensors: all ids one after another, the lengths of the rows, and the
        losses.
        """
        rows = list(self)
        flat = list(chain.from_iterable(rows))
        return {
            "ids": torch.tensor(flat, dtype=torch.int32),
            "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32),
            "losses": torch.tensor([self[row] for row in rows], dtype=torch.float32),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> ScoredLog:
        """Return the log whose `tensors` these are."""
        rows = [tuple(row.tolist()) for row in tensors["ids"].split(tensors["lengths"].tolist())]
        losses = [tuple(values) for values in tensors["losses"].tolist()]
        return ScoredLog().extended(rows if losses else [], losses)


@dataclass(frozen=True)
class SearchState:
    """Everything that the next step depends on, beside the objective and the search's options.

    A search that goes on from it, here or in another process, does what an uninterrupted one does.
    """

    rng: UInt8[Tensor, " _"]
    """The state of the generator."""
    stage: int = 0
    """Which method is at work: 0 the first, 1 the one that refines."""
    proposed: int = 0
    """How often a method has proposed, over all stages."""
    stage_proposed: int = 0
    """How often the present one has."""
    step: int = 0
    """How many steps are in the trace: those in which a candidate counted."""
    method: Any = None
    """The method's own state."""
    strategy: Any = None
    """The strategy's own state."""
    beam: tuple[Ids, ...] = ()
    """What is expanded next."""
    best: Entry | None = None
    initial_loss: float | None = None
    evaluations: int = 0
    """How many different candidates were scored."""
    num_non_finite: int = 0
    """How many candidates were dropped because a loss or a gradient was not finite."""
    operations: int = 0
    """How many operations the models have made for the search, as `OperationCounter` counts; what
    `stop_at_label` asks is left out.
    """
    seconds: float = 0.0
    found: tuple[Ids, ...] = ()
    """What methods collected whose stages are over."""
    front: tuple[Entry, ...] = ()
    """The Pareto front of the latest strategy that kept one and whose stage is over."""
    scored: ScoredLog = field(default_factory=ScoredLog, repr=False)
    trouble: str = ""
    """Why no candidate of the latest step counted; empty where some did."""
    last: Step | None = None
    """The record of the latest step in the trace."""
    ended: str = ""
    """Why the search is over; empty while it goes on."""
