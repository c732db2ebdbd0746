"""Gibbs sampling: the primary proposes tokens for one position, the objective chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, CountOrNone, NotNegative, Whole, check_options
from fuse.search.methods.base import PROMPT_LENGTH, SEARCH_WIDTH, Method, first_of_each
from fuse.search.methods.drawing import by_rank, draw
from fuse.statistics import standardised
from fuse.types import Candidates, Ids


@dataclass(frozen=True)
class Gibbs(Method):
    """Let the primary propose the tokens of one position (arXiv 2303.02437).

    In each row of the beam a position i is drawn uniformly. A token v is ranked there by
    log p(v | row) - `gradient_weight` x z(g_v): of a masked LM p(v | all tokens but the i-th)
    (arXiv 1902.04094), of a causal one p(v | the tokens before the i-th); g is the objective's
    gradient, standardised over the allowed tokens (z). The rows with the best tokens in the place
    of the present one are scored, `search_width` in all, as many for every row; at a `temperature`
    above 0 tokens drawn from softmax(rank / temperature), each once.
    """

    search_width: Annotated[Count, SEARCH_WIDTH] = 64
    temperature: Annotated[NotNegative, Doc("0: the best candidates; above: drawn")] = 1.0
    gradient_weight: Annotated[
        NotNegative, Doc("share of the objective's gradient in choosing candidates")
    ] = 0.0
    prompt_length: Annotated[Count, PROMPT_LENGTH] = 8
    buffer_size: Annotated[CountOrNone, Doc("best earlier prompts that compete again")] = 1
    steps: Annotated[Whole, Doc("at most")] = 100

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def reads_conditionals(self) -> bool:
        return True

    def propose(
        self, state: None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates | None:
        if not beam:
            return None
        positions = [int(torch.randint(len(row), (1,), generator=rng)) for row in beam]
        ranking, finite = self._rank(beam, positions, guide)
        pools = guide.word_proposals(beam, positions)
        width = max(1, self.search_width // (len(beam) * (1 + len(pools))))
        tokens = draw(ranking, min(4 * width, int(guide.allowed.sum())), rng, self.temperature)
        offers = []
        for i in finite.nonzero().flatten().tolist():
            row, at = beam[i], positions[i]
            swapped = [(*row[:at], v, *row[at + 1 :]) for v in tokens[i] if v != row[at]]
            offers.append((i, [swapped, *(by_rank(pool[i], at, ranking[i]) for pool in pools)]))
        ids, parents = first_of_each(offers, guide, width)
        return Candidates(ids, parents, num_non_finite=len(beam) - int(finite.sum()))

    def _rank(
        self, rows: Sequence[Ids], positions: Sequence[int], guide: Guide
    ) -> tuple[Float[Tensor, "b v"], Bool[Tensor, " b"]]:
        """Return how good each token looks at the position of each row, -inf for those that are
        not allowed, and of which rows that is known.
        """
        ranking = guide.position_log_probs(rows, positions)
        finite = ~ranking.isnan().any(1)
        if self.gradient_weight:
            gradient = guide.token_gradient(rows, positions).to(ranking)
            finite &= gradient.isfinite().all(1)
            scores = standardised(gradient.nan_to_num(0.0, 0.0, 0.0), guide.allowed)
            ranking = ranking - self.gradient_weight * scores
        forbidden = ~guide.allowed.to(ranking.device) | ranking.isnan()
        return ranking.masked_fill(forbidden, -torch.inf), finite
