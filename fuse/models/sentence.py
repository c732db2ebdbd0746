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
from fuse.models.base import EmbeddingModel, load_network, load_pretrained
from fuse.types import Inputs


class SentenceEncoder(EmbeddingModel):
    """A sentence encoder. `pooling` is "mean", "cls" or "max" over the tokens' last hidden states."""

    def __init__(self, network: Any, tokenizer: Any, pooling: str = "mean") -> None:
        if pooling not in ("mean", "cls", "max"):
            raise FuseError(f"pooling={pooling}: expected mean, cls or max")
        length = min(getattr(network.config, "max_position_embeddings", None) or tokenizer.model_max_length, tokenizer.model_max_length)
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

        network = load_network(AutoModel, model_id, dtype=dtype, **options).to(device)
        return cls(network, load_pretrained(AutoTokenizer, model_id), _pooling_of(model_id))

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Unit sentence vectors. (Cosines need no separate normalisation layer: all vectors are unit here.)"""
        with self.reading(inputs.embeddings):
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
    modules = _read_json(model_id, "modules.json") or []
    others = [m["type"] for m in modules if m["type"].rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize")]
    if others:
        raise FuseError(f"model_id={model_id}: has the module {others[0]}; expected Transformer, Pooling and Normalize alone")
    config = _read_json(model_id, "1_Pooling/config.json")
    if config is None:
        return "mean"
    modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    if len(modes) != 1 or modes[0] not in names:
        raise FuseError(f"model_id={model_id}: pools by {', '.join(modes)}; expected one of mean, cls, max")
    return names[modes[0]]


def _read_json(model_id: str, name: str) -> Any:
    """A JSON file of a model's folder or hub repository; None where there is none."""
    from transformers.utils import cached_file

    folder = Path(model_id).expanduser()
    try:
        path = folder / name if folder.is_dir() else cached_file(model_id, name, _raise_exceptions_for_missing_entries=False)
        return json.loads(Path(path).read_text()) if path is not None and Path(path).is_file() else None
    except (OSError, ValueError) as error:
        raise FuseError(f"model_id={model_id}: its {name} cannot be read ({error}); repair the folder or choose another model") from error
