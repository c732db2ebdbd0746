"""What methods share that move continuous prompts by the objective's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.guide import Guide
from fuse.search.methods.base import Method
from fuse.types import Ids


class Continuous(Method):
    """Keeps continuous prompts, or logits of their tokens, in its state; the beam is only where it
    starts.
    """

    greedy_only: ClassVar[bool] = True
    lr: float
    weight_decay: float = 0.0

    def descend(
        self, points: Float[Tensor, "b s d"], gradient: Float[Tensor, "b s d"], optimiser: Any
    ) -> tuple[Float[Tensor, "b s d"], Any]:
        """Make one step of AdamW (arXiv 1711.05101).

        Args:
            gradient: where it is not finite, it counts as zero.
            optimiser: the optimiser's state; None at first.

        Returns:
            The points after the step, and the optimiser's next state.
        """
        moved = points.clone().requires_grad_()
        adamw = torch.optim.AdamW([moved], lr=self.lr, weight_decay=self.weight_decay)
        if optimiser is not None:
            adamw.load_state_dict(deepcopy(optimiser))
        moved.grad = gradient.to(moved).nan_to_num(0.0, 0.0, 0.0)
        adamw.step()
        return moved.detach(), adamw.state_dict()


def spellable(rows: Sequence[Ids], guide: Guide) -> list[Ids]:
    """Return the rows; where tokens do not spell themselves, the tokens that their text has
    instead.
    """
    spelled = guide.spelled(guide.vocabulary.decode(rows))
    return list(dict.fromkeys(row for row in spelled if row))
