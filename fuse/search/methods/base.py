"""What a method is, and how to write one.

1. One file with one frozen dataclass: its fields are the method's options, each annotated with
   what is allowed and a help line (`fuse/options.py`). `python scripts/write_conf.py` writes them
   to `conf/method/NAME.yaml`.
2. `init(guide, start, rng)` returns the method's state and the first beam.
3. `propose(state, beam, guide, rng)` returns `Candidates`: token ids, and the row of the beam that
   each came from. A method that changes its state by proposing puts the next one into
   `Candidates.state`. None ends the method.
4. `observe(state, evaluated)` returns the state after the candidates' losses are known; by default
   nothing is learned.
5. The state is a value: never kept in `self`, and made of numbers, texts, tensors, tuples, lists,
   dictionaries and dataclasses, so that it can be written to a checkpoint. All chance comes from
   `rng`; the objective is seen only through `guide`.
6. One line in `fuse/registry.py` enrols the method in the configuration, the public names and the
   contract tests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from typing_extensions import Doc

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.nn.embedding_table import POINTS
from fuse.options import OnceEach, OneOf
from fuse.types import Candidates, Evaluation, Ids

DRAWN_AT_ONCE = 32
"""How many tokens are drawn for one position of a random prompt, of which the first valid one is
taken.
"""

Points = Annotated[Sequence[Annotated[str, OneOf(POINTS)]], OnceEach]
"""Some of `fuse.nn.embedding_table.POINTS`."""
# What several methods have
SEARCH_WIDTH = Doc("candidates scored in one step")
PROMPT_LENGTH = Doc("free tokens of the first prompt")
LINEARISE = Doc("what the models read where a gradient is taken; of several, they are summed")
TOP_K = Doc("shortlisted tokens at each site")
LEARNING_RATE = Doc("learning rate")
WEIGHT_DECAY = Doc("weight decay")


class Method(ABC):
    """Proposes candidates."""

    greedy_only: ClassVar[bool] = False
    """Whether the method follows a state of its own, so that no strategy but greedy search means
    anything.
    """
    grows: ClassVar[bool] = False
    """Whether the candidates of a step are the rows of the beam with more tokens at their ends."""
    beam_width: int = 1
    """The width of beam search that suits the method where nothing else is said; 1 is greedy
    search.
    """
    distance: int = 0
    """By how many tokens the prompts of that beam differ, at least."""
    steps: int
    """How many times to propose, where the search does not say."""
    prompt_length: int = 0
    """Free tokens of the first prompt."""
    buffer_size: int = 0
    """How many of the best earlier sequences compete again with a step's candidates; 0 where these
    grow.
    """

    @property
    def reads_predictions(self) -> bool:
        """Whether the method asks for next-token predictions: the primary has to be a causal LM."""
        return False

    @property
    def reads_conditionals(self) -> bool:
        """Whether the method asks how likely tokens are at a position, given the others: the
        primary has to be a causal or a masked LM.
        """
        return False

    def init(self, guide: Guide, start: Ids, rng: torch.Generator) -> tuple[Any, list[Ids]]:
        """Return the state and the beam before the first step.

        Args:
            start: the tokens given by the user; empty for none.
        """
        return None, [start or random_prompt(guide, self.prompt_length, rng)]

    @abstractmethod
    def propose(
        self, state: Any, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates | None:
        """Return the candidates of one step, perhaps none; None in their place ends the method.

        Args:
            beam: what is to be expanded; empty where a strategy has nothing left.
        """

    def observe(self, state: Any, evaluated: Evaluation) -> Any:
        """Return the state after a step, whose candidates, parents and losses are known."""
        return state

    def found(self, state: Any) -> Sequence[Ids]:
        """Return what the method collected, beside the best prompt, up to this state."""
        return ()


def random_prompt(guide: Guide, length: int, rng: torch.Generator) -> Ids:
    """Draw a prompt of `length` allowed tokens whose text is valid; all but the first begin words.

    It is longer where a listed word of several tokens has to end it.

    Raises:
        FuseError: that many tokens do not fit.
    """
    guide.check_length(length)
    prompt: Ids = ()
    while len(prompt) < length:
        tokens = (guide.begins_word if prompt else guide.may_begin).nonzero().flatten().cpu()
        drawn = tokens[torch.randint(len(tokens), (DRAWN_AT_ONCE,), generator=rng)].tolist()
        longer = first_valid([(*prompt, token) for token in drawn], guide, DRAWN_AT_ONCE)
        if not longer and guide.long_words:
            order = torch.randperm(len(guide.long_words), generator=rng).tolist()
            longer = first_valid([(*prompt, *guide.long_words[i]) for i in order], guide, 1)
        if not longer:
            raise FuseError(
                f"prompt_length={length}: found no text of more than {len(prompt)} "
                "tokens that fits every model "
                f"and {guide.constraints}; choose fewer, allow more, or give a prefix"
            )
        prompt = longer[0]
    return prompt


def first_of_each(
    offers: Iterable[tuple[int, Sequence[Iterable[Ids]]]], guide: Guide, count: int
) -> tuple[list[Ids], list[int]]:
    """Return the first `count` valid rows of each pool, and the row of the beam that each comes
    from.

    Args:
        offers: rows of the beam, each with its pools of candidates.
    """
    ids: list[Ids] = []
    parents: list[int] = []
    for parent, pools in offers:
        for pool in pools:
            kept = first_valid(pool, guide, count)
            ids += kept
            parents += [parent] * len(kept)
    return ids, parents


def first_valid(rows: Iterable[Ids], guide: Guide, count: int) -> list[Ids]:
    """Return the first `count` different valid rows, in their order."""
    waiting = list(dict.fromkeys(rows))
    kept: list[Ids] = []
    while waiting and len(kept) < count:
        asked, waiting = waiting[: count - len(kept)], waiting[count - len(kept) :]
        kept += [row for row, ok in zip(asked, guide.valid(asked), strict=True) if ok]
    return kept
