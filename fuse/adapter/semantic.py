"""The semantic adapter: what the secondary makes of each word alone, beside the lexical adapter's reading of its gradient.

A token gradient is the slope at one point of a secondary's input, far from where a word will put it. A model that maps a
text to one vector offers a second slope, at its output: for the vector s of the row and s_w of word w alone, putting w
into the row changes the loss by about a x s_w . dloss/ds, where a > 0 is the same for all words. No context is needed to
know s_w, so that it is computed once for every word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuse.adapter.base import Progress, Target, in_running_text, words_at
from fuse.adapter.lexical import LexicalAdapter
from fuse.models import Model, VectorModel
from fuse.products import Table
from fuse.types import Ids
from fuse.vocabulary import Template, Vocabulary, pad

BATCH = 256


class SemanticAdapter(LexicalAdapter):
    """`words` are the source's tokens of different words, the most frequent first; `vectors` [w e] the secondary's.

    A token stands for all the words that it may be spelling, in shares of 1 / rank (Zipf's law): those of `words` that
    begin, token for token, with what stands before it in its word and with it. Where it spells none of them, and where a
    secondary makes no vectors, the lexical scores stand alone; elsewhere both rankings are standardised over the tokens
    that have both, and summed at the lexical scores' scale.
    """

    defaults: ClassVar[dict[str, int | float]] = {"max_words": 30_000}

    def __init__(self, lexical: LexicalAdapter, words: Sequence[Ids], vectors: Float[Tensor, "w e"]) -> None:
        super().__init__(lexical.source, lexical.target, lexical.pieces)
        self.words = list(words)
        self.vectors = vectors.to(self.target.embedding.device)
        self._table = Table(self.vectors)
        self._continuations: dict[Ids, list[tuple[int, int]]] = {}
        for line, word in enumerate(self.words):
            for place, token in enumerate(word):
                self._continuations.setdefault(word[:place], []).append((token, line))
        self._spellings = lru_cache(maxsize=64)(self._build_spellings)

    @classmethod
    def fit(
        cls, source: Vocabulary, target: Model, words: Iterable[str] = (), progress: Progress = iter, **settings: float
    ) -> SemanticAdapter:
        """Re-tokenise the whole vocabulary, and read alone `max_words` words of the corpus and all that single tokens spell."""
        lexical = LexicalAdapter.fit(source, target)
        if not isinstance(target, VectorModel):
            return cls(lexical, [], torch.zeros(0, 0))
        settings = {**cls.defaults, **settings}
        texts = list(islice(words, int(settings["max_words"])))
        spelled = dict(zip(in_running_text(source, texts), texts, strict=True))
        allowed = source.allowed.tolist()
        spelled = {ids: text for ids, text in spelled.items() if ids and all(allowed[token] for token in ids)}
        known = {ids[0] for ids in spelled}
        spelled.update({(token,): text.strip() for token, text in enumerate(source.token_texts) if allowed[token] and token not in known})
        return cls(lexical, list(spelled), _vectors(target, list(spelled.values()), progress))

    @classmethod
    def from_tensors(cls, source: Vocabulary, target: Vocabulary, tensors: dict[str, Tensor]) -> SemanticAdapter:
        lexical = LexicalAdapter.from_tensors(source, target, tensors)
        vectors, flat, lengths = tensors["vectors"].float(), tensors["word_tokens"].long(), tensors["word_lengths"].tolist()
        fitting = len(vectors) == len(lengths) and sum(lengths) == len(flat) and vectors.ndim == 2
        if not fitting or bool(((flat < 0) | (flat >= len(source))).any()):
            raise ValueError(f"its words do not fit {len(source)} tokens")
        return cls(lexical, [tuple(word.tolist()) for word in flat.split(lengths)] if lengths else [], vectors)

    def tensors(self) -> dict[str, Tensor]:
        tokens = torch.tensor([token for word in self.words for token in word], dtype=torch.int32)
        lengths = torch.tensor([len(word) for word in self.words], dtype=torch.int32)
        return {**super().tensors(), "vectors": self.vectors.cpu().half(), "word_tokens": tokens, "word_lengths": lengths}

    def token_scores(self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current") -> Float[Tensor, "b v"]:
        encoded = target.encode(self.source.decode(rows))
        words = words_at(self.source, rows, positions, encoded)
        scores = self._input_scores(encoded, words, target, point)
        gradient = target.vector_gradient(encoded) if len(self.words) else None
        if gradient is None:
            return scores
        by_word = self._table.inner_products(gradient.to(self.vectors)).to(scores)
        for line, (row, position, word) in enumerate(zip(rows, positions, words, strict=True)):
            if not word.right:
                spellings, known = self._spellings(row[word.source[0] : position] if word.left else ())
                own, output = scores[line, known], (spellings @ by_word[line])[known]
                mixed = (_standardised(own) + _standardised(output)) / 2**0.5
                scores[line, known] = own.mean() + own.std(unbiased=False) * mixed
        return scores

    def _build_spellings(self, before: Ids) -> tuple[Float[Tensor, "v w"], Bool[Tensor, " v"]]:
        """The share of word w in what source token v spells after the tokens `before` of its word (sparse); the tokens that spell any."""
        found = list(self._continuations.get(before, []))
        if before:  # a token may begin another word, too
            begins = [text[:1].isspace() for text in self.source.token_texts]
            found += [(token, line) for token, line in self._continuations[()] if begins[token]]
        shares = torch.zeros(len(self.source))
        tokens, lines = torch.tensor(found, dtype=torch.long).reshape(-1, 2).unbind(1)
        weights = 1.0 / (lines + 1)
        shares.index_add_(0, tokens, weights)
        shape = (len(self.source), len(self.words))
        matrix = torch.sparse_coo_tensor(torch.stack([tokens, lines]), weights / shares[tokens], shape, check_invariants=True)
        device = self.vectors.device
        return matrix.coalesce().to(device), (shares > 0).to(device)


def _standardised(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Values with mean 0 and spread 1; 0 where all are equal."""
    return (values - values.mean()) / values.std(unbiased=False).clamp_min(1e-12)


@torch.no_grad()
def _vectors(model: VectorModel, words: list[str], progress: Progress) -> Float[Tensor, "w e"]:
    """What the model makes of each word alone; words of like length are read together."""
    encoded = Template().encode(model.vocabulary, words)
    order = sorted(range(len(words)), key=lambda i: len(encoded[i].ids))
    shown = iter(progress([words[i] for i in order]))
    found: list[Tensor] = []
    for start in range(0, len(order), BATCH):
        batch = [encoded[i] for i in order[start : start + BATCH]]
        found.append(model.vector(pad(batch, model.device)).float().cpu())
        for _ in batch:
            next(shown)
    return torch.cat(found)[torch.tensor(order).argsort()]
