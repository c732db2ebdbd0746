"""GCG (arXiv 2307.15043, algorithm 1): swap tokens for others that the gradient favours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fuse.methods.base import Method, as_candidates, first_valid, require_positive
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
        require_positive(self, "search_width", "top_k", "n_replace", "prompt_length")

    def propose(self, state: None, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[None, Candidates]:
        places = [(parent, position) for parent, row in enumerate(beam) for position in range(len(row))]
        gradient = guide.token_gradient([beam[parent] for parent, _ in places], [position for _, position in places])
        gradient = gradient.masked_fill(~guide.allowed, torch.inf)
        shortlist = (-gradient).topk(min(self.top_k, int(guide.allowed.sum()))).indices.cpu()
        line_of = {place: line for line, place in enumerate(places)}

        proposals = []
        for i in range(2 * self.search_width):
            parent = i % len(beam)
            row = list(beam[parent])
            swapped = torch.randperm(len(row), generator=generator)[: self.n_replace].tolist()
            for position in swapped:
                choice = int(torch.randint(shortlist.shape[1], (1,), generator=generator))
                row[position] = int(shortlist[line_of[parent, position], choice])
            proposals.append((parent, min(swapped), tuple(row)))
        return None, as_candidates(first_valid(proposals, guide, self.search_width))
