"""GCG (arXiv 2307.15043, algorithm 1): put in tokens that the gradient favours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.guide import Guide, standardised
from fuse.methods.base import require_choices, require_not_negative, require_positive
from fuse.methods.edits import Edits, Site
from fuse.types import Ids
from fuse.vocabulary import POINTS

Momentum = dict[tuple[str, int, int], Float[Tensor, " v"]]
"""The running gradient of each place: move, position, length of the row."""


@dataclass(frozen=True)
class GCG(Edits):
    """At each site the `top_k` allowed tokens of the most negative gradient are shortlisted.

    `linearise` names what the models read at the site while the gradient is taken, as `Guide.token_gradient` has it.
    With a `logit_weight` w the shortlist is that of -z(gradient) + w x log p(token | what stands before the site), as in
    AutoDAN: standardised over the allowed tokens (z), and p the primary's prediction. `momentum` m (arXiv 2405.01229)
    ranks by m x the gradients of earlier steps at this place + (1 - m) x this step's.
    """

    top_k: int = 64
    linearise: Sequence[str] = ("current",)
    logit_weight: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "top_k")
        require_not_negative(self, "logit_weight")
        require_choices(self, "linearise", POINTS)
        if not 0 <= self.momentum < 1:
            raise FuseError(f"method.momentum={self.momentum}: expected 0 or more, and below 1")

    @property
    def reads_predictions(self) -> bool:
        return self.logit_weight > 0

    def shortlist(self, state: Any, sites: Sequence[Site], guide: Guide) -> tuple[Any, Int[Tensor, "b k"]]:
        gradient = guide.token_gradient([site.row for site in sites], [site.position for site in sites], self.linearise)
        if self.momentum:
            state, gradient = self._remember(state or {}, sites, gradient)
        ranking = -gradient
        if self.logit_weight:
            log_probs = guide.next_token_log_probs([site.row[: site.position] for site in sites])
            ranking = self.logit_weight * log_probs - standardised(gradient, guide.allowed)
        ranking = ranking.masked_fill(~guide.allowed, -torch.inf)
        return state, ranking.topk(min(self.top_k, int(guide.allowed.sum()))).indices

    def pools(self, sites: Sequence[Site], guide: Guide) -> list[list[list[Ids]]]:
        return guide.proposals([site.row for site in sites], [site.position for site in sites], self.top_k, self.linearise)

    def _remember(self, state: Momentum, sites: Sequence[Site], gradient: Float[Tensor, "b v"]) -> tuple[Momentum, Float[Tensor, "b v"]]:
        """The next momentum, the mean over the beam at each place, and this step's rankings by it."""
        places = [(site.move, site.position, len(site.row)) for site in sites]
        mixed = torch.stack(
            [
                self.momentum * state[place] + (1 - self.momentum) * g if place in state else g
                for place, g in zip(places, gradient, strict=True)
            ]
        )
        lines: dict[tuple[str, int, int], list[int]] = {}
        for line, place in enumerate(places):
            lines.setdefault(place, []).append(line)
        return {**state, **{place: mixed[of].mean(0) for place, of in lines.items()}}, mixed
