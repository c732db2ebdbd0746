"""Paraphrase (ZSInvert, arXiv 2504.00147, stage two): the primary reads the best prompts and writes
another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, CountOrNone, Positive, Whole, check_options
from fuse.search.methods.base import PROMPT_LENGTH, SEARCH_WIDTH, Method
from fuse.search.methods.drawing import draw
from fuse.text.messages import PROMPT
from fuse.types import Candidates, Ids

REQUEST = (
    f"Here are some sentences:\n{PROMPT}\n"
    "Write one more sentence that says the same in other words. Answer with the sentence alone."
)
"""What a model that was trained to chat is told; the shown prompts stand at `PROMPT`."""


@dataclass(frozen=True)
class Paraphrase(Method):
    """Show the primary the best prompts, and let it write another (ZSInvert, arXiv 2504.00147).

    Shown are `num_shown` rows of the beam that differ from each other: first the best, then always
    the one whose set of tokens is the farthest (by Jaccard's distance) from the nearest of those
    shown already. They stand as lines, the best last, and what the primary writes as the next line,
    drawn at `temperature` from the likeliest allowed tokens of mass `top_p`, is a candidate; so
    `search_width` times. A model with a chat template is asked in words, or goes on with the lines,
    as `style` says.
    """

    beam_width = 32
    search_width: Annotated[Count, SEARCH_WIDTH] = 32
    num_shown: Annotated[
        Count, Doc("prompts that the model is shown, different from each other")
    ] = 8
    style: Annotated[
        Literal["auto", "lines", "chat"],
        Doc("lines: it writes the next one; chat: it is asked to; auto: chat where it can"),
    ] = "auto"
    temperature: Annotated[Positive, Doc("at which tokens are drawn")] = 1.0
    top_p: Annotated[float, Gt(0), Le(1), Doc("drawn from the likeliest of this mass")] = 0.95
    prompt_length: Annotated[Count, PROMPT_LENGTH] = 8
    buffer_size: Annotated[CountOrNone, Doc("best earlier prompts that compete again")] = 32
    steps: Annotated[Whole, Doc("at most")] = 20

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def reads_predictions(self) -> bool:
        return True

    def propose(
        self, state: None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates | None:
        if not beam:
            return None
        shown = unlike(beam, self.num_shown)
        length = min(guide.max_length, 2 * max(map(len, shown)))
        request = self._request(shown, guide)
        while len(request) + length > guide.vocabulary.max_length and len(shown) > 1:
            shown = shown[:-1]
            request = self._request(shown, guide)
        length = min(length, guide.vocabulary.max_length - len(request))
        written = self._written(request, length, guide, rng) if length > 0 else []
        spelled = dict.fromkeys(guide.spelled(guide.vocabulary.decode(written)))
        ids = [row for row in spelled if row and row not in beam]
        return Candidates(ids, [0] * len(ids))

    def _request(self, shown: Sequence[Ids], guide: Guide) -> Ids:
        """Return the tokens after which the primary writes a prompt."""
        lines = "\n".join(reversed(guide.vocabulary.decode(shown)))
        if self.style == "chat" or (self.style == "auto" and guide.chats):
            before, after = guide.around_message(REQUEST)
            return guide.vocabulary.encode_ids([before + lines + after])[0]
        return guide.opening + guide.vocabulary.encode_ids([f"{lines}\n"])[0]

    def _written(self, request: Ids, length: int, guide: Guide, rng: torch.Generator) -> list[Ids]:
        """Draw texts of at most `length` tokens, each up to the end of its line."""
        rows: list[Ids] = [()] * self.search_width
        done: list[Ids] = []
        ends = {*guide.line_ends, *guide.end_of_text}
        may_follow = guide.allowed.clone()
        for _ in range(length):
            log_probs = guide.log_probs_after([request + row for row in rows])
            log_probs = log_probs.masked_fill(~may_follow.to(log_probs.device), -torch.inf)
            drawn = draw(log_probs, 1, rng, self.temperature, self.top_p)
            longer = [(*row, *token) for row, token in zip(rows, drawn, strict=True)]
            done += [row[:-1] for row in longer if row[-1] in ends]
            rows = [row for row in longer if row[-1] not in ends]
            if not rows:
                break
            may_follow[list(ends)] = True  # after the first token
        return done + rows


def unlike(rows: Sequence[Ids], count: int) -> list[Ids]:
    """Return rows that differ from each other: the first, then always the farthest one."""
    chosen, rest = [rows[0]], list(rows[1:])
    while rest and len(chosen) < count:
        distance = [min(_distance(row, one) for one in chosen) for row in rest]
        chosen.append(rest.pop(distance.index(max(distance))))
    return chosen


def _distance(row: Ids, other: Ids) -> float:
    """Return Jaccard's distance between two rows' sets of tokens."""
    return 1 - len({*row} & {*other}) / len({*row} | {*other})
