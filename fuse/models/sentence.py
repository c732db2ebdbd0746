"""Sentence encoders: a transformer and a pooling, as in a folder of sentence-transformers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError, one_of
from fuse.models.base import EmbeddingModel, context_length
from fuse.models.loading import load_network, load_pretrained, loading
from fuse.models.model_files import read_json, read_object
from fuse.nn.batch import Inputs

POOLINGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
}
"""The poolings that are offered, and what sentence-transformers calls them."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""The parts of a folder that are known; vectors are normalised in any case."""


class SentenceEncoder(EmbeddingModel):
    """A sentence encoder.

    Args:
        pooling: "mean", "cls" or "max" of the tokens' last hidden states.
    """

    def __init__(self, network: Any, tokenizer: Any, pooling: str = "mean") -> None:
        if pooling not in POOLINGS:
            raise FuseError(f"pooling={pooling}: {one_of(pooling, POOLINGS)}")
        length = context_length(network.config, tokenizer)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length)
        self.pooling = pooling

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> SentenceEncoder:
        """Load a model from a hub id or a local folder.

        It pools as its `1_Pooling/config.json` says; by the mean where there is none. `options` go
        to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read, or pools in a way that is not offered.
        """
        from transformers import AutoModel, AutoTokenizer

        network = load_network(AutoModel, model_id, device, dtype=dtype, **options)
        tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
        with loading(model_id):
            return cls(network, tokenizer, _pooling_of(model_id))

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Return unit sentence vectors."""
        with self.reading(inputs.embeddings):
            out = self.network(input_ids=inputs.ids, attention_mask=inputs.mask.long())
        hidden, mask = out.last_hidden_state.float(), inputs.mask[..., None]
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = hidden.masked_fill(~mask, -torch.inf).amax(1)
        else:
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return normalize(pooled, dim=-1)


def _pooling_of(model_id: str) -> str:
    """Return the pooling that a folder or hub repository of sentence-transformers describes."""
    _check_modules(model_id)
    config = read_object(model_id, "1_Pooling/config.json")
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    names = [name for name, key in POOLINGS.items() if modes == [key]]
    if not config:
        return "mean"
    if not names:
        raise FuseError(
            f"model_id={model_id}: pools by {', '.join(modes)}; "
            f"expected one of {', '.join(POOLINGS)}"
        )
    return names[0]


def _check_modules(model_id: str) -> None:
    """Check that all parts are known ones; they are never imported by the names given."""
    modules = read_json(model_id, "modules.json")
    for module in [] if modules is None else modules if isinstance(modules, list) else [modules]:
        kind = module.get("type") if isinstance(module, dict) else module
        library, _, name = str(kind).rpartition(".")
        if library.partition(".")[0] != "sentence_transformers" or name not in MODULES:
            raise FuseError(
                f"model_id={model_id}: its modules.json has the module {kind!r:.80}; expected "
                "Transformer, Pooling and Normalize of sentence_transformers alone"
            )
