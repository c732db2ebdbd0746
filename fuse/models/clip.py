"""Dual encoders of Hugging Face: a text tower and a vision tower with one embedding space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel, context_length
from fuse.models.loading import load_network, load_pretrained, loading, preparing
from fuse.models.reuse_trial import ReuseTrial
from fuse.models.siglip_tokenizer import fast_form
from fuse.models.text_form import TextProof, use_eager_attention
from fuse.models.text_tower import num_positions, token_layer
from fuse.models.token_pooling import TokenPooling
from fuse.nn.batch import CachedPrefixes, CacheHits, Inputs
from fuse.nn.fixed_layers import LastFeedForward
from fuse.nn.hooks import changing_output
from fuse.nn.packing import leftmost, packed_cache, padded_cache
from fuse.nn.prefix_attention import use_prefix_attention

if TYPE_CHECKING:
    from PIL.Image import Image


class CLIP(EmbeddingModel):
    """A dual encoder: CLIP, SigLIP, ALIGN, or another that has features of texts and of images.

    When it is made, short passes try whether the text tower packs rows and goes on from a prefix
    cache, and prove that its vectors of texts are the network's own.

    Raises:
        FuseError: the network is no dual encoder, or its vectors are others.
    """

    goal = "image"

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, tokenizer: Any, image_processor: Any) -> None:
        layer = token_layer(network)
        length = min(context_length(network.config, tokenizer), num_positions(network))
        super().__init__(network, fast_form(tokenizer), layer, length)
        self.image_processor = image_processor
        proof = TextProof(network, tokenizer, self.vocabulary)
        self._form, self._num_numbers = proof.form, proof.num_numbers
        self._last: LastFeedForward | None = None
        self._pooling: TokenPooling | None = None
        if self._form.width is None:
            self._try_reuse()
        else:
            self.vocabulary.max_length = self._form.width
        if not proof.passes(self):
            self.supports_prefix_cache = self.supports_packing = False
            self._last = None
            use_eager_attention(self.network)
            proof.check(self)

    def _try_reuse(self) -> None:
        """Find out whether the text tower packs rows and goes on from a prefix cache."""
        tower: Any = getattr(self.network, "text_model", None)
        layers = getattr(getattr(tower, "encoder", None), "layers", ())
        attention = [layer.self_attn for layer in layers if hasattr(layer, "self_attn")]
        pooling = TokenPooling.of(tower, self.vocabulary) if attention else None
        if pooling is None:
            return
        self._pooling = pooling
        ids = torch.arange(4, device=self.device)[None]
        self._last = LastFeedForward(
            tower, len(layers), lambda: tower(input_ids=ids).last_hidden_state[:, -1]
        )
        trial = ReuseTrial(self, lambda inputs, _: self.vector(inputs))
        for number, module in enumerate(attention):
            module.layer_idx = number
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
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        network = load_network(AutoModel, model_id, device, dtype=dtype, may_lack="", **options)
        tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
        image_processor = load_pretrained(AutoImageProcessor, model_id, **options)
        with loading(model_id):
            return cls(network, tokenizer, image_processor)

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Return unit text vectors, pooled where the network itself pools."""
        hits = inputs.hits
        if self._form.width is not None:
            inputs = self._form.padded(inputs, self.vocabulary.embedding)
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
        assert self._pooling is not None
        at = self._pooling.position(inputs.ids)[:, None]
        return bool((hits.cached_position.gather(1, at) >= 0).any())

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
        options = self._form.options(ids, mask)
        if positions is not None:
            options["position_ids"] = positions
        if cache is not None:
            options |= {"cache_hits": cache, "cache_update": cache}
        # A copy: some networks write to what they have looked up
        embeddings = None if embeddings is None else embeddings.clone()
        with self.reading(embeddings), self._reading_only_pooled(ids, real):
            return self.network.get_text_features(**options).pooler_output

    def _reading_only_pooled(
        self, ids: Int[Tensor, "b t"], real: Bool[Tensor, "b t"] | None
    ) -> Any:
        """Let the last feed-forward part read the tokens that are pooled alone, within a context.

        Args:
            real: the tokens that the layers read as one row; None if they read the rows as they
                are.
        """
        if self._last is None or self._pooling is None:
            return nullcontext()
        position = torch.arange(ids.shape[1], device=ids.device)
        pooled = position == self._pooling.position(ids)[:, None]
        return self._last.only(pooled if real is None else pooled[real][None])

    @torch.no_grad()
    def embed_images(self, images: list[Image]) -> Float[Tensor, "b e"]:
        """Return unit image vectors, one an image."""
        with preparing("vector", "preprocessor_config.json"):
            read = self.network.get_image_features
            given = self.image_processor(images=images, return_tensors="pt")
            given = given.to(self.device, self.network.dtype)
            known = signature(read).parameters
            out = read(**{name: value for name, value in given.items() if name in known})
            vectors = out.pooler_output
            if vectors.shape[1:] != (self._num_numbers,):
                raise FuseError(
                    f"network={type(self.network).__name__}: its vectors of pictures have the "
                    f"shape {tuple(vectors.shape[1:])} and those of texts {self._num_numbers} "
                    "numbers; choose another dual encoder"
                )
            return normalize(vectors.float(), dim=-1)


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
