"""Masked language models: how likely each token is among all the others."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import Model, context_length
from fuse.models.loading import load_network, load_pretrained, loading
from fuse.models.masked_proof import MaskedProof
from fuse.nn.batch import Inputs
from fuse.nn.hooks import changing_input
from fuse.nn.lm_head import widened


class MaskedLM(Model):
    """A Hugging Face masked LM, read one masked position at a time.

    When it is made, short passes show in which ways its network reads as it does plainly.

    Raises:
        FuseError: the tokenizer has no mask token, or the network does not read text.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None:
            raise FuseError(
                f"model_id={tokenizer.name_or_path}: its tokenizer has no mask token; "
                "choose a masked language model"
            )
        length = context_length(network.config, tokenizer)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length)
        self.mask_id = int(tokenizer.mask_token_id)
        self._pads = self._narrows = False
        self.acceleration.turn(False)
        MaskedProof(self).settle()

    def turn_narrowed_output(self, on: bool) -> None:
        """Run the output layer for the masked position alone, or for all."""
        self._narrows = on

    def turn_padding(self, on: bool) -> None:
        """Read rows of unequal length as a batch, or one by one."""
        self._pads = on

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> MaskedLM:
        """Load a model from a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read, or its tokenizer has no mask token.
        """
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
        network = load_network(AutoModelForMaskedLM, model_id, device, dtype=dtype, **options)
        with loading(model_id):
            return cls(network, tokenizer)

    def label_log_probs(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Return log p(x_t | all other tokens) where `read` is true, else 0.

        There is one forward pass for every position that is read in some row. A shift
        `inputs.labels` [b p v] adds labels . log p at its positions, which is zero in value.
        """
        result = torch.zeros(read.shape, device=read.device)
        for position in read.any(0).nonzero().flatten().tolist():
            rows = read[:, position].nonzero().flatten()
            log_p = self.position_log_probs(inputs, rows, position)
            picked = log_p.gather(1, inputs.ids[rows, position, None])[:, 0]
            if inputs.labels is not None and inputs.label_positions is not None:
                here = (inputs.label_positions[rows] == position)[..., None]
                shift = torch.where(here, inputs.labels[rows], 0.0).sum(1)
                picked = picked + (shift * log_p[:, : shift.shape[1]]).sum(-1)
            at = rows, rows.new_tensor(position)
            result = result.to(picked.dtype).index_put(at, picked)
        return result

    def position_log_probs(
        self, inputs: Inputs, rows: Int[Tensor, " r"], position: int
    ) -> Float[Tensor, "r v"]:
        """Return log p(token) of some rows at one position, which reads the mask token."""
        hidden = torch.arange(inputs.ids.shape[1], device=rows.device) == position
        mask, embeddings = inputs.mask[rows], None
        if inputs.embeddings is not None:
            masked = self.vocabulary.embedding[self.mask_id]
            embeddings = torch.where(hidden[:, None], masked, inputs.embeddings[rows])
        ids = torch.where(hidden, self.mask_id, inputs.ids[rows])
        if self._pads:
            return self._run(ids, embeddings, position, {"attention_mask": mask.long()})
        found = []
        for row, length in enumerate(mask.sum(1).tolist()):
            here = slice(row, row + 1), slice(length)
            own = None if embeddings is None else embeddings[here]
            found.append(self._run(ids[here], own, position, {}))
        return torch.cat(found)

    def _run(
        self,
        ids: Int[Tensor, "r t"],
        embeddings: Float[Tensor, "r t d"] | None,
        position: int,
        options: dict[str, Any],
    ) -> Float[Tensor, "r v"]:
        """Return log p(token) at one position of rows that are read as they are."""
        with self.reading(embeddings), self._predicting_only(position):
            logits = self.network(input_ids=ids, **options).logits
        logits = logits[:, 0 if logits.shape[1] == 1 else position]
        return widened(logits).log_softmax(-1)

    def _predicting_only(self, position: int) -> Any:
        """Let the output layer read one position, within a context: most of the memory."""
        layer = self.network.get_output_embeddings()
        if layer is None or not self._narrows:
            return nullcontext()
        return changing_input(layer, lambda states: states[:, position : position + 1])
