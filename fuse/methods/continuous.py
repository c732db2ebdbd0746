"""What methods share that move continuous prompts by the objective's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.guide import Guide
from fuse.methods.base import Method
from fuse.types import Ids


class Continuous(Method):
    """Keeps a batch of continuous prompts [b s d] as private state; the beam is only where it starts."""

    greedy_only: ClassVar[bool] = True
    lr: float
    weight_decay: float

    def descend(self, points: Float[Tensor, "b s d"], gradient: Float[Tensor, "b s d"], memory: Any) -> tuple[Float[Tensor, "b s d"], Any]:
        """The points after one step of AdamW (arXiv 1711.05101) along a gradient, and the optimiser's memory (None at first)."""
        moved = points.clone().requires_grad_()
        optimiser = torch.optim.AdamW([moved], lr=self.lr, weight_decay=self.weight_decay)
        if memory is not None:
            optimiser.load_state_dict(deepcopy(memory))
        moved.grad = gradient.to(moved)
        optimiser.step()
        return moved.detach(), optimiser.state_dict()


def spellable(rows: Sequence[Ids], guide: Guide) -> list[Ids]:
    """Rows; where tokens do not spell themselves, the tokens that their text has instead."""
    spelled = guide.spelled(guide.vocabulary.decode(rows))
    return list(dict.fromkeys(row for row in spelled if row))
