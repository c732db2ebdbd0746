"""The adapter-free baseline: each secondary proposes words of its own vocabulary, and all candidates are scored together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter.base import Adapter, Progress, Target, in_running_text, target_scores, words_at
from fuse.models import Model
from fuse.types import Ids
from fuse.vocabulary import Vocabulary


class PooledAdapter(Adapter):
    """Nothing is carried from one vocabulary to the other but text.

    The word around a token gives way to each of the secondary's own best tokens, by its own token gradient with the
    word's first token as the place. How the primary's tokens rank is not told: all their scores are 0.
    """

    ranks: ClassVar[bool] = False

    @classmethod
    def fit(
        cls, source: Vocabulary, target: Model, words: Iterable[str] = (), progress: Progress = iter, **settings: float
    ) -> PooledAdapter:
        """There is nothing to fit."""
        return cls(source, target.vocabulary)

    @classmethod
    def from_tensors(cls, source: Vocabulary, target: Vocabulary, tensors: dict[str, Tensor]) -> PooledAdapter:
        return cls(source, target)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def token_scores(self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current") -> Float[Tensor, "b v"]:
        return self.source.embedding.new_zeros(len(rows), len(self.source), dtype=torch.float32)

    def covers(self, words: Sequence[str]) -> list[bool]:
        return [len(ids) == 1 for ids in in_running_text(self.target, words)]

    def proposals(
        self, rows: Sequence[Ids], positions: Sequence[int], target: Target, top_k: int, point: str = "current"
    ) -> list[list[str]]:
        prompts = self.source.decode(rows)
        encoded = target.encode(prompts)
        words = words_at(self.source, rows, positions, encoded)
        allowed, texts = self.target.allowed, self.target.token_texts
        scores = target_scores(target, encoded, words, point)
        best = scores.masked_fill(~allowed, torch.inf).topk(min(top_k, int(allowed.sum())), largest=False).indices.tolist()
        return [
            [prompt[: word.chars[0]] + texts[token].strip() + prompt[word.chars[1] :] for token in tokens]
            for prompt, word, tokens in zip(prompts, words, best, strict=True)
        ]
