"""Trials of an adapter's scores against true changes of a secondary's loss."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fuse.adapters.target import Scored
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.statistics import rank_correlation
from fuse.types import Ids

MAX_TRIAL_TOKENS = 16
"""How many tokens of a text a trial keeps."""
NUM_BEST = 10
"""How many of the truly best substitutions `Fidelity.recall` looks for."""


@dataclass(frozen=True)
class Trial:
    """One position in a row of source tokens, and the secondary's loss with other tokens there."""

    row: Ids
    position: int
    tokens: Int[Tensor, " n"]
    losses: Float[Tensor, " n"]


@dataclass(frozen=True)
class Fidelity:
    """How predicted losses agree with true ones, in the mean over trials.

    Each number is 1 at best; by chance they are 0, 0.1 and 0.
    """

    spearman: float
    """Rank correlation of predicted and true losses."""
    recall: float
    """Share of the truly best 10 substitutions in the best tenth of the ranking."""
    cosine: float
    """Between predicted and true changes of the loss, both less their mean."""


@dataclass(frozen=True)
class Report:
    """How far an adapter can be trusted with its pair of models."""

    fidelity: Fidelity | None
    """None for an adapter that does not rank."""
    vocabulary: float
    """Share of the source's tokens that the adapter covers."""
    corpus: float
    """Share of the corpus's words that it covers."""
    fit_errors: dict[str, float]
    """As `Adapter.fit_errors`."""


def draw_trial(
    source: EmbeddedVocabulary,
    target: Scored,
    text: str,
    candidates: int,
    generator: torch.Generator,
    words: Set[str] = frozenset(),
) -> Trial:
    """Replace a random word of a text, but for its first, by random words of one source token each.

    What the target cannot read stays out: a text is cut at its end until it fits the target's
    context, and substitutions that are longer than it, or whose loss overflows, are left out.

    Args:
        candidates: how many substitutions are tried at most.
        words: the words to draw from; empty for all.

    Returns:
        The trial; without tokens where the target can read none of the texts.
    """
    row = _beginning(source, target, text)
    starts = []
    for i, token in enumerate(row):
        if i and source.token_texts[token][:1].isspace():
            starts.append(i)
    starts = starts or [0]
    position = starts[int(torch.randint(len(starts), (1,), generator=generator))]
    tokens = _word_tokens(source, words)
    tokens = tokens[torch.randperm(len(tokens), generator=generator)[:candidates]]
    if not row:
        return Trial(row, position, tokens[:0], torch.zeros(0))
    changed = [(*row[:position], token, *row[position + 1 :]) for token in tokens.tolist()]
    encoded = target.encode(source.decode(changed))
    kept = [i for i, fits in enumerate(target.fits(encoded)) if fits]
    losses = target.score([encoded[i] for i in kept]).cpu() if kept else torch.zeros(0)
    finite = losses.isfinite()
    return Trial(row, position, tokens[kept][finite], losses[finite])


def _beginning(source: EmbeddedVocabulary, target: Scored, text: str) -> Ids:
    """Return the first tokens of a text that the target can read; none where one is too long."""
    ids = source.encode([text])[0][0][:MAX_TRIAL_TOKENS]
    beginnings = [ids[:end] for end in range(len(ids), 0, -1)]
    fits = target.fits(target.encode(source.decode(beginnings)))
    return beginnings[fits.index(True)] if True in fits else ()


def compare(predicted: Float[Tensor, " n"], true: Float[Tensor, " n"]) -> Fidelity:
    """Compare predicted and true losses (lower is better) over n > 0 substitutions."""
    predicted, true = predicted.cpu(), true.cpu()
    best = set(true.topk(min(NUM_BEST, len(true)), largest=False).indices.tolist())
    tenth = max(1, len(predicted) // 10)
    shortlist = set(predicted.topk(tenth, largest=False).indices.tolist())
    cosine = cosine_similarity(_centred(predicted), _centred(true), dim=0)
    recall = len(best & shortlist) / len(best)
    return Fidelity(rank_correlation(predicted, true), recall, float(cosine))


def _centred(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return values less their mean, in float64."""
    return values.double() - values.double().mean()


def mean_fidelity(found: Sequence[Fidelity]) -> Fidelity | None:
    """Return the mean over trials, or over points; None of nothing."""
    if not found:
        return None
    spearman = sum(one.spearman for one in found) / len(found)
    recall = sum(one.recall for one in found) / len(found)
    cosine = sum(one.cosine for one in found) / len(found)
    return Fidelity(spearman, recall, cosine)


def _word_tokens(source: EmbeddedVocabulary, words: Set[str]) -> Int[Tensor, " c"]:
    """Return the allowed tokens that spell one of these words after a space.

    Without words, those that spell any of letters alone; all allowed ones, where there are none.
    """
    allowed = source.allowed.nonzero().flatten().tolist()
    chosen = []
    for token in allowed:
        text = source.token_texts[token]
        word = text.strip()
        if text[:1].isspace() and (word in words if words else word.isalpha()):
            chosen.append(token)
    return torch.tensor(chosen or allowed)
