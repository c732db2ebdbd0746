"""A captioning model's own sentences, scored like every other prompt: the baseline of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.methods.base import Method
from fuse.types import Ids


@dataclass(frozen=True)
class Caption(Method):
    """Proposes `texts`, once: what a captioner says of the picture, written before the search begins."""

    greedy_only: ClassVar[bool] = True
    texts: Sequence[str]
    prompt_length: int = 0
    steps: int = 1

    def propose(self, state: int | None, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[int, list[Ids] | None]:
        if state is not None:
            return state, None
        rows = [row for row in guide.spelled(self.texts) if row is not None]
        if not rows:
            raise FuseError(f"method=caption: no model can take what the captioner says ({list(self.texts)}); choose another captioner")
        return 1, list(dict.fromkeys(rows))
