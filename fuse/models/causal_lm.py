"""Causal language models: how likely each token is after the tokens before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fuse.models.decoder import Decoder
from fuse.models.loading import load_network, load_pretrained, loading
from fuse.models.predictions import Predictions, state_kind
from fuse.models.reuse_trial import ReuseTrial
from fuse.nn.batch import CacheHits, Inputs
from fuse.nn.lm_head import LazyLogits
from fuse.nn.prefix_attention import PREFIX_ATTENTION, use_prefix_attention


class CausalLM(Decoder):
    """A Hugging Face causal LM.

    When it is made, short passes try whether its network packs rows and goes on from a prefix
    cache.
    """

    goal = "fluency or label"

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, tokenizer: Any) -> None:
        super().__init__(network, tokenizer)
        layers = DynamicCache(config=self.network.config).layers
        # A cache of keys and values does not hold what a convolution has read
        decoder = self.network.get_decoder()
        convolves = any(isinstance(module, torch.nn.Conv1d) for module in decoder.modules())
        if convolves or not all(isinstance(layer, DynamicLayer) for layer in layers):
            return
        self._windows = [getattr(layer, "sliding_window", None) for layer in layers]
        self._try_reuse(may_pack=self._may_pack(len(layers)))

    def _may_pack(self, num_cached_layers: int) -> bool:
        """Whether the network says that its attention can be replaced by ours."""
        network, config = self.network, self.network.config.get_text_config()
        # With chunks a token sees those of its own one, by masks of the network
        chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
        backend = getattr(network, "_supports_attention_backend", False)
        name = network.config._attn_implementation
        replaceable = backend and name in ("sdpa", PREFIX_ATTENTION) and not chunked
        # Some networks' layers share the keys and values of one
        return replaceable and num_cached_layers == config.num_hidden_layers

    def _try_reuse(self, may_pack: bool) -> None:
        """Find out whether the network packs and goes on from a prefix cache."""
        trial = ReuseTrial(self, self._states_after)
        self.supports_prefix_cache = True
        if may_pack:
            undo = use_prefix_attention(self.network)
            self.supports_packing = True
            self.supports_packing = trial.passes(packed=True)
            if self.supports_packing:
                return
            undo()
        self.supports_prefix_cache = trial.passes(packed=False)

    def _states_after(self, inputs: Inputs, length: int) -> Float[Tensor, "n d"]:
        """Return the states that predict all tokens from position `length` on, row after row."""
        read = inputs.mask & (torch.arange(inputs.mask.shape[1], device=self.device) >= length)
        found = None
        for part in self.predictions(inputs, read):
            hidden = part.logits.hidden[part.index]
            if found is None:
                found = hidden.new_zeros(*read.shape, hidden.shape[-1])
            found[part.at] = hidden.to(found)
        assert found is not None
        return found[read]

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> CausalLM:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
        network = load_network(AutoModelForCausalLM, model_id, device, dtype=dtype, **options)
        with loading(model_id):
            return cls(network, tokenizer)

    def predictions(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> list[Predictions]:
        """Predict the tokens at the positions that `read` marks.

        Tokens that no prediction needs are not read, and rows that are equal as far as they are
        read share one pass: so do candidates that differ in their last token alone. What the prefix
        cache holds is taken from there. Position 0 is never predicted.

        Returns:
            What the cache predicts, and what a forward pass does; either may be missing.
        """
        hits, positions = inputs.hits, torch.arange(read.shape[1], device=read.device)
        # The positions after which a prediction is read
        asked = (read & (positions > 0)).roll(-1, 1)
        cached = torch.full_like(inputs.ids, -1)
        found = []
        if hits is not None:
            hits = self._usable_hits(hits, asked)
            cached = hits.cached_position
            row, position = (asked & (cached >= 0)).nonzero(as_tuple=True)
            if len(row):
                prefixes = hits.prefixes
                assert prefixes.logits is not None
                # The cache's states are numbered row after row, one for each of its positions
                offset = cached[row, position] - prefixes.positions[0]
                index = hits.row[row] * len(prefixes.positions) + offset
                found.append(Predictions(prefixes.logits, index, row, position + 1))
        # Nothing is read after the last asked position
        new = (cached < 0) & (asked.flip(1).cumsum(1).flip(1) > 0)
        if (asked & new).any():
            found.append(self._predict(replace(inputs, hits=hits), new, asked & new))
        return found

    def _usable_hits(self, hits: CacheHits, asked: Bool[Tensor, "b t"]) -> CacheHits:
        """Return the hits without positions that have to be read all the same.

        These are positions whose prediction the cache did not keep; and, if rows are padded, those
        that are not cached for every row from its beginning on.
        """
        kept = hits.cached_position >= hits.prefixes.positions[0]
        cached = torch.where(asked & ~kept, -1, hits.cached_position)
        hits = replace(hits, cached_position=cached)
        if not self._packs(hits):
            positions = torch.arange(cached.shape[1], device=cached.device)
            cached = torch.where(positions < hits.num_shared_tokens, cached, -1)
            hits = replace(hits, cached_position=cached)
        return hits

    def _packs(self, hits: CacheHits) -> bool:
        """Whether rows with these hits are packed."""
        return hits.packed and self.supports_packing

    def _predict(
        self, inputs: Inputs, new: Bool[Tensor, "b t"], asked: Bool[Tensor, "b t"]
    ) -> Predictions:
        """Predict the tokens after the positions `asked` by reading the tokens at `new`."""
        distinct, group = self._distinct_rows(inputs, new)
        row, position = asked.nonzero(as_tuple=True)
        needed = torch.zeros_like(asked[distinct])
        needed = needed.index_put((group[row], position), asked.new_ones(()))
        # The number of each needed state, row after row  [u t]
        number = (needed.flatten().cumsum(0) - 1).view(needed.shape)
        rows, hits = inputs.select(distinct), inputs.hits
        if rows.hits is not None and self._packs(rows.hits):
            states = self._run_packed(rows, rows.hits, new[distinct], needed)
        else:
            states = self._run_padded(rows, rows.hits, needed)
        log_normaliser = None
        if hits is not None and hits.approximate and self._head is not None:
            kind = state_kind(rows, needed)
            log_normaliser = self._head.estimated_log_normaliser(states.hidden, kind)
        logits = LazyLogits(self._head, states.hidden, states.logits, log_normaliser)
        return Predictions(logits, number[group[row], position], row, position + 1)

    def _distinct_rows(
        self, inputs: Inputs, new: Bool[Tensor, "b t"]
    ) -> tuple[Int[Tensor, " u"], Int[Tensor, " b"]]:
        """Find rows that differ in what is read of them.

        Returns:
            One row of each group of equal ones, and each row's group.
        """
        everything = torch.arange(len(new), device=new.device)
        if inputs.embeddings is not None:
            return everything, everything
        keys = [torch.where(new, inputs.ids, -1)]
        if inputs.hits is not None:
            keys = [inputs.hits.row[:, None], inputs.hits.cached_position, *keys]
        groups, group = torch.cat(keys, 1).unique(dim=0, return_inverse=True)
        return group.new_zeros(len(groups)).scatter_(0, group, everything), group

    def label_log_probs(
        self, inputs: Inputs, read: Bool[Tensor, "b t"], *, as_embedding: bool = False
    ) -> Float[Tensor, "b t"]:
        """Return log p(x_t | x_<t) where `read` is true, else 0.

        A shift `inputs.labels` adds labels . log p at its positions, which is zero in value.

        Args:
            as_embedding: let `inputs.embeddings` at position t be its label: the shift from the
                table's row adds shift . h, for the hidden state h before it, which is zero in value
                at a token.
        """
        result = torch.zeros(read.shape, device=read.device)
        for part in self.predictions(inputs, read):
            labels = inputs.ids[part.at]
            log_probs = part.logits.log_probs(part.index, labels)
            if as_embedding and inputs.embeddings is not None:
                shift = inputs.embeddings[part.at] - self.vocabulary.embedding[labels]
                log_probs = log_probs + (shift * part.logits.hidden[part.index]).sum(-1)
            result = result.to(log_probs).index_put(part.at, log_probs)
            if inputs.labels is not None and inputs.label_positions is not None:
                result = part.add_label_shift(result, inputs)
        return result

    @torch.no_grad()
    def says(self, inputs: Inputs) -> Bool[Tensor, " b"]:
        """Return whether greedy decoding after each row's prompt yields its label."""
        result = torch.ones(len(inputs.ids), dtype=torch.bool, device=self.device)
        for part in self.predictions(inputs, inputs.label):
            wrong = part.logits.logits(part.index).argmax(-1) != inputs.ids[part.at]
            result[part.row[wrong]] = False
        return result
