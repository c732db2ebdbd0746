"""A captioning model's own sentences, scored like every other prompt: the baseline of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.search.methods.base import Method
from fuse.types import Ids


@dataclass(frozen=True)
class Caption(Method):
    """Starts from `texts`, what a captioner says of the picture, and makes no step."""

    greedy_only: ClassVar[bool] = True
    texts: Sequence[str]
    prompt_length: int = 0
    steps: int = 0

    def init(self, guide: Guide, start: Ids, rng: torch.Generator) -> tuple[None, list[Ids]]:
        rows = [row for row in guide.spelled(self.texts, blanks=True) if row is not None]
        if not rows:
            raise FuseError(
                f"method=caption: no model can take what the captioner says ({list(self.texts)}); "
                "choose another captioner"
            )
        return None, list(dict.fromkeys(rows))

    def propose(self, state: None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator) -> None:
        return None
