"""Random local search: edits without any gradient, the baseline that every other method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.guide import Guide
from fuse.methods.base import require_choices, require_positive
from fuse.methods.edits import Edits, Site


@dataclass(frozen=True)
class Random(Edits):
    """A site takes a token from a ball around its present one.

    `search_ball` L0: any allowed token. L2: the `top_k` allowed tokens whose embeddings are the nearest to the present
    one's (to that of a neighbour, at an insertion).
    """

    search_ball: str = "L0"
    top_k: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "top_k")
        require_choices(self, "search_ball", ("L0", "L2"))

    def shortlist(self, state: None, sites: Sequence[Site], guide: Guide) -> tuple[None, Int[Tensor, "b k"]]:
        tokens = guide.allowed.nonzero().flatten()
        if self.search_ball == "L0":
            return state, tokens.expand(len(sites), -1)
        present = torch.tensor([self._present(site) for site in sites], device=tokens.device)
        distance = torch.cdist(guide.vocabulary.embedding[present].float(), guide.vocabulary.embedding[tokens].float())
        distance[present[:, None] == tokens] = torch.inf  # itself is no change
        return state, tokens[distance.topk(min(self.top_k, max(1, len(tokens) - 1)), largest=False).indices]

    def _present(self, site: Site) -> int:
        """The token around which a site's ball lies."""
        neighbour = site.position - 1 if site.position else 1
        return site.row[neighbour if site.move == "insert" else site.position]
