"""The contract of an adapter: it turns a secondary's gradient into scores of the primary's tokens.

A new adapter is one file: a subclass that defines how it is fitted to a pair of vocabularies, how
it scores tokens, and which tensors it keeps on disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapters.alignment import in_running_text
from fuse.adapters.fidelity import Fidelity, Report, Trial, compare, draw_trial, mean_fidelity
from fuse.adapters.target import Target
from fuse.models import Model
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.options import options_of
from fuse.types import Ids

Progress = Callable[[Sequence[str]], Iterable[str]]
"""Hands on the items of a sequence, and shows how many have been taken."""


@dataclass(frozen=True)
class NoSettings:
    """The settings of an adapter that has none."""


class Adapter(ABC):
    """A map between the vocabularies of one pair of models."""

    settings: ClassVar[type] = NoSettings
    """A dataclass of the settings of `fit`."""
    ranks: ClassVar[bool] = True
    """Whether it ranks the primary's tokens; one that does not proposes prompts instead."""

    def __init__(self, source: EmbeddedVocabulary, target: EmbeddedVocabulary) -> None:
        self.source = source
        self.target = target
        self.fidelities: dict[str, Fidelity] = {}
        """How well it ranks, as measured at each point where losses are linearised."""
        self.fidelity: Fidelity | None = None
        """The mean over the points of this run; None where it was not measured."""

    @classmethod
    def defaults(cls) -> dict[str, int | float]:
        """Return the settings of `fit` and their values where nothing else is set."""
        return {name: option.default for name, option in options_of(cls.settings).items()}

    @classmethod
    @abstractmethod
    def fit(
        cls,
        source: EmbeddedVocabulary,
        target: Model,
        words: Iterable[str] = (),
        progress: Progress = iter,
        **settings: float,
    ) -> Adapter:
        """Fit an adapter to the primary's vocabulary and the secondary.

        Args:
            words: those of the corpus, the most frequent first, each once.
            progress: wraps what the fit goes through, to show how far it is.
            settings: fields of the dataclass `settings`.
        """

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, source: EmbeddedVocabulary, target: Model, tensors: Mapping[str, Tensor]
    ) -> Adapter:
        """Make the adapter whose `tensors()` these are.

        Raises:
            KeyError, ValueError: they are not such tensors for this pair.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the fit found."""

    @abstractmethod
    def token_scores(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        point: str = "current",
    ) -> Float[Tensor, "b v"]:
        """Return the first-order change of each row's loss when one token becomes v.

        Args:
            rows: free tokens of the source; each row's text fits the target's context.
            positions: the position of that token in each row.
            target: the secondary.
            point: what the target reads there where its loss is linearised, one of
                `fuse.nn.embedding_table.POINTS`.

        Returns:
            The changes, up to a constant in each row.
        """

    def covers(self, words: Sequence[str]) -> list[bool]:
        """Return for which words it has scores of their own.

        Others are scored by a fallback that the adapter states. Words that the secondary's
        tokenizer drops, or that are longer than its context, are never covered.
        """
        limit = self.target.max_text_tokens
        return [0 < len(ids) <= limit for ids in in_running_text(self.target, words)]

    def fit_errors(self, words: Sequence[str]) -> dict[str, float]:
        """Return the relative squared error of a fitted map on words.

        Returns:
            Errors by the words' numbers of source and target tokens ("1x2"); empty where no map is
            fitted.
        """
        return {}

    def judge(self, trial: Trial, target: Target, point: str = "current") -> Fidelity:
        """Compare the scores with the losses of one trial."""
        scores = self.token_scores([trial.row], [trial.position], target, point)[0].cpu()
        return compare(scores[trial.tokens], trial.losses)

    def measure(
        self,
        target: Target,
        texts: Sequence[str],
        generator: torch.Generator,
        candidates: int = 128,
        point: str = "current",
    ) -> Fidelity | None:
        """Return the mean fidelity over one trial for each text.

        Args:
            candidates: how many substitutions a trial has.
            point: as `token_scores` takes it.

        Returns:
            None for an adapter that does not rank, and where the target can read no substitution.
        """
        if not self.ranks:
            return None
        drawn = [draw_trial(self.source, target, text, candidates, generator) for text in texts]
        trials = [trial for trial in drawn if len(trial.tokens) > 1]
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
        """Report how far the adapter can be trusted.

        Args:
            texts: as `measure` takes them, and so `generator`, `candidates` and `point`.
            words: those of a corpus, of which the covered share is reported.
        """
        tokens = self.source.allowed.nonzero().flatten().tolist()
        own = [self.source.token_texts[token].strip() for token in tokens]
        return Report(
            fidelity=self.measure(target, texts, generator, candidates, point),
            vocabulary=_share(self.covers(own)),
            corpus=_share(self.covers(words)),
            fit_errors=self.fit_errors(words),
        )

    def proposals(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        top_k: int,
        point: str = "current",
    ) -> list[list[str]]:
        """Return prompts that have a word of the secondary's own at each row's position.

        Returns:
            For each row up to `top_k` prompts; none for adapters that rank.
        """
        return [[] for _ in rows]

    def embedding_gradient(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        point: str = "current",
    ) -> Float[Tensor, "b d"]:
        """Return the gradient of each row's loss by the source embedding at its position.

        By least squares from the scores, where an adapter knows nothing better.
        """
        return self.source.as_embedding_gradient(self.token_scores(rows, positions, target, point))


def _share(covered: Sequence[bool]) -> float:
    """Return the share of what is covered; 0 of nothing."""
    return sum(covered) / max(1, len(covered))
