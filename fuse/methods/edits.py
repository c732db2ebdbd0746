"""What methods of local edits share: candidates that differ from a row of the beam by swaps, an insertion or a deletion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.methods.base import Method, as_candidates, first_valid, require_choices, require_not_negative, require_positive
from fuse.objective import Guide
from fuse.types import Candidates, Ids

MOVES = ("swap", "insert", "delete")


@dataclass(frozen=True)
class Site:
    """A place of one row where a token can be put: in the place of another one, or before it."""

    parent: int
    move: str
    position: int
    row: Ids
    """The row with a token to be replaced at `position`: the parent itself, or the parent with a filler put in."""


@dataclass(frozen=True)
class Edits(Method):
    """Swaps `n_replace` tokens at once, inserts one, or deletes one, as `moves` allows.

    A candidate takes a row of the beam in turn; the move, the positions and the tokens, from the shortlist of each site,
    are drawn uniformly. A subclass makes the shortlists.
    """

    search_width: int = 128
    n_replace: int = 1
    moves: Sequence[str] = MOVES
    prompt_length: int = 8
    buffer_size: int = 1
    steps: int = 100

    def __post_init__(self) -> None:
        require_positive(self, "search_width", "n_replace", "prompt_length")
        require_not_negative(self, "buffer_size")
        require_choices(self, "moves", MOVES)

    @abstractmethod
    def shortlist(self, state: Any, sites: Sequence[Site], guide: Guide) -> tuple[Any, Int[Tensor, "b k"]]:
        """The next state, and for each site the tokens that may be put there."""

    def propose(self, state: Any, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[Any, Candidates | None]:
        if not beam:
            return state, None
        sites = [site for parent, row in enumerate(beam) for site in self._sites(parent, row, guide)]
        line_of = {(site.parent, site.move, site.position): line for line, site in enumerate(sites)}
        state, shortlist = self.shortlist(state, sites, guide) if sites else (state, torch.zeros(0, 1, dtype=torch.long))
        shortlist = shortlist.cpu()

        def draw(count: int) -> int:
            return int(torch.randint(count, (1,), generator=generator))

        def token(parent: int, move: str, position: int) -> int:
            return int(shortlist[line_of[parent, move, position], draw(shortlist.shape[1])])

        proposals = []
        for i in range(2 * self.search_width):
            parent = i % len(beam)
            row = list(beam[parent])
            moves = self._possible(beam[parent], guide)
            if not moves:
                continue
            move = moves[draw(len(moves))]
            if move == "swap":
                positions = torch.randperm(len(row), generator=generator)[: self.n_replace].tolist()
                for position in positions:
                    row[position] = token(parent, move, position)
                first = min(positions)
            elif move == "insert":
                first = draw(len(row) + 1)
                row.insert(first, token(parent, move, first))
            else:
                first = draw(len(row))
                del row[first]
            proposals.append((parent, first, tuple(row)))
        return state, as_candidates(first_valid(proposals, guide, self.search_width))

    def _possible(self, row: Ids, guide: Guide) -> list[str]:
        """The moves that a row allows."""
        impossible = {"insert": len(row) >= guide.longest, "delete": len(row) < 2}
        return [move for move in self.moves if not impossible.get(move, False)]

    def _sites(self, parent: int, row: Ids, guide: Guide) -> list[Site]:
        """Where a row takes a token."""
        moves = self._possible(row, guide)
        swaps = [Site(parent, "swap", p, row) for p in range(len(row)) if "swap" in moves]
        filled = [(*row[:p], guide.filler, *row[p:]) for p in range(len(row) + 1) if "insert" in moves]
        return swaps + [Site(parent, "insert", p, with_filler) for p, with_filler in enumerate(filled)]
