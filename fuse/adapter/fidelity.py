"""Trials of what an adapter says: what truly happens to a secondary's loss when one token gives way to another."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fuse.types import Ids
from fuse.vocabulary import Encoded, Vocabulary

LONGEST = 16
"""Tokens of a text that a trial keeps."""


@runtime_checkable
class Scored(Protocol):
    """A secondary that tells the losses of texts."""

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """What it reads for each prompt."""
        ...

    def score(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """The loss of every row."""
        ...


@dataclass(frozen=True)
class Trial:
    """One place in a row of source tokens, other tokens for it, and the secondary's loss with each."""

    row: Ids
    position: int
    tokens: Int[Tensor, " n"]
    losses: Float[Tensor, " n"]


@dataclass(frozen=True)
class Fidelity:
    """How predictions agree with what is true, in the mean over trials; each is 1 at best, and by chance 0, 0.1 and 0."""

    spearman: float
    """Rank correlation of predicted and true losses."""
    recall: float
    """Share of the truly best 10 substitutions in the best tenth of the ranking."""
    cosine: float
    """Between predicted and true changes of the loss, both less their mean."""


@dataclass(frozen=True)
class Report:
    """What is known of an adapter and its pair of models."""

    fidelity: Fidelity | None
    """None for an adapter that does not rank."""
    vocabulary: float
    """Share of the source's tokens of which the adapter has something of its own to say."""
    corpus: float
    """Share of the corpus's words."""
    fit_errors: dict[str, float]
    """As `Adapter.fit_errors`."""


def draw_trial(
    source: Vocabulary, target: Scored, text: str, candidates: int, generator: torch.Generator, words: Set[str] = frozenset()
) -> Trial:
    """A trial at a random word of a text, but for its first, with random words that are single tokens of the source.

    `words` are those to draw from; empty for all.
    """
    row = source.encode([text])[0][0][:LONGEST]
    starts = [i for i, token in enumerate(row) if i and source.token_texts[token][:1].isspace()] or [0]
    position = starts[int(torch.randint(len(starts), (1,), generator=generator))]
    tokens = _word_tokens(source, words)
    tried = tokens[torch.randperm(len(tokens), generator=generator)[:candidates]]
    texts = source.decode([(*row[:position], token, *row[position + 1 :]) for token in tried.tolist()])
    return Trial(row, position, tried, target.score(target.encode(texts)))


def compare(predicted: Float[Tensor, " n"], true: Float[Tensor, " n"], best: int = 10) -> Fidelity:
    """Predicted and true losses (lower is better) over n substitutions."""
    wanted = set(true.topk(min(best, len(true)), largest=False).indices.tolist())
    shortlist = set(predicted.topk(max(1, len(predicted) // 10), largest=False).indices.tolist())
    a, b = (x.double() - x.double().mean() for x in (predicted, true))
    return Fidelity(rank_correlation(predicted, true), len(wanted & shortlist) / len(wanted), float(cosine_similarity(a, b, dim=0)))


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Spearman's, between -1 and 1."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def mean_fidelity(found: Sequence[Fidelity]) -> Fidelity:
    """The mean over trials."""
    return Fidelity(*(sum(getattr(f, name) for f in found) / len(found) for name in ("spearman", "recall", "cosine")))


def _word_tokens(source: Vocabulary, words: Set[str]) -> Int[Tensor, " c"]:
    """The allowed tokens that spell one of these words, or any of letters, after a space; all allowed ones, where there are no such."""
    texts, allowed = source.token_texts, source.allowed.nonzero().flatten().tolist()
    spelled = {token: texts[token].strip() for token in allowed if texts[token][:1].isspace()}
    chosen = [token for token, text in spelled.items() if (text in words if words else text.isalpha())]
    return torch.tensor(chosen or allowed)
