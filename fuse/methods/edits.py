"""What methods of local edits share: candidates that differ from a row of the beam by swaps, an insertion or a deletion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.guide import Guide
from fuse.methods.base import Method, first_valid, require_choices, require_not_negative, require_positive
from fuse.types import Ids

MOVES = ("swap", "insert", "delete")
GAPS = 4
"""How many gaps of a row are open to an insertion in one step: each costs a row of its own where a gradient is taken."""


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
    are drawn uniformly. A subclass makes the shortlists. Where there are pools, swaps and insertions are taken from the
    shortlists and from each pool in turn.
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

    def pools(self, sites: Sequence[Site], guide: Guide) -> list[list[list[Ids]]]:
        """Whole candidates that models with other tokens propose: pools of them, in each a list for every site."""
        return []

    def propose(self, state: Any, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[Any, list[Ids] | None]:
        if not beam:
            return state, None
        sites = [site for parent, row in enumerate(beam) for site in self._sites(parent, row, guide, generator)]
        state, shortlist = self.shortlist(state, sites, guide) if sites else (state, torch.zeros(0, 1, dtype=torch.long))
        shortlist, pools = shortlist.cpu(), self.pools(sites, guide) if sites else []
        lines: dict[tuple[int, str], list[int]] = {(parent, move): [] for parent in range(len(beam)) for move in self.moves}
        for i, site in enumerate(sites):
            lines[site.parent, site.move].append(i)

        def draw(count: int) -> int:
            return int(torch.randint(count, (1,), generator=generator))

        def token(line: int) -> int:
            return int(shortlist[line, draw(shortlist.shape[1])])

        proposals = []
        for i in range(2 * self.search_width):
            parent = i % len(beam)
            row = list(beam[parent])
            moves = [move for move in self.moves if lines[parent, move] or (move == "delete" and len(row) > 1)]
            if not moves:
                continue
            move = moves[draw(len(moves))]
            places = lines[parent, move]
            pool = i // len(beam) % (1 + len(pools))
            if pool and move != "delete":
                offered = pools[pool - 1][places[draw(len(places))]]
                if offered:
                    proposals.append(offered[draw(len(offered))])
                continue
            if move == "swap":
                for j in torch.randperm(len(places), generator=generator)[: self.n_replace].tolist():
                    row[sites[places[j]].position] = token(places[j])
            elif move == "insert":
                line = places[draw(len(places))]
                row.insert(sites[line].position, token(line))
            else:
                del row[draw(len(row))]
            proposals.append(tuple(row))
        return state, first_valid(proposals, guide, self.search_width)

    def _sites(self, parent: int, row: Ids, guide: Guide, generator: torch.Generator) -> list[Site]:
        """Where a row takes a token."""
        swaps = [Site(parent, "swap", p, row) for p in range(len(row)) if "swap" in self.moves]
        if "insert" not in self.moves or len(row) >= guide.longest:
            return swaps
        # A token is inserted between words, never inside one
        gaps = [p for p in range(len(row) + 1) if p == len(row) or bool(guide.begins_word[row[p]])]
        tried = sorted(gaps[i] for i in torch.randperm(len(gaps), generator=generator)[:GAPS].tolist())
        return swaps + [Site(parent, "insert", p, (*row[:p], guide.filler, *row[p:])) for p in tried]
