"""Masked language models: how likely each token is among all the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import Model, load_network, load_pretrained
from fuse.types import Inputs


class MaskedLM(Model):
    """A Hugging Face masked LM, read one masked position at a time."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None:
            raise FuseError(f"model_id={tokenizer.name_or_path}: its tokenizer has no mask token; choose a masked language model")
        limits = (getattr(network.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
        super().__init__(network, tokenizer, network.get_input_embeddings(), min(limit for limit in limits if limit))
        self.mask_id = int(tokenizer.mask_token_id)

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> MaskedLM:
        """From a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read, or its tokenizer has no mask token.
        """
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id)
        return cls(load_network(AutoModelForMaskedLM, model_id, dtype=dtype, **options).to(device), tokenizer)

    def label_log_probs(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """log p(x_t | all other tokens) where `read` is true, else 0: one forward pass for every column that is read.

        A shift `inputs.labels` [b p v] adds labels . log p at its places, zero in value.
        """
        result = torch.zeros(read.shape, device=read.device)
        for place in read.any(0).nonzero().flatten().tolist():
            rows = read[:, place].nonzero().flatten()
            log_p = self._log_probs(inputs, rows, place)
            picked = log_p.gather(1, inputs.ids[rows, place, None])[:, 0]
            if inputs.labels is not None and inputs.label_places is not None:
                here = (inputs.label_places[rows] == place)[..., None]
                picked = picked + (torch.where(here, inputs.labels[rows], 0.0).sum(1) * log_p).sum(-1)
            result = result.to(picked.dtype).index_put((rows, rows.new_tensor(place)), picked)
        return result

    def _log_probs(self, inputs: Inputs, rows: Tensor, place: int) -> Float[Tensor, "r v"]:
        """log p(token) at one position, hidden under the mask token, of some of the rows."""
        hidden = torch.arange(inputs.ids.shape[1], device=rows.device) == place
        mask, embeddings = inputs.mask[rows], None
        if inputs.embeddings is not None:
            embeddings = torch.where(hidden[:, None], self.vocabulary.embedding[self.mask_id], inputs.embeddings[rows])
        ids = torch.where(hidden, self.mask_id, inputs.ids[rows])
        with self.reading(embeddings), self._telling_only(place):
            logits = self.network(input_ids=ids, attention_mask=mask.long()).logits
        logits = logits[:, 0 if logits.shape[1] == 1 else place]
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    @contextmanager
    def _telling_only(self, place: int) -> Iterator[None]:
        """Within this context the output layer is run at one position alone, which saves most of the memory."""
        head = self.network.get_output_embeddings()
        if head is None:
            yield
            return
        handle = head.register_forward_pre_hook(lambda _, arguments: (arguments[0][:, place : place + 1], *arguments[1:]))
        try:
            yield
        finally:
            handle.remove()
