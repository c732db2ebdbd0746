"""Where a text tower pools: at which token of a row its vector is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.nn.network_view import input_device
from fuse.text.vocabulary import Vocabulary
from fuse.types import Ids


@dataclass(frozen=True)
class TokenPooling:
    """A tower pools at a row's first end token, or at its first highest id.

    Args:
        end: the end token.
        highest: whether it pools at the highest id; the end token mostly is that.
    """

    end: int
    highest: bool

    def position(self, ids: Int[Tensor, "b t"]) -> Int[Tensor, " b"]:
        """Return where each row is pooled."""
        return ids.argmax(1) if self.highest else (ids == self.end).int().argmax(1)

    @classmethod
    def of(cls, tower: Any, vocabulary: Vocabulary) -> TokenPooling | None:
        """Find out by short passes where a tower pools; None if in neither way."""
        if not vocabulary.tail:
            return None
        end, size = vocabulary.tail[-1], len(vocabulary)
        low, high = (0, size - 1) if end not in (0, size - 1) else (1, size - 2)
        rows = []
        for body in ((low, high), (low, end, high)):
            rows.append(vocabulary.head + body + vocabulary.tail)
        for found in (cls(end, False), cls(end, True)):
            if all(_pools(tower, row, found) for row in rows):
                return found
        return None


def _pools(tower: Any, row: Ids, pooling: TokenPooling) -> bool:
    """Whether what a tower makes of a row is the state of the token that a rule says."""
    ids = torch.tensor([row], device=input_device(tower))
    out = tower(input_ids=ids)
    pooled, states = getattr(out, "pooler_output", None), out.last_hidden_state
    if pooled is None or pooled.shape[-1] != states.shape[-1]:
        return False
    return torch.equal(pooled[0], states[0, int(pooling.position(ids))])
