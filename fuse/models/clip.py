"""CLIP models of Hugging Face: a text tower and a vision tower with one embedding space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from fuse.models.base import EmbeddingModel
from fuse.models.loading import load_network, load_pretrained, loading, preparing
from fuse.models.reuse_trial import ReuseTrial
from fuse.nn.batch import CachedPrefixes, CacheHits, Inputs
from fuse.nn.fixed_layers import LastFeedForward
from fuse.nn.hooks import changing_output
from fuse.nn.packing import leftmost, packed_cache, padded_cache
from fuse.nn.prefix_attention import use_prefix_attention

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(EmbeddingModel):
    """A dual encoder: CLIP, or another with its `get_text_features` and `get_image_features`.

    Its text tower is causal. When the model is made, short passes try whether the tower packs rows
    and goes on from a prefix cache.
    """

    goal = "image"

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, tokenizer: Any, image_processor: Any) -> None:
        length = network.config.text_config.max_position_embeddings
        layer = network.text_model.get_input_embeddings()
        super().__init__(network, tokenizer, layer, length)
        self.image_processor = image_processor
        tower = self.network.text_model
        ids = torch.arange(4, device=self.device)[None]
        layers = tower.encoder.layers
        self._last = LastFeedForward(
            tower, len(layers), lambda: tower(input_ids=ids).last_hidden_state[:, -1]
        )
        trial = ReuseTrial(self, lambda inputs, _: self.vector(inputs))
        for number, layer in enumerate(layers):
            layer.self_attn.layer_idx = number
        undo = use_prefix_attention(tower)
        self.supports_prefix_cache = self.supports_packing = True
        self.supports_packing = trial.passes(packed=True)
        self.supports_prefix_cache = self.supports_packing or trial.passes(packed=False)
        if not self.supports_prefix_cache:
            undo()

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> CLIP:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        network = load_network(CLIPModel, model_id, device, dtype=dtype, **options)
        tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
        image_processor = load_pretrained(AutoImageProcessor, model_id, **options)
        with loading(model_id):
            return cls(network, tokenizer, image_processor)

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Return unit text vectors, pooled where the network itself pools (at the end token)."""
        hits = inputs.hits
        if hits is None or self._pools_within(hits, inputs):
            pooled = self._run(inputs.ids, self._mask(inputs), inputs.embeddings)
        elif hits.packed and self.supports_packing:
            pooled = self._run_packed(inputs, hits)
        else:
            start = hits.num_shared_tokens
            pooled = self._run_from(start, inputs, padded_cache(hits))
        return normalize(pooled.float(), dim=-1)

    def _pools_within(self, hits: CacheHits, inputs: Inputs) -> bool:
        """Whether the network pools a row at a token that is cached, and has no state there: where
        the text itself holds an end token.
        """
        at = self._pooled_position(inputs.ids)[:, None]
        return bool((hits.cached_position.gather(1, at) >= 0).any())

    def _pooled_position(self, ids: Int[Tensor, "b t"]) -> Int[Tensor, " b"]:
        """Return where the network pools: at its first end token, or at the first highest id."""
        end = self.network.text_model.eos_token_id
        # As the network has it: the configs of the first CLIPs give the end token as 2
        return ids.argmax(1) if end == 2 else (ids == end).int().argmax(1)

    @torch.no_grad()
    def prefill(self, inputs: Inputs, positions: Sequence[int]) -> CachedPrefixes:
        """Read rows from which others can go on. Nothing is predicted."""
        start = 0 if inputs.hits is None else inputs.hits.num_shared_tokens
        cache = padded_cache(inputs.hits)
        self._run_from(start, inputs, cache)
        return CachedPrefixes([(layer.keys, layer.values) for layer in cache.layers], positions)

    def _mask(self, inputs: Inputs) -> Tensor:
        """Return a mask for the network.

        It is [b t] of the real tokens or, if there may be a cache, [b 1 t t] of what each one sees.
        """
        if not self.supports_prefix_cache:
            return inputs.mask.long()
        positions = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
        return (positions <= positions[:, None]) & inputs.mask[:, None, None]

    def _run_from(self, start: int, inputs: Inputs, cache: Any) -> Float[Tensor, "b e"]:
        """Read the tokens from `start` on, those before from the cache, which gets them all."""
        positions = torch.arange(start, inputs.ids.shape[1], device=inputs.ids.device)[None]
        embeddings = None if inputs.embeddings is None else inputs.embeddings[:, start:]
        mask = self._mask(inputs)[..., start:, :]
        return self._run(inputs.ids[:, start:], mask, embeddings, positions, cache)

    def _run_packed(self, inputs: Inputs, hits: CacheHits) -> Float[Tensor, "b e"]:
        """Read the tokens that are not cached, of all rows as one row."""
        own = inputs.mask & (hits.cached_position < 0)
        positions, real = leftmost(own)
        embeddings = inputs.embeddings
        if embeddings is not None:
            rows = torch.arange(len(own), device=own.device)[:, None]
            embeddings = embeddings[rows, positions]
        ids, cache = inputs.ids.gather(1, positions), packed_cache(hits, own)
        # Already a mask of four axes, which is passed on; the cache says what each token sees
        mask = own.new_ones(1, 1, 1, 1)
        with _packing_layers(self.network.text_model, real):
            return self._run(ids, mask, embeddings, positions, cache, real)

    def _run(
        self,
        ids: Int[Tensor, "b t"],
        mask: Tensor,
        embeddings: Float[Tensor, "b t d"] | None = None,
        positions: Int[Tensor, "#b t"] | None = None,
        cache: Any = None,
        real: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b e"]:
        """Return what the network pools.

        Args:
            cache: gets the keys and values; a `packed_cache` also says what each token sees.
            real: the tokens that the layers read as one row; None if they read the rows as they
                are.
        """
        # The network pools at its end token, or at the highest id
        end = self.network.text_model.eos_token_id
        pooled = (ids == end) | (ids == ids.amax(1, keepdim=True))
        pooled = pooled if real is None else pooled[real][None]
        options = {} if cache is None else {"cache_hits": cache, "cache_update": cache}
        with self.reading(embeddings), self._last.only(pooled):
            out = self.network.get_text_features(
                input_ids=ids, attention_mask=mask, position_ids=positions, **options
            )
        return out.pooler_output

    @torch.no_grad()
    def embed_images(self, images: list[Image]) -> Float[Tensor, "b e"]:
        """Return unit image vectors, one an image."""
        with preparing("vector", "preprocessor_config.json"):
            pixels = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
            pixels = pixels.to(self.device, self.network.dtype)
            out = self.network.get_image_features(pixel_values=pixels)
        return normalize(out.pooler_output.float(), dim=-1)


@contextmanager
def _packing_layers(tower: Any, real: Bool[Tensor, "b t"]) -> Iterator[None]:
    """Let the layers of a text tower read the real tokens as one row, within a context.

    Its embeddings and its pooling read the rows as they are.
    """

    def packed(states: Float[Tensor, "b t d"]) -> Float[Tensor, "1 n d"]:
        return states[real][None]

    def unpacked(states: Float[Tensor, "1 n d"]) -> Float[Tensor, "b t d"]:
        return states.new_zeros(*real.shape, states.shape[-1]).index_put((real,), states[0])

    before = changing_output(tower.embeddings, packed)
    with before, changing_output(tower.final_layer_norm, unpacked):
        yield
