"""GCG (arXiv 2307.15043, algorithm 1): put in tokens that the gradient favours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, NotNegative
from fuse.search.methods.base import LINEARISE, TOP_K, Points
from fuse.search.methods.edits import Edits, Shortlists, Site
from fuse.types import UNCHANGED, Ids

Momentum = dict[tuple[str, int, int], Float[Tensor, " v"]]
"""The running gradient at each move, position and length of the row."""
STEPS_REMEMBERED = 4
"""For how many times as many sites as a step has the momentum is kept, of those seen last."""


@dataclass(frozen=True)
class GCG(Edits):
    """Put in tokens that the gradient favours (arXiv 2307.15043).

    The shortlist of a site is the `top_k` allowed tokens of the most negative gradient.

    `linearise` names what the models read at the site while the gradient is taken, as
    `Objective.token_gradient` has it. With a `logit_weight` w the shortlist is that of -z(gradient)
    + w x log p(token | what stands before the site), as in AutoDAN: standardised over the allowed
    tokens (z), and p the primary's prediction, of a masked LM that from all other tokens.
    With a `distance_weight` w it is -z(gradient) - w x |E_v - E_x| / r, for the present token x and
    the mean norm r of the allowed embeddings: the gradient says little of far tokens (Faster-GCG,
    arXiv 2410.15362).
    `momentum` m (arXiv 2405.01229) ranks by m x the gradients of earlier steps at this position +
    (1 - m) x this step's.
    """

    top_k: Annotated[Count, TOP_K] = 64
    linearise: Annotated[Points, LINEARISE] = ("current",)
    logit_weight: Annotated[
        NotNegative,
        Doc("share of the LM's log-probability in the shortlist; 0: the gradient alone"),
    ] = 0.0
    distance_weight: Annotated[
        NotNegative, Doc("weight of the distance from the present token (arXiv 2410.15362)")
    ] = 0.0
    momentum: Annotated[
        float, Ge(0), Lt(1), Doc("share of earlier gradients (arXiv 2405.01229)")
    ] = 0.0

    @property
    def reads_conditionals(self) -> bool:
        return self.logit_weight > 0

    def widened(self, factor: int, guide: Guide) -> GCG:
        return replace(self, top_k=min(factor * self.top_k, len(guide.allowed_tokens)))

    def pull(
        self, rows: Sequence[Ids], positions: Sequence[int], guide: Guide
    ) -> Float[Tensor, "n v"]:
        return guide.wanted(guide.token_gradient(rows, positions, self.linearise))

    def shortlist(self, state: Any, sites: Sequence[Site], guide: Guide) -> Shortlists:
        rows, positions = [site.row for site in sites], [site.position for site in sites]
        gradient = guide.token_gradient(rows, positions, self.linearise)
        finite = gradient.isfinite().all(1)
        dropped = len(sites) - int(finite.sum())
        if dropped:
            sites = [site for site, ok in zip(sites, finite.tolist(), strict=True) if ok]
            rows, positions = [site.row for site in sites], [site.position for site in sites]
            gradient = gradient[finite]
        if not sites:
            return Shortlists([], torch.zeros(0, 1, dtype=torch.long), num_non_finite=dropped)
        if self.momentum:
            state, gradient = self._with_momentum(state or {}, sites, gradient)
        ranking = -gradient
        if self.logit_weight:
            log_probs = guide.position_log_probs(rows, positions)
            ranking = self.logit_weight * log_probs + guide.wanted(gradient)
        elif self.distance_weight:
            ranking = guide.wanted(gradient)
        if self.distance_weight:
            table, radius = guide.vocabulary.embedding, guide.radius
            present = [row[position] for row, position in zip(rows, positions, strict=True)]
            distance = torch.cdist(table[present].float(), table.float()) / radius
            ranking = ranking - self.distance_weight * distance.to(ranking)
        ranking = ranking.masked_fill(~guide.allowed, -torch.inf)
        tokens = ranking.topk(min(self.top_k, int(guide.allowed.sum()))).indices
        pools = guide.proposals(rows, positions, self.top_k, self.linearise)
        pools += guide.word_proposals(rows, positions)
        return Shortlists(sites, tokens, state if self.momentum else UNCHANGED, pools, dropped)

    def _with_momentum(
        self, state: Momentum, sites: Sequence[Site], gradient: Float[Tensor, "n v"]
    ) -> tuple[Momentum, Float[Tensor, "n v"]]:
        """Return the next momentum, the mean over the beam at each position, and this step's
        gradients with it.
        """
        keys = [(site.move, site.position, len(site.row)) for site in sites]
        mixed = []
        for key, own in zip(keys, gradient, strict=True):
            known = key in state
            mixed.append(self.momentum * state[key] + (1 - self.momentum) * own if known else own)
        by_key: dict[tuple[str, int, int], list[Tensor]] = {}
        for key, own in zip(keys, mixed, strict=True):
            by_key.setdefault(key, []).append(own)
        new = {key: torch.stack(own).mean(0) for key, own in by_key.items()}
        older = [(key, value) for key, value in state.items() if key not in new]
        kept = older[-(STEPS_REMEMBERED - 1) * len(new) :]
        return {**dict(kept), **new}, torch.stack(mixed)
