"""PEZ (arXiv 2302.03668, algorithm 1): gradients at the nearest tokens, applied to a continuous prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
        points, rows, memory = state or (table[torch.tensor([beam[0]], device=table.device)].float(), [beam[0]], None)
        at = table[torch.tensor(rows, device=table.device)]
        points, memory = self.descend(points, guide.embedding_gradient(at, rows), memory)
        rows = guide.nearest_rows(points)
        return (points, rows, memory), spellable(rows, guide)
