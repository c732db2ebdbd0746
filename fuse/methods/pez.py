"""PEZ (arXiv 2302.03668, algorithm 1): gradients at the nearest tokens, applied to a continuous prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.guide import Guide
from fuse.methods.base import require_positive
from fuse.methods.continuous import Continuous, spellable
from fuse.types import Ids


@dataclass(frozen=True)
class PEZ(Continuous):
    """Moves all tokens at once: the objective's gradient is taken at the nearest tokens, and applied by AdamW with `lr`
    and `weight_decay` to a continuous copy, which starts at the tokens of the first prompt.
    """

    lr: float = 0.1
    weight_decay: float = 0.1
    prompt_length: int = 8
    steps: int = 500

    def __post_init__(self) -> None:
        require_positive(self, "prompt_length")

    def propose(self, state: Any, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[Any, list[Ids]]:
        table = guide.vocabulary.embedding

        def gradient(rows: list[Ids]) -> Float[Tensor, "1 s d"]:
            return guide.embedding_gradient(table[torch.tensor(rows, device=table.device)], rows)

        if state is None:
            rows = [beam[0]]
            state = table[torch.tensor(rows, device=table.device)].float(), gradient(rows), None
        points, slope, memory = state
        points, memory = self.descend(points, slope, memory)
        rows = guide.nearest_rows(points)
        # Taken now, the gradient's forward pass scores the candidate too
        return (points, gradient(rows), memory), spellable(rows, guide)
