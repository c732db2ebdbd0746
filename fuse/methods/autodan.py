"""AutoDAN (arXiv 2310.15140): write the prompt token by token, balancing the objective's gradient with readability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.guide import Guide, standardised
from fuse.methods.base import Method, first_valid, require_choices, require_not_negative, require_positive
from fuse.types import Ids
from fuse.vocabulary import POINTS


@dataclass(frozen=True)
class AutoDAN(Method):
    """Appends one token a step.

    A next token v is ranked by -z(g_v) + `logit_weight` x log p(v | prompt) - `frequency_penalty` x (how often the prompt
    holds v): g is the objective's gradient at the place that is to be filled, with the models reading there what
    `linearise` names, standardised over the allowed tokens (z), so that one weight serves all objectives; p is the
    primary's prediction. In all `search_width` continuations are scored, as many for every row of the beam, one at least: the best by
    rank at `temperature` 0, else drawn from softmax(rank / temperature), cut to its likeliest part of mass `top_p`.
    A row ends where the primary holds the end of text for likelier than any allowed token; the search, where all end.
    """

    beam_width: ClassVar[int] = 16
    search_width: int = 256
    logit_weight: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    linearise: Sequence[str] = ("current",)
    prompt_length: int = 0
    steps: int = 16

    def __post_init__(self) -> None:
        require_positive(self, "search_width")
        require_not_negative(self, "logit_weight", "temperature")
        require_choices(self, "linearise", POINTS)
        if not 0 < self.top_p <= 1:
            raise FuseError(f"method.top_p={self.top_p}: expected a number above 0, up to 1")

    @property
    def reads_predictions(self) -> bool:
        return True

    def propose(self, state: None, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[None, list[Ids] | None]:
        if not beam:
            return None, None
        growing = [parent for parent, row in enumerate(beam) if len(row) < guide.longest]
        log_probs = guide.next_token_log_probs([beam[parent] for parent in growing]) if growing else torch.zeros(0, len(guide.vocabulary))
        going_on = log_probs.masked_fill(~guide.allowed.to(log_probs.device), -torch.inf).amax(-1)
        ended = (log_probs[:, guide.end_of_text] > going_on[:, None]).any(-1).tolist()
        kept = [i for i, parent in enumerate(growing) if not (beam[parent] and ended[i])]
        if not kept:
            return None, []
        growing = [growing[i] for i in kept]
        rows, log_probs = [beam[parent] for parent in growing], log_probs[kept]
        # The likeliest next token fills the place while the gradient there is taken
        likeliest = log_probs.masked_fill(~guide.allowed, -torch.inf).argmax(-1).tolist()
        filled, places = [(*row, token) for row, token in zip(rows, likeliest, strict=True)], [len(row) for row in rows]
        ranking = self._rank(rows, log_probs, guide.token_gradient(filled, places, self.linearise), guide)
        pools = guide.proposals(filled, places, self.search_width, self.linearise)
        width = max(1, self.search_width // (len(growing) * (1 + len(pools))))
        tokens = self._draw(ranking, min(4 * width, int(guide.allowed.sum())), generator)
        candidates: list[Ids] = []
        for i, row in enumerate(rows):
            for offered in ([(*row, token) for token in tokens[i]], *(pool[i] for pool in pools)):
                candidates += first_valid(offered, guide, width)
        return None, candidates

    def _rank(
        self, beam: Sequence[Ids], log_probs: Float[Tensor, "b v"], gradient: Float[Tensor, "b v"], guide: Guide
    ) -> Float[Tensor, "b v"]:
        """How good each continuation looks; -inf for tokens that are not allowed."""
        ranking = -standardised(gradient, guide.allowed)
        if self.logit_weight:
            ranking = ranking + self.logit_weight * log_probs
        if self.frequency_penalty:
            counts = torch.stack([torch.bincount(torch.tensor(row, dtype=torch.long), minlength=ranking.shape[1]) for row in beam])
            ranking = ranking - self.frequency_penalty * counts.to(ranking)
        return ranking.masked_fill(~guide.allowed, -torch.inf)

    def _draw(self, ranking: Float[Tensor, "b v"], count: int, generator: torch.Generator) -> list[list[int]]:
        """For each row up to `count` different tokens, in the order in which they are to be taken."""
        if not self.temperature:
            return ranking.topk(count).indices.tolist()
        log_shares = (ranking.double().cpu() / self.temperature).log_softmax(-1)
        ordered, order = log_shares.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        ordered = ordered.masked_fill(before >= self.top_p, -torch.inf)
        # The largest of log p + Gumbel noise are a draw without replacement
        noise = -torch.empty_like(ordered).exponential_(generator=generator).log()
        drawn = (ordered + noise).topk(count)
        return [order[i, drawn.indices[i][drawn.values[i] > -torch.inf]].tolist() for i in range(len(ranking))]
