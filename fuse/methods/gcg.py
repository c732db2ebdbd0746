"""GCG (arXiv 2307.15043, algorithm 1): swap tokens for others that the gradient favours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fuse.errors import FuseError
from fuse.methods.base import Method, as_candidates, first_valid
from fuse.objective import Guide
from fuse.types import Candidates, Ids


@dataclass(frozen=True)
class GCG(Method):
    """Swaps `n_replace` tokens of a row at a time.

    At each position the `top_k` allowed tokens of the most negative gradient are shortlisted; a candidate takes a row of
    the beam in turn, positions without repetition and a shortlisted token for each, all drawn uniformly.
    """

    search_width: int = 128
    top_k: int = 64
    n_replace: int = 1
    prompt_length: int = 8
    buffer_size: int = 1
    steps: int = 100

    def __post_init__(self) -> None:
        for name in ("search_width", "top_k", "n_replace", "prompt_length"):
            if getattr(self, name) < 1:
                raise FuseError(f"method.{name}={getattr(self, name)}: expected at least 1")

    def propose(self, state: None, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[None, Candidates]:
        places = [(row, position) for row in beam for position in range(len(row))]
        gradient = guide.token_gradient([row for row, _ in places], [position for _, position in places])
        gradient = gradient.masked_fill(~guide.allowed, torch.inf)
        shortlist = (-gradient).topk(min(self.top_k, int(guide.allowed.sum()))).indices.cpu()
        first_place = [sum(len(row) for row in beam[:parent]) for parent in range(len(beam))]

        proposals = []
        for i in range(2 * self.search_width):
            parent = i % len(beam)
            row = list(beam[parent])
            swapped = torch.randperm(len(row), generator=generator)[: self.n_replace].tolist()
            for position in swapped:
                choice = int(torch.randint(shortlist.shape[1], (1,), generator=generator))
                row[position] = int(shortlist[first_place[parent] + position, choice])
            proposals.append((parent, min(swapped), tuple(row)))
        return None, as_candidates(first_valid(proposals, guide, self.search_width))
