"""Causal language models: how likely each token is after the tokens before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fuse.models.causal_proof import CausalProof
from fuse.models.decoder import Decoder
from fuse.models.gguf_files import SUFFIX
from fuse.models.kept_proof import settle_once
from fuse.models.loading import load_network, load_pretrained, loading
from fuse.models.model_files import read_object
from fuse.models.predictions import Predictions, state_kind
from fuse.nn.batch import CacheHits, Inputs
from fuse.nn.lm_head import LazyLogits
from fuse.nn.prefix_attention import PREFIX_ATTENTION

SOFTMAX_ATTENTION = ("eager", "sdpa", "flash_attention_2", PREFIX_ATTENTION)
"""Kinds of attention that differ in how they compute alone."""
LAYER_TYPES = ("full_attention", "sliding_attention")
"""The layers whose tokens see all before, or those within a window; as transformers calls them."""


class CausalLM(Decoder):
    """A Hugging Face causal LM.

    When it is made, short passes show in which ways its network reads as it does plainly.

    Args:
        network: a causal network of transformers with an output layer.
        tokenizer: a fast tokenizer of transformers.
        proof_dir: where what these passes show is kept, where they take over a second; None to
            make them each time.

    Raises:
        FuseError: the network is not causal, changes from pass to pass, or does not read text.
    """

    goal = "fluency or label"
    keeps_proof = True

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, tokenizer: Any, *, proof_dir: Path | None = None) -> None:
        super().__init__(network, tokenizer)
        self._windows = self._layer_windows()
        for turn in (self.acceleration.turn, self.turn_late_logits, self.turn_narrowed_output):
            turn(False)
        self.turn_narrowed_layer(False)
        self.turn_padding(False)
        proof = CausalProof(self, may_pack=self._may_pack())
        settle_once(proof_dir, self, proof.prove, proof.apply)

    def _layer_windows(self) -> list[int | None]:
        """Return `_windows`; nothing where the layers' caches are not of keys and values."""
        try:
            layers = DynamicCache(config=self.network.config).layers
        except AttributeError:  # a config that knows no layers
            return []
        if not all(isinstance(layer, DynamicLayer) for layer in layers):
            return []
        return [getattr(layer, "sliding_window", None) for layer in layers]

    def _may_pack(self) -> bool:
        """Whether the network says that its attention can be replaced by ours.

        What short rows cannot show has to be said by its config: how far each layer sees.
        """
        network, config = self.network, self.network.config.get_text_config()
        name = network.config._attn_implementation
        backend = getattr(network, "_supports_attention_backend", False)
        replaceable = backend and name in SOFTMAX_ATTENTION
        known = {*(getattr(config, "layer_types", None) or ())} <= {*LAYER_TYPES}
        # Some networks' layers share the keys and values of one
        own_caches = len(self._windows) == getattr(config, "num_hidden_layers", 0)
        return replaceable and known and own_caches

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        proof_dir: Path | None = None,
        **options: Any,
    ) -> CausalLM:
        """Load a model from a hub id or a local folder; `options` go to `from_pretrained`.

        `proof_dir` is that of the class. One that reads pictures, too, reads text alone.

        Raises:
            FuseError: the model cannot be found or read, or is no causal language model.
        """
        from transformers import AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
        auto_class = _auto_class(model_id, **options)
        network = load_network(auto_class, model_id, device, dtype=dtype, **options)
        with loading(model_id):
            return cls(network, tokenizer, proof_dir=proof_dir)

    def predictions(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> list[Predictions]:
        """Predict the tokens at the positions that `read` marks.

        Tokens that no prediction needs are not read, and rows that are equal as far as they are
        read share one pass: so do candidates that differ in their last token alone. What the prefix
        cache holds is taken from there. Position 0 is never predicted: nothing stands before it.

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

        It is 0 for a row's first token, too, which nothing stands before where the tokenizer has no
        start token: no prompt can change how likely the network finds it.

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


def _auto_class(model_id: str, **options: Any) -> Any:
    """Return the class of transformers that loads a language model, or one that sees, too."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto

    if model_id.endswith(SUFFIX):
        return AutoModelForCausalLM
    with loading(model_id):
        config = read_object(str(Path(model_id).expanduser()), "config.json", **options)
    kind = config.get("model_type")
    sees = kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if sees and kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM
