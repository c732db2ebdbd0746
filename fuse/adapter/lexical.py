"""The lexical adapter: re-tokenise every source word by the target's tokenizer and read the target's own gradient.

No map is fitted. The word around a source token is replaced, on the target's side, by one point e (the mean of its own
embeddings, or a neutral one), where the secondary's loss is linearised. A candidate token v spells a word of target
tokens k; the predicted change of loss is the mean over k of g . (E_k - e), g being the gradient at e. (A mean, not a sum:
a sum ranks just as well among words, but lets long rows of dashes win by their mere number of tokens.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fuse.adapter.base import Adapter, Progress, Target, Word, target_scores, words_at
from fuse.models import Model
from fuse.types import Ids
from fuse.vocabulary import Encoded, Vocabulary

CACHED_TOKENS = 5_000_000
"""How many re-tokenised tokens, over all the surroundings inside words, are remembered."""


class LexicalAdapter(Adapter):
    """`pieces` [v k] holds each source token's target tokens when it is a word of its own, filled up by -1.

    Rule for tokens inside a word: a token that would continue the word is judged by the whole word that it would spell
    there, between what is spelled before and after it; one that begins a word of its own, by that word.
    """

    def __init__(self, source: Vocabulary, target: Vocabulary, pieces: Int[Tensor, "v k"]) -> None:
        super().__init__(source, target)
        self.pieces = pieces
        self._matrix = lru_cache(maxsize=max(16, CACHED_TOKENS // len(source)))(self._build_matrix)

    @classmethod
    def fit(
        cls, source: Vocabulary, target: Model, words: Iterable[str] = (), progress: Progress = iter, **settings: float
    ) -> LexicalAdapter:
        """Re-tokenise the whole vocabulary; no corpus and no settings are needed."""
        tokens = source.allowed.nonzero().flatten().tolist()
        own = {token: source.token_texts[token].strip() for token in tokens}
        return cls(source, target.vocabulary, _spelled(source, target.vocabulary, own))

    @classmethod
    def from_tensors(cls, source: Vocabulary, target: Vocabulary, tensors: dict[str, Tensor]) -> LexicalAdapter:
        counts, flat = tensors["counts"].long(), tensors["pieces"].long()
        if len(counts) != len(source) or counts.sum() != len(flat) or counts.min() < 0 or flat.max() >= len(target):
            raise ValueError(f"its pieces do not fit a pair of {len(source)} and {len(target)} tokens")
        pieces = torch.full((len(counts), int(counts.max())), -1)
        pieces[torch.arange(pieces.shape[1]) < counts[:, None]] = flat
        return cls(source, target, pieces)

    def tensors(self) -> dict[str, Tensor]:
        real = self.pieces >= 0
        return {"pieces": self.pieces[real].to(torch.int32), "counts": real.sum(1).to(torch.int32)}

    def token_scores(self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current") -> Float[Tensor, "b v"]:
        encoded = target.encode(self.source.decode(rows))
        return self._input_scores(encoded, words_at(self.source, rows, positions, encoded), target, point)

    def _input_scores(self, encoded: Sequence[Encoded], words: Sequence[Word], target: Target, point: str) -> Float[Tensor, "b v"]:
        """The scores of all tokens in the place of each row's word, by the gradient at the secondary's input."""
        scores = target_scores(target, encoded, words, point)
        # A word that the target's tokenizer drops has no say
        scores = scores * torch.tensor([[w.target[1] > w.target[0]] for w in words], device=scores.device)
        return torch.stack([self._matrix(w.left, w.right) @ s for w, s in zip(words, scores, strict=True)])

    def _build_matrix(self, left: str, right: str) -> Float[Tensor, "v w"]:
        """The share of target token w in the word that source token v spells between `left` and `right` (sparse)."""
        pieces = _inside_word(self.source, self.target, self.pieces, left, right) if left or right else self.pieces
        real = pieces >= 0
        rows, columns = real.nonzero().unbind(1)
        shares = 1 / real.sum(1)[rows]
        shape = (len(self.source), len(self.target))
        matrix = torch.sparse_coo_tensor(torch.stack([rows, pieces[rows, columns]]), shares, shape, check_invariants=True)
        return matrix.coalesce().to(self.target.embedding.device)


def _inside_word(source: Vocabulary, target: Vocabulary, pieces: Int[Tensor, "v k"], left: str, right: str) -> Int[Tensor, "v m"]:
    """The target tokens of left + v + right for every allowed source token v that continues a word; `pieces` for others."""
    tokens = source.allowed.nonzero().flatten().tolist()
    texts = {token: left + text + right for token in tokens if not (text := source.token_texts[token])[:1].isspace() or not left}
    inside = _spelled(source, target, {token: text.strip() for token, text in texts.items()})
    width = max(pieces.shape[1], inside.shape[1])
    merged = torch.nn.functional.pad(pieces, (0, width - pieces.shape[1]), value=-1)
    merged[list(texts)] = torch.nn.functional.pad(inside, (0, width - inside.shape[1]), value=-1)[list(texts)]
    return merged


def _spelled(source: Vocabulary, target: Vocabulary, texts: dict[int, str]) -> Int[Tensor, "v k"]:
    """For some source tokens the target tokens of a text, filled up by -1."""
    spelled = target.encode_ids(list(texts.values()))
    width = max(map(len, spelled), default=0) or 1
    pieces = torch.full((len(source), width), -1)
    pieces[list(texts)] = torch.tensor([ids + (-1,) * (width - len(ids)) for ids in spelled], dtype=torch.long).reshape(-1, width)
    return pieces
