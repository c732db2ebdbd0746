"""Random local search: edits without any gradient, the baseline that every other method has to
beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count
from fuse.search.methods.edits import Edits, Shortlists, Site


@dataclass(frozen=True)
class Random(Edits):
    """Edit without any gradient: take a token from a ball around a site's present one.

    `search_ball` L0: any allowed token. L2: the `top_k` allowed tokens whose embeddings are the
    nearest to the present one's (to that of a neighbour, at an insertion).
    """

    search_ball: Annotated[
        Literal["L0", "L2"], Doc("L0: any token; L2: near ones in the embedding table")
    ] = "L0"
    top_k: Annotated[Count, Doc("how many are near")] = 64

    def widened(self, factor: int, guide: Guide) -> Random:
        if self.search_ball == "L0":
            return self
        return replace(self, top_k=min(factor * self.top_k, len(guide.allowed_tokens)))

    def shortlist(self, state: Any, sites: Sequence[Site], guide: Guide) -> Shortlists:
        tokens = guide.allowed_tokens
        rows, positions = [site.row for site in sites], [site.position for site in sites]
        pools = guide.word_proposals(rows, positions)
        if self.search_ball == "L0":
            return Shortlists(sites, tokens.expand(len(sites), -1), pools=pools)
        present = torch.tensor([_present(site) for site in sites], device=tokens.device)
        own = guide.vocabulary.embedding[present].float()
        distance = torch.cdist(own, guide.allowed_embeddings)
        distance[present[:, None] == tokens] = torch.inf  # itself is no change
        count = min(self.top_k, max(1, len(tokens) - 1))
        nearest = distance.topk(count, largest=False).indices
        return Shortlists(sites, tokens[nearest], pools=pools)


def _present(site: Site) -> int:
    """Return the token around which a site's ball lies."""
    neighbour = site.position - 1 if site.position else 1
    return site.row[neighbour if site.move == "insert" else site.position]
