"""AutoDAN (arXiv 2310.15140): write the prompt token by token, balancing the objective's gradient with readability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fuse.methods.base import Method, as_candidates, first_valid, require_positive
from fuse.objective import Guide
from fuse.types import Candidates, Ids


@dataclass(frozen=True)
class AutoDAN(Method):
    """Appends one token a step.

    A next token v is ranked by -z(g_v) + `logit_weight` x log p(v | prompt): g is the objective's gradient at the place
    that is to be filled, standardised over the allowed tokens (z), so that one weight serves all objectives; p is the
    primary's prediction. The `search_width` best continuations in all are scored, as many for every row of the beam.
    """

    search_width: int = 256
    logit_weight: float = 1.0
    prompt_length: int = 0
    steps: int = 16

    def __post_init__(self) -> None:
        require_positive(self, "search_width")

    def propose(self, state: None, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[None, Candidates]:
        beam = [row for row in beam if len(row) < guide.longest]
        if not beam:
            return None, as_candidates([])
        allowed = guide.allowed
        log_probs = guide.next_token_log_probs(beam).masked_fill(~allowed, -torch.inf)
        # The likeliest next token fills the place while the gradient there is taken
        filled = [(*row, token) for row, token in zip(beam, log_probs.argmax(-1).tolist(), strict=True)]
        gradient = guide.token_gradient(filled, [len(row) for row in beam])
        kept = gradient[:, allowed]
        spread = kept.std(-1, keepdim=True)
        descent = torch.where(spread > 0, (kept.mean(-1, keepdim=True) - gradient) / spread, 0.0)
        ranking = descent if self.logit_weight == 0 else descent + self.logit_weight * log_probs
        ranking = ranking.masked_fill(~allowed, -torch.inf)
        width = max(1, self.search_width // len(beam))
        tokens = ranking.topk(min(4 * width, int(allowed.sum()))).indices.tolist()
        proposals = []
        for parent, row in enumerate(beam):
            continued = ((parent, len(row), (*row, token)) for token in tokens[parent])
            proposals += first_valid(continued, guide, width)
        return None, as_candidates(proposals)
