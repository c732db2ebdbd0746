"""PEZ (arXiv 2302.03668, algorithm 1): gradients at the nearest tokens, applied to a continuous
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.guide import Guide
from fuse.search.methods.base import require_not_negative, require_positive
from fuse.search.methods.continuous import Continuous, spellable
from fuse.types import Candidates, Ids


@dataclass(frozen=True)
class State:
    """The continuous prompt, the gradient at its nearest tokens, and the optimiser's state."""

    points: Float[Tensor, "1 s d"]
    gradient: Float[Tensor, "1 s d"]
    optimiser: Any = None


@dataclass(frozen=True)
class PEZ(Continuous):
    """Moves all tokens at once.

    The objective's gradient is taken at the nearest tokens, and applied by AdamW with `lr` and
    `weight_decay` to a continuous copy, which starts at the tokens of the first prompt.
    """

    lr: float = 0.1
    weight_decay: float = 0.1
    prompt_length: int = 8
    steps: int = 500

    def __post_init__(self) -> None:
        require_positive(self, "prompt_length")
        require_not_negative(self, "lr", "weight_decay")

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
        dropped = int(not gradient.isfinite().all())
        candidates = spellable(rows, guide)
        parents = [0] * len(candidates)
        return Candidates(candidates, parents, State(points, gradient, optimiser), dropped)
