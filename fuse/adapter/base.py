"""What an adapter is: a secondary's gradient, told over the primary's tokens.

A new adapter is one file: a subclass that says how it is fitted to a pair of vocabularies, how it scores tokens, and
which tensors it keeps on disk.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter.fidelity import Fidelity, Report, Scored, Trial, compare, draw_trial, mean_fidelity
from fuse.models import Model
from fuse.types import Ids
from fuse.vocabulary import Encoded, Span, Vocabulary, overlapping

Progress = Callable[[Sequence[str]], Iterable[str]]
"""Hands on the items of a sequence, and shows how many have been taken."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of each row's loss at p places: by the embeddings there and, where tokens act as labels too, by those."""

    embedding: Float[Tensor, "b p d"]
    labels: Float[Tensor, "b p v"] | None = None


@runtime_checkable
class Target(Scored, Protocol):
    """The secondary as an adapter sees it: texts in, losses and gradients in its own space out."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The secondary's vocabulary."""
        ...

    def gradient(
        self, rows: Sequence[Encoded], places: Sequence[Sequence[int]], read: Sequence[Float[Tensor, "_ d"]] | None = None
    ) -> Gradient:
        """Gradients of the rows' losses at `places`, where row i reads `read[i]`, if that is given."""
        ...

    def vector_gradient(self, rows: Sequence[Encoded]) -> Float[Tensor, "b e"] | None:
        """Gradients of the rows' losses by the vectors that the secondary makes of them; None where it makes none."""
        ...


class Adapter(ABC):
    """A map between the vocabularies of one pair of models."""

    defaults: ClassVar[dict[str, int | float]] = {}
    """The settings of `fit` and their values where nothing else is said."""
    ranks: ClassVar[bool] = True
    """Whether it tells how the primary's tokens rank; one that does not proposes prompts instead."""

    def __init__(self, source: Vocabulary, target: Vocabulary) -> None:
        self.source = source
        self.target = target
        self.fidelity: Fidelity | None = None
        """How well it ranked, as measured after the fit."""

    @classmethod
    @abstractmethod
    def fit(cls, source: Vocabulary, target: Model, words: Iterable[str] = (), progress: Progress = iter, **settings: float) -> Adapter:
        """Fit to the primary's vocabulary and the secondary.

        Args:
            words: those of the corpus, the most frequent first, each once.
            progress: wraps what the fit goes through, to show how far it is.
            settings: as in `defaults`.
        """

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

    def covers(self, words: Sequence[str]) -> list[bool]:
        """Which words it has something of its own to say of; of the others it judges by a stated fallback."""
        return [len(ids) > 0 for ids in in_running_text(self.target, words)]

    def fit_errors(self, words: Sequence[str]) -> dict[str, float]:
        """The relative squared error of a fitted map on words, by their numbers of source and target tokens ("1x2").

        Empty where no map is fitted.
        """
        return {}

    def judge(self, trial: Trial, target: Target, point: str = "current") -> Fidelity:
        """How well the scores tell the losses of one trial."""
        scores = self.token_scores([trial.row], [trial.position], target, point)[0].cpu()
        return compare(scores[trial.tokens], trial.losses)

    def measure(
        self, target: Target, texts: Sequence[str], generator: torch.Generator, candidates: int = 128, point: str = "current"
    ) -> Fidelity | None:
        """The fidelity over one trial for each text; None for an adapter that does not rank."""
        if not self.ranks:
            return None
        trials = [draw_trial(self.source, target, text, candidates, generator) for text in texts]
        return mean_fidelity([self.judge(trial, target, point) for trial in trials])

    def report(
        self,
        target: Target,
        texts: Sequence[str],
        words: Sequence[str],
        generator: torch.Generator,
        candidates: int = 1500,
        point: str = "current",
    ) -> Report:
        """What is known of the adapter: its fidelity on these texts, as `measure` has it, and how far it covers `words`."""
        own = [self.source.token_texts[token].strip() for token in self.source.allowed.nonzero().flatten().tolist()]
        vocabulary, corpus = (self.covers(of) for of in (own, words))
        return Report(
            fidelity=self.measure(target, texts, generator, candidates, point),
            vocabulary=sum(vocabulary) / max(1, len(vocabulary)),
            corpus=sum(corpus) / max(1, len(corpus)),
            fit_errors=self.fit_errors(words),
        )

    def proposals(
        self, rows: Sequence[Ids], positions: Sequence[int], target: Target, top_k: int, point: str = "current"
    ) -> list[list[str]]:
        """For each row up to `top_k` prompts that differ from it by a word of the secondary's own at the position; mostly none."""
        return [[] for _ in rows]

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
    chars: Span
    """Its characters in the row's prompt."""
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
                chars=(first, last),
                target=target.word((first, last)),
                left=left,
                right=right,
            )
        )
    return words


def target_scores(target: Target, encoded: Sequence[Encoded], words: Sequence[Word], point: str) -> Float[Tensor, "b w"]:
    """First-order change of each row's loss when one target token w stands in the place of its whole word.

    The loss is linearised with one embedding there: the mean of the word's own, or a neutral `point`.
    """
    table = target.vocabulary.embedding
    own = [table[list(e.ids[slice(*word.target)]) or [0]].mean(0) for e, word in zip(encoded, words, strict=True)]
    points = torch.stack(own if point == "current" else [target.vocabulary.point(point)] * len(words))
    collapsed = [e.collapsed(word.target) for e, word in zip(encoded, words, strict=True)]
    gradient = target.gradient(collapsed, [[word.target[0]] for word in words], list(points[:, None]))
    at_word = gradient.embedding[:, 0].to(points)
    scores = (target.vocabulary.table.inner_products(at_word) - (at_word * points).sum(-1, keepdim=True)).float()
    return scores if gradient.labels is None else scores + gradient.labels[:, 0]


def in_running_text(vocabulary: Vocabulary, words: Sequence[str]) -> list[Ids]:
    """Each word's tokens when it stands after another one."""
    texts = vocabulary.encode([f"a {word}" for word in words])
    spans = [(ids, overlapping(chars, (2, 2 + len(word)))) for (ids, chars), word in zip(texts, words, strict=True)]
    return [ids[slice(*span)] for ids, span in spans]
