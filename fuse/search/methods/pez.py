"""PEZ (arXiv 2302.03668, algorithm 1): gradients at the nearest tokens, applied to a continuous
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, NotNegative, Whole, check_options
from fuse.search.methods.base import LEARNING_RATE, PROMPT_LENGTH, WEIGHT_DECAY
from fuse.search.methods.continuous import Continuous, spellable
from fuse.statistics import num_non_finite
from fuse.types import Candidates, Ids


@dataclass(frozen=True)
class State:
    """The continuous prompt, the gradient at its nearest tokens, and the optimiser's state."""

    points: Float[Tensor, "1 s d"]
    gradient: Float[Tensor, "1 s d"]
    optimiser: Any = None


@dataclass(frozen=True)
class PEZ(Continuous):
    """Move a continuous prompt by gradients at the nearest tokens (arXiv 2302.03668).

    The objective's gradient is taken at the nearest tokens, and applied by AdamW with `lr` and
    `weight_decay` to a continuous copy, which starts at the tokens of the first prompt.
    """

    lr: Annotated[NotNegative, LEARNING_RATE] = 0.1
    weight_decay: Annotated[NotNegative, WEIGHT_DECAY] = 0.1
    prompt_length: Annotated[Count, PROMPT_LENGTH] = 8
    steps: Annotated[Whole, Doc("at most")] = 500

    def __post_init__(self) -> None:
        check_options(self)

    def propose(
        self, state: State | None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates:
        if state is None:
            rows = [beam[0]]
            state = State(guide.embeddings(rows), guide.embedding_gradient(rows))
        points, optimiser = self.descend(state.points, state.gradient, state.optimiser)
        rows = guide.nearest_rows(points)
        # Taken now, the gradient's forward pass scores the candidate too
        gradient = guide.embedding_gradient(rows)
        dropped = num_non_finite(gradient)
        candidates = spellable(rows, guide)
        parents = [0] * len(candidates)
        return Candidates(candidates, parents, State(points, gradient, optimiser), dropped)
