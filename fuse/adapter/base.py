"""What an adapter is: a secondary's gradient, told over the primary's tokens.

A new adapter is one file: a subclass that says how it is fitted to a pair of vocabularies, how it scores tokens, and
which tensors it keeps on disk.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fuse.types import Ids
from fuse.vocabulary import Encoded, Span, Vocabulary


@dataclass(frozen=True)
class Gradient:
    """The gradient of each row's loss at p places: by the embeddings there and, where tokens act as labels too, by those."""

    embedding: Float[Tensor, "b p d"]
    labels: Float[Tensor, "b p v"] | None = None


@runtime_checkable
class Target(Protocol):
    """The secondary as an adapter sees it: texts in, gradients in its own space out."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The secondary's vocabulary."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """What the secondary reads for each prompt."""
        ...

    def gradient(
        self, rows: Sequence[Encoded], places: Sequence[Sequence[int]], read: Sequence[Float[Tensor, "_ d"]] | None = None
    ) -> Gradient:
        """Gradients of the rows' losses at `places`, where row i reads `read[i]`, if that is given."""
        ...


class Adapter(ABC):
    """A map between the vocabularies of one pair of models."""

    defaults: ClassVar[dict[str, int | float]] = {}
    """The settings of `fit` and their values where nothing else is said."""

    def __init__(self, source: Vocabulary, target: Vocabulary) -> None:
        self.source = source
        self.target = target

    @classmethod
    @abstractmethod
    def fit(cls, source: Vocabulary, target: Vocabulary, words: Iterable[str] = (), **settings: float) -> Adapter:
        """Fit to one pair; `words` are those of the corpus, the most frequent first, each once; `settings` as in `defaults`."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, source: Vocabulary, target: Vocabulary, tensors: dict[str, Tensor]) -> Adapter:
        """The adapter whose `tensors()` these are.

        Raises:
            KeyError, ValueError: they are not such tensors.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that fitting found."""

    @abstractmethod
    def token_scores(self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current") -> Float[Tensor, "b v"]:
        """First-order change of each row's loss when the token at its position becomes v (up to a constant a row).

        `rows` are free tokens of the source; `positions[i]` is the place in `rows[i]`; `point`, one of
        `fuse.vocabulary.POINTS`, is what the target reads there when its loss is linearised.
        """

    def embedding_gradient(
        self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current"
    ) -> Float[Tensor, "b d"]:
        """The gradient of each row's loss by the source embedding at its position; least squares from the scores."""
        return self.source.as_embedding_gradient(self.token_scores(rows, positions, target, point))


WORD_END, WORD_START = re.compile(r"[^\W_]*$"), re.compile(r"[^\W_]*")
"""Letters and digits, at the end and at the beginning of a text."""


@dataclass(frozen=True)
class Word:
    """The word that a free token helps to spell, on both sides: the run of letters and digits around it, without the signs
    that touch it; a token that is a sign is a word of its own.
    """

    source: Span
    """Its tokens among the row's free tokens."""
    target: Span
    """Its tokens in what the secondary reads."""
    left: str
    """The part of the word that is spelled before the token."""
    right: str
    """The part of the word that is spelled after the token."""


def words_at(source: Vocabulary, rows: Sequence[Ids], positions: Sequence[int], encoded: Sequence[Encoded]) -> list[Word]:
    """The word at each row's position; `encoded` is what the secondary reads for the rows."""
    words = []
    for row, position, target in zip(rows, positions, encoded, strict=True):
        prompt, spans = source.decode([row])[0], source.token_spans(row)
        start, end = spans[position]
        continues = start == end or prompt[end - 1].isalnum()
        left = WORD_END.search(prompt[:start])[0] if prompt[start : start + 1].isalnum() else ""  # type: ignore[index]
        right = WORD_START.match(prompt[end:])[0] if continues else ""  # type: ignore[index]
        first, last = start - len(left), end + len(right)
        tokens = [i for i, (a, b) in enumerate(spans) if (a < last and b > first and a < b) or i == position]
        words.append(
            Word(
                source=(tokens[0], tokens[-1] + 1),
                target=target.word((first, last)),
                left=left,
                right=right,
            )
        )
    return words
