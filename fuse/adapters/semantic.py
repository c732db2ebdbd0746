"""The semantic adapter: what the secondary makes of each word alone, beside the lexical scores.

A token gradient is taken at one point of a secondary's input, far from where a word will put it. A
model that maps a text to one vector offers a second gradient, at its output: for the vector s of
the row and s_w of word w alone, putting w into the row changes the loss by about a x s_w .
dloss/ds, where a > 0 is the same for all words. No context is needed to know s_w, so that it is
computed once for every word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Doc

from fuse.adapters.alignment import Word, in_running_text, words_at
from fuse.adapters.base import Progress
from fuse.adapters.checks import check_names, checked_floats, checked_integers
from fuse.adapters.lexical import LexicalAdapter, checked_subtokens
from fuse.adapters.target import Target
from fuse.models import Model, VectorModel
from fuse.nn.batch import pad
from fuse.nn.embedding_table import EmbeddedVocabulary, EmbeddingTable
from fuse.options import Count
from fuse.statistics import standardised
from fuse.text.template import Encoded, Template
from fuse.text.vocabulary import Vocabulary
from fuse.types import Ids

BATCH_WORDS = 256
"""How many words are read at once."""


@dataclass(frozen=True)
class Spellings:
    """Which words the source's tokens may be spelling after some tokens of their word."""

    shares: Float[Tensor, "v w"]
    """The share of word w in what token v spells (sparse)."""
    tokens: Int[Tensor, " n"]
    """The tokens that spell any."""


@dataclass(frozen=True)
class _ReadWord:
    """A word, and what the secondary reads for it alone."""

    text: str
    encoded: Encoded


@dataclass(frozen=True)
class SemanticSettings:
    """How many words the adapter reads."""

    max_words: Annotated[Count, Doc("of the corpus, the most frequent")] = 30_000


class SemanticAdapter(LexicalAdapter):
    """Adds a ranking by whole words' vectors to the lexical one.

    A token stands for all the words that it may be spelling, in shares of 1 / rank (Zipf's law):
    those of `words` that begin, token for token, with what stands before it in its word and with
    it. Both rankings are standardised over the tokens that have both, and summed at the lexical
    scores' scale.

    Rule for what has no vector: where a token spells none of the words, and where a secondary makes
    no vectors, the lexical scores stand alone. Words longer than the secondary's context are left
    out of `words`.
    """

    settings = SemanticSettings

    def __init__(
        self, lexical: LexicalAdapter, words: Sequence[Ids], vectors: Float[Tensor, "w e"]
    ) -> None:
        super().__init__(lexical.source, lexical.target, lexical.subtokens)
        self.words = list(words)
        """The source's tokens of different words, the most frequent first."""
        self.vectors = vectors.to(self.target.embedding.device)
        """The secondary's vector of each word alone."""
        self._table = EmbeddingTable(self.vectors)
        self._continuations: dict[Ids, list[tuple[int, int]]] = {}
        """After the tokens that begin a word: the next token, and the index of the word."""
        for index, word in enumerate(self.words):
            for position, token in enumerate(word):
                self._continuations.setdefault(word[:position], []).append((token, index))
        self._spellings = lru_cache(maxsize=64)(self._build_spellings)

    @classmethod
    def fit(
        cls,
        source: EmbeddedVocabulary,
        target: Model,
        words: Iterable[str] = (),
        progress: Progress = iter,
        **settings: float,
    ) -> SemanticAdapter:
        """Re-tokenise the whole vocabulary, and read words alone.

        These are `max_words` words of the corpus, and all that single tokens spell.
        """
        lexical = LexicalAdapter.fit(source, target)
        if not isinstance(target, VectorModel):
            return cls(lexical, [], torch.zeros(0, 0))
        max_words = int({**cls.defaults(), **settings}["max_words"])
        found = _different_words(source, target.vocabulary, list(islice(words, max_words)))
        return cls(lexical, list(found), _vectors(target, list(found.values()), progress))

    @classmethod
    def from_tensors(
        cls, source: EmbeddedVocabulary, target: Model, tensors: Mapping[str, Tensor]
    ) -> SemanticAdapter:
        check_names(tensors, "counts", "pieces", "vectors", "word_tokens", "word_lengths")
        subtokens = checked_subtokens(source, target.vocabulary, tensors)
        lexical = LexicalAdapter(source, target.vocabulary, subtokens)
        tokens = checked_integers(tensors, "word_tokens", 0, len(source))
        lengths = checked_integers(tensors, "word_lengths", 1, len(tokens) + 1)
        if int(lengths.sum()) != len(tokens):
            raise ValueError(
                f"word_tokens has {len(tokens)} numbers, expected {int(lengths.sum())}"
            )
        if not isinstance(target, VectorModel):
            if len(lengths):
                raise ValueError("it holds words, but the secondary makes no vectors")
            return cls(lexical, [], torch.zeros(0, 0))
        vectors = checked_floats(tensors, "vectors", (len(lengths), _width(target)))
        if not len(lengths):
            raise ValueError("it holds no words")
        words = [tuple(word.tolist()) for word in tokens.split(lengths.tolist())]
        return cls(lexical, words, vectors)

    def tensors(self) -> dict[str, Tensor]:
        tokens = torch.tensor(list(chain.from_iterable(self.words)), dtype=torch.int32)
        lengths = torch.tensor([len(word) for word in self.words], dtype=torch.int32)
        vectors = self.vectors.cpu().half()
        own = {"vectors": vectors, "word_tokens": tokens, "word_lengths": lengths}
        return {**super().tensors(), **own}

    def token_scores(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        point: str = "current",
    ) -> Float[Tensor, "b v"]:
        encoded = target.encode(self.source.decode(rows))
        words = words_at(self.source, rows, positions, encoded)
        scores = self._input_scores(encoded, words, target, point)
        gradient = target.vector_gradient(encoded) if self.words else None
        if gradient is None:
            return scores
        by_word = self._table.inner_products(gradient.to(self.vectors)).to(scores)
        for i, (row, position, word) in enumerate(zip(rows, positions, words, strict=True)):
            spellings = self._spellings_at(row, position, word)
            if spellings is not None:
                scores[i] = _mixed(scores[i], by_word[i], spellings)
        return scores

    def _spellings_at(self, row: Ids, position: int, word: Word) -> Spellings | None:
        """Return what tokens may spell at a position; None where too little is known of it."""
        if word.right:
            return None
        spellings = self._spellings(row[word.source[0] : position] if word.left else ())
        return spellings if len(spellings.tokens) > 1 else None

    def _build_spellings(self, before: Ids) -> Spellings:
        """Return what each token may spell after the tokens `before` of its word."""
        found = list(self._continuations.get(before, []))
        if before:  # a token may begin another word, too
            begins = self.source.begins_word.tolist()
            found += [pair for pair in self._continuations[()] if begins[pair[0]]]
        tokens, words = torch.tensor(found, dtype=torch.long).reshape(-1, 2).unbind(1)
        weights = 1.0 / (words + 1)
        total = torch.zeros(len(self.source)).index_add_(0, tokens, weights)
        indices, shape = torch.stack([tokens, words]), (len(self.source), len(self.words))
        shares = weights / total[tokens]
        matrix = torch.sparse_coo_tensor(indices, shares, shape, check_invariants=True)
        device = self.vectors.device
        return Spellings(matrix.coalesce().to(device), total.nonzero().flatten().to(device))


