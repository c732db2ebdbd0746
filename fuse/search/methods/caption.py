"""A captioning model's own sentences, scored like every other prompt: the baseline of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from typing_extensions import Doc

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.options import Count, CountOrNone, Whole, check_options
from fuse.search.methods.base import PROMPT_LENGTH, Method
from fuse.types import Ids


@dataclass(frozen=True)
class Caption(Method):
    """Take a captioning model's own text as a baseline: a start with no steps.

    Args:
        texts: what a captioner says of the picture, the best first.
    """

    greedy_only: ClassVar[bool] = True
    texts: Sequence[str]
    search_width: Annotated[Count, Doc("texts that a captioner is asked for, by beam search")] = 1
    prompt_length: Annotated[CountOrNone, PROMPT_LENGTH] = 0
    steps: Annotated[Whole, Doc("none are made")] = 0

    def __post_init__(self) -> None:
        check_options(self)

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
