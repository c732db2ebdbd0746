"""AutoDAN (arXiv 2310.15140): write the prompt token by token, balancing the objective's gradient
with readability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, CountOrNone, NotNegative, Number, Whole, check_options
from fuse.search.methods.base import (
    LINEARISE,
    PROMPT_LENGTH,
    SEARCH_WIDTH,
    Method,
    Points,
    first_of_each,
)
from fuse.search.methods.drawing import by_rank, draw
from fuse.statistics import standardised
from fuse.types import Candidates, Ids


@dataclass(frozen=True)
class AutoDAN(Method):
    """Write the prompt token by token (arXiv 2310.15140): append one a step.

    A next token v is ranked by -z(g_v) + `logit_weight` x log p(v | prompt) - `frequency_penalty` x
    (how often the prompt holds v): g is the objective's gradient at the position to be filled,
    where the models read what `linearise` names, standardised over the allowed tokens (z), so that
    one weight serves all objectives; p is the primary's prediction. In
    all `search_width` continuations are scored, as many for every row of the beam, one at least:
    the best by rank at `temperature` 0, else drawn from softmax(rank / temperature), cut to its
    likeliest part of mass `top_p`. A row ends where the primary holds the end of text for likelier
    than any allowed token, and where the constraints name endings, with one of them: each is tried
    in every step. The method ends where all rows do.
    """

    grows: ClassVar[bool] = True
    beam_width = 16
    search_width: Annotated[Count, SEARCH_WIDTH] = 256
    logit_weight: Annotated[
        NotNegative, Doc("share of the LM's log-probability in choosing candidates")
    ] = 1.0
    temperature: Annotated[NotNegative, Doc("0: the best candidates; above: drawn")] = 0.0
    top_p: Annotated[float, Gt(0), Le(1), Doc("drawn from the likeliest of this mass")] = 1.0
    frequency_penalty: Annotated[
        Number, Doc("for each time that the prompt holds a token already")
    ] = 0.0
    linearise: Annotated[Points, LINEARISE] = ("current",)
    prompt_length: Annotated[CountOrNone, PROMPT_LENGTH] = 0
    steps: Annotated[Whole, Doc("at most")] = 16

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def reads_predictions(self) -> bool:
        return True

    def propose(
        self, state: None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates | None:
        if not beam:
            return None
        parents, log_probs = self._growing(beam, guide)
        if not parents:
            return Candidates()
        rows, positions = [beam[parent] for parent in parents], [len(beam[p]) for p in parents]
        # The likeliest next token fills the position while the gradient there is taken
        likeliest = log_probs.masked_fill(~guide.allowed, -torch.inf).argmax(-1).tolist()
        filled = [(*row, token) for row, token in zip(rows, likeliest, strict=True)]
        gradient = guide.token_gradient(filled, positions, self.linearise)
        finite = gradient.isfinite().all(1)
        ranking = self._rank(rows, log_probs, gradient.nan_to_num(), guide)
        pools = guide.proposals(filled, positions, self.search_width, self.linearise)
        for pool in guide.word_proposals(filled, positions):
            pools.append([by_rank(*one) for one in zip(pool, positions, ranking, strict=True)])
        width = max(1, self.search_width // (len(parents) * (1 + len(pools))))
        count = min(4 * width, int(guide.allowed.sum()))
        tokens = draw(ranking, count, rng, self.temperature, self.top_p)
        offers = []
        for i in finite.nonzero().flatten().tolist():
            # An ending is always tried: how well it fits is said by its loss
            endings = guide.ending_tokens if rows[i] else []
            appended = [(*rows[i], token) for token in dict.fromkeys([*endings, *tokens[i]])]
            offers.append((parents[i], [appended, *(pool[i] for pool in pools)]))
        ids, origins = first_of_each(offers, guide, width)
        dropped, leaves = len(rows) - int(finite.sum()), frozenset(self._leaves(ids, guide))
        return Candidates(ids, origins, num_non_finite=dropped, leaves=leaves)

    def _leaves(self, rows: Sequence[Ids], guide: Guide) -> list[Ids]:
        """Return the rows that do not grow on, where some endings finish a prompt."""
        if not guide.constraints.endings:
            return []
        return [row for row, ends in zip(rows, guide.finished(rows), strict=True) if ends]

    def _growing(self, beam: Sequence[Ids], guide: Guide) -> tuple[list[int], Float[Tensor, "b v"]]:
        """Return the rows that have room and no end, with the log-probabilities of their next
        tokens.
        """
        room = [i for i, row in enumerate(beam) if len(row) < guide.max_length]
        if not room:
            return [], torch.zeros(0, len(guide.vocabulary))
        log_probs = guide.next_token_log_probs([beam[i] for i in room])
        going_on = log_probs.masked_fill(~guide.allowed.to(log_probs.device), -torch.inf).amax(-1)
        ended = (log_probs[:, guide.end_of_text] > going_on[:, None]).any(-1).tolist()
        kept = [i for i, parent in enumerate(room) if not (beam[parent] and ended[i])]
        return [room[i] for i in kept], log_probs[kept]

    def _rank(
        self,
        rows: Sequence[Ids],
        log_probs: Float[Tensor, "b v"],
        gradient: Float[Tensor, "b v"],
        guide: Guide,
    ) -> Float[Tensor, "b v"]:
        """Return how good each continuation looks; -inf for tokens that are not allowed."""
        ranking = -standardised(gradient, guide.allowed)
        if self.logit_weight:
            ranking = ranking + self.logit_weight * log_probs
        if self.frequency_penalty:
            size = ranking.shape[1]
            counts = [torch.tensor(row, dtype=torch.long).bincount(minlength=size) for row in rows]
            ranking = ranking - self.frequency_penalty * torch.stack(counts).to(ranking)
        return ranking.masked_fill(~guide.allowed, -torch.inf)
