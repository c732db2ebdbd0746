"""Words on both sides of an adapter: where a source token's word is in what the target reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapters.target import Target
from fuse.text.template import Encoded, overlapping
from fuse.text.vocabulary import Span, Vocabulary
from fuse.types import Ids

WORD_END, WORD_START = re.compile(r"[^\W_]*$"), re.compile(r"[^\W_]*")
"""Letters and digits, at the end and at the beginning of a text."""


@dataclass(frozen=True)
class Word:
    """The word that a free token helps to spell, on both sides.

    It is the run of letters and digits around the token, without the signs that touch it; a token
    that is a sign is a word of its own.
    """

    source: Span
    """Its tokens among the row's free tokens."""
    chars: Span
    """Its characters in the row's prompt."""
    target: Span
    """Its tokens in what the secondary reads; (0, 0) where the secondary's tokenizer drops it."""
    left: str
    """The part of the word that is spelled before the token."""
    right: str
    """The part of the word that is spelled after the token."""

    @property
    def num_source_tokens(self) -> int:
        """How many of the row's free tokens spell it."""
        return self.source[1] - self.source[0]

    @property
    def num_target_tokens(self) -> int:
        """How many of the secondary's tokens spell it."""
        return self.target[1] - self.target[0]


def words_at(
    source: Vocabulary,
    rows: Sequence[Ids],
    positions: Sequence[int],
    encoded: Sequence[Encoded],
) -> list[Word]:
    """Return the word at each row's position.

    Args:
        source: the primary's vocabulary.
        rows: free tokens of the source.
        positions: one position in each row.
        encoded: what the secondary reads for the rows.
    """
    words = []
    for row, position, read in zip(rows, positions, encoded, strict=True):
        words.append(_word_at(source, row, position, read))
    return words


def _word_at(source: Vocabulary, row: Ids, position: int, read: Encoded) -> Word:
    prompt, spans = source.decode([row])[0], source.token_spans(row)
    start, end = spans[position]
    left = right = ""
    if prompt[start : start + 1].isalnum():
        left = WORD_END.search(prompt[:start])[0]  # type: ignore[index]
    if start == end or prompt[end - 1].isalnum():
        right = WORD_START.match(prompt[end:])[0]  # type: ignore[index]
    chars = (start - len(left), end + len(right))
    first, last = overlapping(spans, chars)
    if first == last:
        first, last = position, position + 1
    tokens = (min(first, position), max(last, position + 1))
    return Word(tokens, chars, read.word(chars), left, right)


def target_scores(
    target: Target, encoded: Sequence[Encoded], words: Sequence[Word], point: str
) -> Float[Tensor, "b w"]:
    """Return the first-order change of each row's loss when one target token replaces its word.

    The loss is linearised with one embedding in the word's stead: for the `point` "current" the
    mean of the word's own embeddings, else the neutral point of that name.

    Args:
        encoded: what the secondary reads for each row.
        words: the word in each row that is replaced.
    """
    points = _points(target, encoded, words, point)
    collapsed = [row.collapsed(word.target) for row, word in zip(encoded, words, strict=True)]
    gradient = target.gradient(
        collapsed, [[word.target[0]] for word in words], list(points[:, None])
    )
    at_word = gradient.embedding[:, 0].to(points)
    products = target.vocabulary.table.inner_products(at_word)
    scores = (products - (at_word * points).sum(-1, keepdim=True)).float()
    return scores if gradient.labels is None else scores + gradient.labels[:, 0]


def _points(
    target: Target, encoded: Sequence[Encoded], words: Sequence[Word], point: str
) -> Float[Tensor, "b d"]:
    """Return the embedding that stands for each row's word where the loss is linearised."""
    if point != "current":
        return target.vocabulary.point(point).expand(len(words), -1)
    table = target.vocabulary.embedding
    means = []
    for row, word in zip(encoded, words, strict=True):
        # A word that the tokenizer drops has no tokens; its scores are not used
        ids = list(row.ids[slice(*word.target)]) or [0]
        means.append(table[ids].mean(0))
    return torch.stack(means)


def in_running_text(vocabulary: Vocabulary, words: Sequence[str]) -> list[Ids]:
    """Return each word's tokens when it stands after another word."""
    found = []
    texts = vocabulary.encode([f"a {word}" for word in words])
    for (ids, chars), word in zip(texts, words, strict=True):
        found.append(ids[slice(*overlapping(chars, (2, 2 + len(word))))])
    return found