def _mixed(
    scores: Float[Tensor, " v"], by_word: Float[Tensor, " w"], spellings: Spellings
) -> Float[Tensor, " v"]:
    """Add the words' ranking to that of scores at the input, at the scale of these."""
    own = scores[spellings.tokens]
    output = (spellings.shares @ by_word)[spellings.tokens]
    both = standardised(torch.stack([own, output])).sum(0) / 2**0.5
    return scores.index_copy(0, spellings.tokens, own.mean() + own.std() * both)


def _different_words(
    source: EmbeddedVocabulary, target: Vocabulary, texts: Sequence[str]
) -> dict[Ids, _ReadWord]:
    """Return different words by their source tokens, and those that other tokens spell alone.

    Words with tokens that are not allowed, or longer than the target's context, are left out.
    """
    allowed = source.allowed.tolist()
    whole: dict[Ids, str] = {}
    for ids, text in zip(in_running_text(source, texts), texts, strict=True):
        if ids and all(allowed[token] for token in ids):
            whole[ids] = text
    found = _readable(target, whole)
    begin = {ids[0] for ids in found}
    alone: dict[Ids, str] = {}
    for token, text in enumerate(source.token_texts):
        if allowed[token] and token not in begin:
            alone[(token,)] = text.strip()
    return {**found, **_readable(target, alone)}


def _readable(target: Vocabulary, texts: Mapping[Ids, str]) -> dict[Ids, _ReadWord]:
    """Return those words that fit the target's context, and what it reads for them."""
    found = {}
    encoded = Template().encode(target, list(texts.values()))
    for (ids, text), row in zip(texts.items(), encoded, strict=True):
        if len(row.ids) <= target.max_length:
            found[ids] = _ReadWord(text, row)
    return found


@torch.no_grad()
def _vectors(
    model: VectorModel, words: list[_ReadWord], progress: Progress
) -> Float[Tensor, "w e"]:
    """Return the model's vector of each word alone; words of like length are read together, and
    what the model reads alike, as one that knows no capitals does, is read once.
    """
    if not words:
        return torch.zeros(0, 0)
    rows = {word.encoded.ids: word for word in words}
    order = sorted(rows, key=len)
    shown = iter(progress([rows[ids].text for ids in order]))
    found: list[Tensor] = []
    for start in range(0, len(order), BATCH_WORDS):
        batch = [rows[ids].encoded for ids in order[start : start + BATCH_WORDS]]
        found.append(model.vector(pad(batch, model.device)).float().cpu())
        for _ in batch:
            next(shown)
    index = {ids: i for i, ids in enumerate(order)}
    return torch.cat(found)[torch.tensor([index[word.encoded.ids] for word in words])]


@torch.no_grad()
def _width(model: VectorModel) -> int:
    """Return how many numbers the model's vectors have."""
    (shortest,) = Template().encode(model.vocabulary, ["a"])
    return model.vector(pad([shortest], model.device)).shape[1]
