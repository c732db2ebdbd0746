"""Small made-up models for tests: tokenizers of known words, and networks with random weights."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fuse.losses import VectorLoss
from fuse.models import EmbeddingModel
from fuse.nn.batch import Inputs
from fuse.nn.embedding_table import EmbeddedVocabulary


def greedy_tokenizer(
    tokens: list[str], start: str | None = None, end: str | None = None
) -> PreTrainedTokenizerFast:
    """Make a word-piece tokenizer of these tokens; continuing ones begin with ##."""
    specials = [token for token in ("<pad>", "<unk>", start, end) if token]
    vocabulary = {token: i for i, token in enumerate([*specials, *tokens])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if start and end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {end}",
            special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=start,
        eos_token=end,
    )


def letters(count: int) -> list[str]:
    """Return `count` letters as words and as continuations."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"[:count]
    return [*alphabet, *("##" + letter for letter in alphabet)]


class LinearModel(EmbeddingModel):
    """Pools by a fixed weight for each position, so that its loss is linear in its embeddings."""

    def __init__(self, tokenizer: Any, width: int, seed: int, max_length: int = 64) -> None:
        generator = torch.Generator().manual_seed(seed)
        layer = torch.nn.Embedding(len(tokenizer), width, dtype=torch.float64)
        size = (len(tokenizer), width)
        layer.weight.data = torch.randn(*size, generator=generator, dtype=torch.float64)
        super().__init__(torch.nn.Sequential(layer), tokenizer, layer, max_length)
        weights = torch.randn(64, width, generator=generator, dtype=torch.float64)
        self.by_position = weights[:max_length]
        """Of each position [t d]; a longer text has none, and is an error."""

    @classmethod
    def load(cls, model_id: str, **options: Any) -> LinearModel:
        raise NotImplementedError

    def vector(self, inputs: Inputs) -> torch.Tensor:
        with self.reading(inputs.embeddings):
            embeddings = self.embedding_layer(inputs.ids)
        weighted = embeddings * self.by_position[: inputs.ids.shape[1]]
        return (weighted * inputs.mask[..., None]).sum(1)


class SumLoss(VectorLoss):
    """The sum of a vector's coordinates."""

    def at(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.sum(-1)


def vocabulary(
    tokenizer: Any, width: int, seed: int, dtype: torch.dtype = torch.float64
) -> EmbeddedVocabulary:
    """Return a vocabulary with random embeddings, and 64 tokens of context."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(len(tokenizer), width, generator=generator, dtype=dtype)
    return EmbeddedVocabulary(tokenizer, table, 64)
