"""Sentence encoders: a transformer, a pooling and perhaps a normalisation, as a sentence-transformers folder tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel, load_pretrained
from fuse.types import Inputs


class SentenceEncoder(EmbeddingModel):
    """A sentence encoder. `pooling` is "mean", "cls" or "max" over the tokens' last hidden states."""

    def __init__(self, network: Any, tokenizer: Any, pooling: str = "mean") -> None:
        if pooling not in ("mean", "cls", "max"):
            raise FuseError(f"pooling={pooling}: expected mean, cls or max")
        length = min(network.config.max_position_embeddings, tokenizer.model_max_length)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length)
        self.pooling = pooling

    @classmethod
    def load(
        cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any
    ) -> SentenceEncoder:
        """From a hub id or a local folder; pooling as its `1_Pooling/config.json` says, mean where there is none.

        Raises:
            FuseError: the model cannot be found or read, or pools in a way that is not offered.
        """
        from transformers import AutoModel, AutoTokenizer

        network = load_pretrained(AutoModel, model_id, dtype=dtype, **options).to(device)
        return cls(network, load_pretrained(AutoTokenizer, model_id), _pooling_of(model_id))

    def embed(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Unit sentence vectors. (Cosines need no separate normalisation layer: all vectors are unit here.)"""
        with self.reading(inputs):
            hidden = self.network(input_ids=inputs.ids, attention_mask=inputs.mask.long()).last_hidden_state.float()
        mask = inputs.mask[..., None]
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = hidden.masked_fill(~mask, -torch.inf).amax(1)
        else:
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return normalize(pooled, dim=-1)


def _pooling_of(model_id: str) -> str:
    """The pooling that a sentence-transformers folder or hub repository describes."""
    from transformers.utils import cached_file

    name = "1_Pooling/config.json"
    folder = Path(model_id).expanduser()
    path = folder / name if folder.is_dir() else cached_file(model_id, name, _raise_exceptions_for_missing_entries=False)
    if path is None or not Path(path).is_file():
        return "mean"
    modes = [k for k, on in json.loads(Path(path).read_text()).items() if k.startswith("pooling_mode_") and on is True]
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    if len(modes) != 1 or modes[0] not in names:
        raise FuseError(f"model_id={model_id}: pools by {', '.join(modes)}; expected one of mean, cls, max")
    return names[modes[0]]
