"""The baseline without a map: each secondary proposes words of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapters.alignment import in_running_text, target_scores, words_at
from fuse.adapters.base import Adapter, Progress
from fuse.adapters.checks import check_names
from fuse.adapters.target import Target
from fuse.models import Model
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.types import Ids


class PooledAdapter(Adapter):
    """Carries nothing from one vocabulary to the other but text.

    The word around a token is replaced by each of the secondary's own best tokens, by its own token
    gradient at the word's first token. The primary's tokens are not ranked: all their scores are 0.
    """

    ranks: ClassVar[bool] = False

    @classmethod
    def fit(
        cls,
        source: EmbeddedVocabulary,
        target: Model,
        words: Iterable[str] = (),
        progress: Progress = iter,
        **settings: float,
    ) -> PooledAdapter:
        """Make the adapter; there is nothing to fit."""
        return cls(source, target.vocabulary)

    @classmethod
    def from_tensors(
        cls, source: EmbeddedVocabulary, target: Model, tensors: Mapping[str, Tensor]
    ) -> PooledAdapter:
        check_names(tensors)
        return cls(source, target.vocabulary)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def token_scores(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        point: str = "current",
    ) -> Float[Tensor, "b v"]:
        return self.source.embedding.new_zeros(len(rows), len(self.source), dtype=torch.float32)

    def covers(self, words: Sequence[str]) -> list[bool]:
        return [len(ids) == 1 for ids in in_running_text(self.target, words)]

    def proposals(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        top_k: int,
        point: str = "current",
    ) -> list[list[str]]:
        prompts = self.source.decode(rows)
        encoded = target.encode(prompts)
        words = words_at(self.source, rows, positions, encoded)
        allowed = self.target.allowed
        scores = target_scores(target, encoded, words, point).masked_fill(~allowed, torch.inf)
        best = scores.topk(min(top_k, int(allowed.sum())), largest=False).indices.tolist()
        found = []
        for prompt, word, tokens in zip(prompts, words, best, strict=True):
            before, after = prompt[: word.chars[0]], prompt[word.chars[1] :]
            texts = [self.target.token_texts[token].strip() for token in tokens]
            found.append([before + text + after for text in texts])
        return found
