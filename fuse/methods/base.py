"""What a method is, and how to write one.

1. One file with one frozen dataclass: its fields are the method's options, as in `conf/method/NAME.yaml`.
2. `init(guide, start, generator)` makes the first beam and the private state (None, if the method needs none).
3. `propose(state, beam, guide, generator)` returns the next state and the candidates. State is a value that goes in and
   comes out, never `self.x`; all chance comes from `generator`; the objective is seen only through `guide`.
4. Add the name to `METHODS` in `fuse/methods/__init__.py`, which also enrols it in the contract tests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.types import Ids


class Method(ABC):
    """Proposes candidates; blind to their scores."""

    greedy_only: ClassVar[bool] = False
    """Whether the method follows a state of its own, so that no strategy but greedy search means anything."""
    beam_width: ClassVar[int] = 1
    """The width of beam search that suits the method where nothing else is said; 1 is greedy search."""
    steps: int
    """How many times to propose, where the search does not say."""
    prompt_length: int
    """Free tokens of the first prompt."""
    buffer_size: int = 0
    """How many of the best earlier sequences compete again with a step's candidates; 0 where candidates grow."""

    @property
    def reads_predictions(self) -> bool:
        """Whether the method asks the primary for its next token, so that it has to be a causal LM."""
        return False

    def init(self, guide: Guide, start: Ids, generator: torch.Generator) -> tuple[Any, list[Ids]]:
        """The state and the beam before the first step; `start` is the tokens given by the user, empty for none."""
        return None, [start or random_prompt(guide, self.prompt_length, generator)]

    @abstractmethod
    def propose(self, state: Any, beam: Sequence[Ids], guide: Guide, generator: torch.Generator) -> tuple[Any, list[Ids] | None]:
        """The next state and the candidates of one step, perhaps none; None in the place of a list ends the search.

        The beam is empty where a strategy has nothing left to expand.
        """

    def found(self, state: Any) -> Sequence[Ids]:
        """What the method collected, beside the best prompt, up to this state."""
        return ()


def require_positive(method: Method, *names: str) -> None:
    """Raises FuseError where one of these options of a method is below 1."""
    for name in names:
        if getattr(method, name) < 1:
            raise FuseError(f"method.{name}={getattr(method, name)}: expected at least 1")


def require_not_negative(method: Method, *names: str) -> None:
    """Raises FuseError where one of these options of a method is below 0."""
    for name in names:
        if not getattr(method, name) >= 0:
            raise FuseError(f"method.{name}={getattr(method, name)}: expected 0 or more")


def require_choices(method: Method, name: str, known: Sequence[str]) -> None:
    """Raises FuseError unless an option is one of `known`, or a list of one or more different ones."""
    value = getattr(method, name)
    chosen = [value] if isinstance(value, str) else list(value)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
        raise FuseError(f"method.{name}={value}: expected {'one' if isinstance(value, str) else 'some'} of {', '.join(known)}")


def random_prompt(guide: Guide, length: int, generator: torch.Generator) -> Ids:
    """`length` allowed tokens drawn uniformly, each so that the text still tokenises to itself; all but the first begin words.

    Raises:
        FuseError: that many tokens do not fit.
    """
    guide.check_length(length)
    prompt: Ids = ()
    while len(prompt) < length:
        tokens = (guide.begins_word if prompt else guide.allowed).nonzero().flatten().cpu()
        drawn = tokens[torch.randint(len(tokens), (32,), generator=generator)].tolist()
        rows = [(*prompt, token) for token in drawn]
        fitting = next((row for row, ok in zip(rows, guide.valid(rows), strict=True) if ok), None)
        if fitting is None:
            raise FuseError(
                f"prompt_length={length}: found no text of more than {len(prompt)} tokens that fits every model and {guide.constraints}; "
                "choose fewer, allow more, or give a prefix"
            )
        prompt = fitting
    return prompt


def first_valid(rows: Iterable[Ids], guide: Guide, count: int) -> list[Ids]:
    """The first `count` different rows, in order, that the guide takes as valid."""
    distinct = list(dict.fromkeys(rows))
    kept: list[Ids] = []
    while distinct and len(kept) < count:
        asked, distinct = distinct[: count - len(kept)], distinct[count - len(kept) :]
        kept += [row for row, ok in zip(asked, guide.valid(asked), strict=True) if ok]
    return kept
