"""Causal language models: how likely each token is after the tokens before it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import Model, load_network, load_pretrained
from fuse.types import Inputs


class CausalLM(Model):
    """A Hugging Face causal LM. Every context begins with its BOS (else EOS) token, where it has one."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        length = getattr(network.config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
        head = () if start is None else (int(start),)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length, head=head, tail=())

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> CausalLM:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id)
        return cls(load_network(AutoModelForCausalLM, model_id, dtype=dtype, **options).to(device), tokenizer)

    def label_log_probs(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """log p(x_t | x_<t) where `read` is true, else 0. Position 0 has no context and counts as 0.

        Only contexts that somebody reads are run, and each different one once: candidates that differ in their last
        token alone share one forward pass. A shift `inputs.labels` [b t v] adds labels . log p, zero in value.
        """
        read = read & (torch.arange(read.shape[1], device=read.device) > 0)
        columns = read.any(0).nonzero()
        if not len(columns):
            return read.new_zeros(read.shape, dtype=torch.float32)
        first, last = int(columns[0]), int(columns[-1]) + 1
        ids, inverse = inputs.ids[:, : last - 1], torch.arange(len(inputs.ids), device=inputs.ids.device)
        mask, embeddings = inputs.mask[:, : last - 1], inputs.embeddings
        if embeddings is None:
            # A row's own last token is not read by itself: blank it, so that rows that differ only there are equal
            ends = (inputs.mask.sum(1, keepdim=True) - 1).clamp_min(1)
            mask = mask & (torch.arange(last - 1, device=ids.device) < ends)
            keys, inverse = torch.where(mask, ids, -1).unique(dim=0, return_inverse=True)
            mask, ids = keys >= 0, keys.clamp_min(0)
        else:
            embeddings = embeddings[:, : last - 1]
        keep = torch.arange(first - 1, last - 1, device=ids.device)
        with self.reading(Inputs(ids, mask, mask, mask, embeddings)):
            logits = self.network(input_ids=ids, attention_mask=mask.long(), logits_to_keep=keep, use_cache=False).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half types are too coarse for the sum
        normaliser = logits.logsumexp(-1)
        labels = inputs.ids[:, first:last]
        picked = logits[inverse[:, None], torch.arange(last - first, device=ids.device), labels] - normaliser[inverse]
        if inputs.labels is not None:
            picked = picked + (inputs.labels[:, first:last] * (logits - normaliser[..., None])).sum(-1)
        result = picked.new_zeros(read.shape)
        result[:, first:last] = torch.where(read[:, first:last], picked, 0.0)
        return result

    @torch.no_grad()
    def next_token_log_probs(self, inputs: Inputs) -> Float[Tensor, "b v"]:
        """log p(next token) after the last token of each row.

        Raises:
            FuseError: an empty row, of a model that has no start token.
        """
        lengths = inputs.mask.sum(1)
        if not lengths.all():
            raise FuseError("primary.prefix='': this model has no start token, so that an empty text has no next one; give a prefix")
        logits = self.network(input_ids=inputs.ids, attention_mask=inputs.mask.long(), use_cache=False).logits
        return logits[torch.arange(len(lengths), device=lengths.device), lengths - 1].float().log_softmax(-1)
