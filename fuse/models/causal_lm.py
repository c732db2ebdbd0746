"""Causal language models: how likely each token is after the tokens before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import Model, load_network, load_pretrained
from fuse.types import Inputs


@dataclass(frozen=True)
class Predictions:
    """Logits and last hidden states over u different contexts; row i of the batch reads context `row[i]`.

    Column c foretells the token at position `first` + c.
    """

    logits: Float[Tensor, "u c v"]
    hidden: Float[Tensor, "u c d"]
    row: Int[Tensor, " b"]
    first: int
    last: int


def _has_context(read: Bool[Tensor, "b t"]) -> Bool[Tensor, " t"]:
    return torch.arange(read.shape[1], device=read.device) > 0


class CausalLM(Model):
    """A Hugging Face causal LM. Every context begins with its BOS (else EOS) token, where it has one."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        length = getattr(network.config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
        head = () if start is None else (int(start),)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length, head=head, tail=())
        # Whether the output table is the very table that the embedding layer returns
        head_table = network.get_output_embeddings().weight
        self.tied = head_table.shape == self.vocabulary.embedding.shape and torch.equal(head_table, self.vocabulary.embedding)

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> CausalLM:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id)
        return cls(load_network(AutoModelForCausalLM, model_id, dtype=dtype, **options).to(device), tokenizer)

    def predictions(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> Predictions | None:
        """What the model says of every position from the first to the last that `read` marks; None if it marks none.

        Only contexts that somebody reads are run, and each different one once: candidates that differ in their last
        token alone share one forward pass. Position 0 has no context and is never read.
        """
        columns = (read & _has_context(read)).any(0).nonzero()
        if not len(columns):
            return None
        first, last = int(columns[0]), int(columns[-1]) + 1
        ids, row = inputs.ids[:, : last - 1], torch.arange(len(inputs.ids), device=inputs.ids.device)
        mask, embeddings = inputs.mask[:, : last - 1], inputs.embeddings
        if embeddings is None:
            # A row's own last token is not read by itself: blank it, so that rows that differ only there are equal
            ends = (inputs.mask.sum(1, keepdim=True) - 1).clamp_min(1)
            mask = mask & (torch.arange(last - 1, device=ids.device) < ends)
            keys, row = torch.where(mask, ids, -1).unique(dim=0, return_inverse=True)
            mask, ids = keys >= 0, keys.clamp_min(0)
        else:
            embeddings = embeddings[:, : last - 1]
        keep = torch.arange(first - 1, last - 1, device=ids.device)
        hidden: list[Tensor] = []
        hook = self.network.get_output_embeddings().register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[0]))
        try:
            with self.reading(Inputs(ids, mask, mask, mask, embeddings)):
                logits = self.network(input_ids=ids, attention_mask=mask.long(), logits_to_keep=keep, use_cache=False).logits
        finally:
            hook.remove()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half types are too coarse for the sum
        return Predictions(logits, hidden[0], row, first, last)

    def label_log_probs(self, inputs: Inputs, read: Bool[Tensor, "b t"], *, as_embedding: bool = False) -> Float[Tensor, "b t"]:
        """log p(x_t | x_<t) where `read` is true, else 0.

        A shift `inputs.labels` adds labels . log p at its places, zero in value. With `as_embedding`, the label of
        position t is `inputs.embeddings` there: its shift from the table's row adds shift . h, zero in value at a token.
        """
        out = self.predictions(inputs, read)
        if out is None:
            return read.new_zeros(read.shape, dtype=torch.float32)
        row, columns = out.row[:, None], torch.arange(out.last - out.first, device=read.device)
        normaliser = out.logits.logsumexp(-1)
        labels = inputs.ids[:, out.first : out.last]
        picked = out.logits[row, columns, labels] - normaliser[out.row]
        if as_embedding and inputs.embeddings is not None:
            shift = inputs.embeddings[:, out.first : out.last] - self.vocabulary.embedding[labels]
            picked = picked + (shift * out.hidden[out.row]).sum(-1)
        result = picked.new_zeros(read.shape)
        result[:, out.first : out.last] = picked
        if inputs.labels is not None and inputs.label_places is not None:
            near = (inputs.label_places - out.first).clamp(0, len(columns) - 1)  # the places that nobody reads are dropped below
            log_probs = out.logits[row, near] - normaliser[row, near][..., None]
            result = result.scatter_add(1, inputs.label_places, (inputs.labels * log_probs).sum(-1))
        return torch.where(read & _has_context(read), result, 0.0)

    @torch.no_grad()
    def says(self, inputs: Inputs) -> Bool[Tensor, " b"]:
        """Whether greedy decoding after each row's prompt says its label, token for token."""
        out = self.predictions(inputs, inputs.label)
        if out is None:
            return torch.ones(len(inputs.ids), dtype=torch.bool, device=self.device)
        said = out.logits.argmax(-1)[out.row] == inputs.ids[:, out.first : out.last]
        return (said | ~inputs.label[:, out.first : out.last]).all(1)

    @torch.no_grad()
    def next_token_log_probs(self, inputs: Inputs) -> Float[Tensor, "b v"]:
        """log p(next token) after the last token of each row.

        Raises:
            FuseError: an empty row, of a model that has no start token.
        """
        lengths = inputs.mask.sum(1)
        if not lengths.all():
            raise FuseError("primary.prefix='': this model has no start token, so that an empty text has no next one; give a prefix")
        rows = [tuple(ids[:length]) for ids, length in zip(inputs.ids.tolist(), lengths.tolist(), strict=True)]
        # A row that begins another one is read off the other's pass
        whole = sorted(set(rows), key=len, reverse=True)
        owner = {row: next(longer for longer in whole if longer[: len(row)] == row) for row in whole}
        run = [rows.index(row) for row in dict.fromkeys(owner.values())]
        line = {rows[i]: number for number, i in enumerate(run)}
        keep, column = (lengths - 1).unique(return_inverse=True)
        ids, mask = inputs.ids[run], inputs.mask[run].long()
        logits = self.network(input_ids=ids, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits
        return logits[[line[owner[row]] for row in rows], column].float().log_softmax(-1)
