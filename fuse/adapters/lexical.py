"""The lexical adapter: re-tokenise every source word and read the target's own gradient.

No map is fitted. The word around a source token is replaced, on the target's side, by one point e
(the mean of its own embeddings, or a neutral one), where the secondary's loss is linearised. A
candidate token v spells a word of target tokens k; the predicted change of loss is the mean over k
of g . (E_k - e), where g is the gradient at e. (A mean, not a sum: a sum ranks just as well among
words, but lets long rows of dashes win by their mere number of tokens.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fuse.adapters.alignment import Word, target_scores, words_at
from fuse.adapters.base import Adapter, Progress
from fuse.adapters.checks import check_names, checked_integers
from fuse.adapters.target import Target
from fuse.models import Model
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.text.template import Encoded
from fuse.types import Ids

MAX_CACHED_TOKENS = 5_000_000
"""How many source tokens, over all the surroundings inside words, are kept re-tokenised."""


@dataclass(frozen=True)
class Subtokens:
    """The target tokens that spell each source token: n pairs of a source token and one of them."""

    source: Int[Tensor, " n"]
    target: Int[Tensor, " n"]

    @staticmethod
    def spelling(target: EmbeddedVocabulary, texts: Mapping[int, str]) -> Subtokens:
        """Tokenise the texts that some source tokens stand for."""
        source: list[int] = []
        found: list[int] = []
        for token, ids in zip(texts, target.encode_ids(list(texts.values())), strict=True):
            source += [token] * len(ids)
            found += ids
        return Subtokens(torch.tensor(source).long(), torch.tensor(found).long())

    def replaced(self, tokens: Iterable[int], other: Subtokens) -> Subtokens:
        """Return the same pairs, but for these source tokens those of `other`."""
        kept = ~torch.isin(self.source, torch.tensor(list(tokens)).long())
        source = torch.cat([self.source[kept], other.source])
        return Subtokens(source, torch.cat([self.target[kept], other.target]))


class LexicalAdapter(Adapter):
    """Scores each source token by the mean over its `subtokens`.

    Rule for tokens inside a word: a token that would continue the word is scored by the whole word
    that it would spell there, between what is spelled before and after it; one that begins a word
    of its own, by that word.
    """

    def __init__(
        self, source: EmbeddedVocabulary, target: EmbeddedVocabulary, subtokens: Subtokens
    ) -> None:
        super().__init__(source, target)
        self.subtokens = subtokens
        """Those of each source token as a word of its own."""
        num_matrices = max(16, MAX_CACHED_TOKENS // len(source))
        self._matrix = lru_cache(maxsize=num_matrices)(self._build_matrix)

    @classmethod
    def fit(
        cls,
        source: EmbeddedVocabulary,
        target: Model,
        words: Iterable[str] = (),
        progress: Progress = iter,
        **settings: float,
    ) -> LexicalAdapter:
        """Re-tokenise the whole vocabulary; no corpus and no settings are needed."""
        tokens = source.allowed.nonzero().flatten().tolist()
        own = {token: source.token_texts[token].strip() for token in tokens}
        return cls(source, target.vocabulary, Subtokens.spelling(target.vocabulary, own))

    @classmethod
    def from_tensors(
        cls, source: EmbeddedVocabulary, target: Model, tensors: Mapping[str, Tensor]
    ) -> LexicalAdapter:
        check_names(tensors, "counts", "pieces")
        return cls(source, target.vocabulary, checked_subtokens(source, target.vocabulary, tensors))

    def tensors(self) -> dict[str, Tensor]:
        counts = torch.bincount(self.subtokens.source, minlength=len(self.source))
        # The file's names are those of its first version
        return {"pieces": self.subtokens.target.to(torch.int32), "counts": counts.to(torch.int32)}

    def token_scores(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        point: str = "current",
    ) -> Float[Tensor, "b v"]:
        encoded = target.encode(self.source.decode(rows))
        words = words_at(self.source, rows, positions, encoded)
        return self._input_scores(encoded, words, target, point)

    def _input_scores(
        self, encoded: Sequence[Encoded], words: Sequence[Word], target: Target, point: str
    ) -> Float[Tensor, "b v"]:
        """Score all tokens in place of each row's word, by the gradient at the target's input."""
        scores = target_scores(target, encoded, words, point)
        # A word that the target's tokenizer drops changes nothing
        read = torch.tensor([word.num_target_tokens > 0 for word in words], device=scores.device)
        found = []
        for word, row in zip(words, scores * read[:, None], strict=True):
            found.append(self._matrix(word.left, word.right) @ row)
        return torch.stack(found)

    def _build_matrix(self, left: str, right: str) -> Float[Tensor, "v w"]:
        """Return the share of target token w in the word that source token v spells (sparse).

        The word is `left`, the token and `right`.
        """
        subtokens = self._inside_word(left, right) if left or right else self.subtokens
        counts = torch.bincount(subtokens.source, minlength=len(self.source))
        shares = 1 / counts[subtokens.source]
        indices = torch.stack([subtokens.source, subtokens.target])
        shape = (len(self.source), len(self.target))
        matrix = torch.sparse_coo_tensor(indices, shares, shape, check_invariants=True)
        return matrix.coalesce().to(self.target.embedding.device)

    def _inside_word(self, left: str, right: str) -> Subtokens:
        """Return the subtokens of left + v + right for every source token v that continues a word.

        Those of other tokens are their own.
        """
        texts = {}
        for token in self.source.allowed.nonzero().flatten().tolist():
            text = self.source.token_texts[token]
            if not left or not text[:1].isspace():
                texts[token] = (left + text + right).strip()
        return self.subtokens.replaced(texts, Subtokens.spelling(self.target, texts))


def checked_subtokens(
    source: EmbeddedVocabulary, target: EmbeddedVocabulary, tensors: Mapping[str, Tensor]
) -> Subtokens:
    """Return the subtokens that a fitted file holds.

    Raises:
        KeyError, ValueError: it holds none that fit the pair.
    """
    ids = checked_integers(tensors, "pieces", 0, len(target))
    counts = checked_integers(tensors, "counts", 0, len(ids) + 1, len(source))
    if not len(ids):
        raise ValueError("it holds no subtokens")
    if int(counts.sum()) != len(ids):
        raise ValueError(f"pieces has {len(ids)} numbers, expected {int(counts.sum())}")
    return Subtokens(torch.arange(len(source)).repeat_interleave(counts), ids)
