"""Attention of packed rows to keys and values from a prefix cache, as an attention of transformers.

`attend` lets each token of a packed batch see the cached tokens of its own row and the tokens
before it there, and nothing of other rows.

Shape letters: b rows of a pass, r rows of a packed batch, u rows of the cache, t positions, q own
tokens of a row, k keys, n packed tokens, h heads, g heads of keys, e width of keys, f of values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fuse.nn.packing import PackedLayer, PackingPlan

PREFIX_ATTENTION = "fuse_prefix_attention"
"""The name under which transformers knows this attention."""
MIN_APART = 64
"""Keys that all tokens see are attended to apart if they are so many: fewer cost less together."""
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias")
"""What some networks ask of their attention and is not offered: caps, sinks, biases of scores."""


def use_prefix_attention(network: Any) -> Callable[[], None]:
    """Let all parts of a network that look their attention up by a config use PREFIX_ATTENTION.

    Returns:
        A function that undoes it.
    """
    attention = Attention(network)
    attention.use(PREFIX_ATTENTION)
    return attention.use


class Attention:
    """The attention of a network's parts that look it up by a config.

    Other attention stays in use: whether it was replaced has to be tried.
    """

    def __init__(self, network: Any) -> None:
        self._given: dict[int, tuple[Any, Any]] = {}
        """Each config with the name of its attention as given."""
        for module in network.modules():
            config = getattr(module, "config", None)
            if config is not None and id(config) not in self._given:
                name = getattr(config, "_attn_implementation", None)
                self._given[id(config)] = config, name

    def use(self, name: str | None = None) -> None:
        """Use an attention by its name in transformers; None for that of the network as given."""
        for config, given in self._given.values():
            config._attn_implementation = given if name is None else name


def attend(
    module: Any,
    query: Float[Tensor, "b h q e"],
    key: Float[Tensor, "b g k e"],
    value: Float[Tensor, "b g k f"],
    attention_mask: Tensor | None,
    *,
    cache_hits: Cache | None = None,
    cache_update: Cache | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "b q h f"], None]:
    """Attend to the keys given and, with a `packed_cache`, to those of the prefix cache.

    Args:
        cache_hits: what a network passes on that has put the keys and values into this cache
            already.
        cache_update: a cache to put them into, of a network that knows of no cache.

    Returns:
        The values, weighted, and no weights.
    """
    if cache_update is not None:
        key, value = cache_update.update(key, value, module.layer_idx)
    layer = None if cache_hits is None else cache_hits.layers[module.layer_idx]
    if layer is None or not isinstance(layer, PackedLayer):
        options["scaling"] = scaling
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert key is layer.keys, "the attention has to read what the cache returns"
    _check_options(options, layer)
    return _attend_packed(query, key, value, layer, scaling), None


def _check_options(options: dict[str, Any], layer: PackedLayer) -> None:
    """Refuse what packed rows cannot have.

    Raises:
        NotImplementedError: the network wants more than softmax attention, or another window.
    """
    for name in UNKNOWN_OPTIONS:
        if options.get(name) is not None:
            raise NotImplementedError(name)
    if options.get("sliding_window") not in (None, layer.window):
        raise NotImplementedError("sliding_window")


def _attend_packed(
    query: Float[Tensor, "1 h n e"],
    key: Float[Tensor, "1 g n e"],
    value: Float[Tensor, "1 g n f"],
    layer: PackedLayer,
    scaling: float | None,
) -> Float[Tensor, "1 n h f"]:
    """Compute softmax attention of a packed batch, each row by itself.

    What all tokens see, such as a long prefix, is attended to apart and without a mask; the two
    parts are joined by their normalisers (cascade attention, as in arXiv 2501.01005, section 3).
    """
    plan, (rows, _, length, width) = layer.plan, query.shape
    scaled = query * (width**-0.5 if scaling is None else scaling)
    # [g r n e]: heads that share their keys become further queries of the same head
    own_query = _by_row(scaled, plan).unflatten(0, (key.shape[1], -1)).transpose(1, 2).flatten(2, 3)
    own_key, own_value = _by_row(key, plan), _by_row(value, plan)
    # The gradient needs the whole softmax
    num_apart = 0 if scaled.requires_grad else layer.num_shared
    num_apart *= num_apart >= MIN_APART
    cached_keys, cached_values = layer.cached_keys, layer.cached_values
    cached_scores = _times_shared(own_query, plan.groups, cached_keys[:, :, num_apart:].mT)
    scores = torch.cat([cached_scores, own_query @ own_key.mT], -1)
    # The lowest number, not -inf, so that a row which sees nothing gets numbers
    count = plan.tokens.shape[1]
    lowest = torch.finfo(scores.dtype).min
    unseen = layer.unseen[:, None, :, num_apart:]
    scores.unflatten(2, (-1, count)).masked_fill_(unseen, lowest)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=dtype).to(value)
    num_cached = cached_keys.shape[-2] - num_apart
    out = _times_shared(weights[..., :num_cached], plan.groups, cached_values[:, :, num_apart:])
    out = out + weights[..., num_cached:] @ own_value
    by_token = _by_token(out, plan)
    if num_apart:
        log_normaliser = _by_token(scores.logsumexp(-1)[..., None], plan)[..., 0]
        apart, log_normaliser_apart = _attend_apart(scaled[0], layer, num_apart)
        share = (log_normaliser_apart - log_normaliser).sigmoid()
        by_token = by_token.lerp(apart, share[..., None].to(apart))
    return by_token.view(rows, length, *by_token.shape[1:])


def _by_row(states: Float[Tensor, "b h t e"], plan: PackingPlan) -> Float[Tensor, "h r q e"]:
    """Return the states of the tokens of each row."""
    states = states.transpose(0, 1).flatten(1, 2)
    return states.index_select(1, plan.tokens.flatten()).unflatten(1, plan.tokens.shape)


def _by_token(states: Float[Tensor, "g r i f"], plan: PackingPlan) -> Float[Tensor, "n h f"]:
    """Return what was computed for the own tokens of each row, token by token of the batch."""
    count = plan.tokens.shape[1]
    # [g r (h/g)q f] to [(r q) h f]
    found = states.unflatten(2, (-1, count)).permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)
    return found.index_select(0, plan.unpadded)


def _attend_apart(
    query: Float[Tensor, "h n e"], layer: PackedLayer, count: int
) -> tuple[Float[Tensor, "n h f"], Float[Tensor, "n h"]]:
    """Attend to the first `count` cached keys, all of which every token sees.

    Returns:
        The values, weighted, and the logarithms of the softmax's normalisers.
    """
    num_keys = layer.cached_keys.shape[1]
    found = []
    for (row, _), tokens in zip(layer.plan.groups, layer.plan.by_group, strict=True):
        if not len(tokens):
            continue
        own = query.index_select(1, tokens).unflatten(0, (num_keys, -1)).flatten(1, 2)
        keys, values = layer.cached_keys[row, :, :count], layer.cached_values[row, :, :count]
        both = _plain_attention(own, keys, values)
        # [g (h/g)m f] to [m h f]
        found.append([one.unflatten(1, (-1, len(tokens))).flatten(0, 1) for one in both])
    order = layer.plan.ungrouped
    out, log_normaliser = (torch.cat(one, 1)[:, order] for one in zip(*found, strict=True))
    return out.transpose(0, 1), log_normaliser.T


def _plain_attention(
    query: Float[Tensor, "g n e"], keys: Float[Tensor, "g k e"], values: Float[Tensor, "g k f"]
) -> tuple[Float[Tensor, "g n f"], Float[Tensor, "g n"]]:
    """Attend without a mask.

    Returns:
        The values, weighted, and the logarithms of the softmax's normalisers.
    """
    if query.device.type == "cpu" and values.shape == keys.shape:
        # torch's own kernel keeps the scores in the processor's caches
        out, log_normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[None], keys[None], values[None], scale=1.0
        )
        return out[0], log_normaliser[0]
    scores = query @ keys.mT
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=dtype).to(values) @ values, scores.to(dtype).logsumexp(-1)


def _times_shared(
    left: Float[Tensor, "g r n i"],
    groups: list[tuple[int, int]],
    right: Float[Tensor, "u g i j"],
) -> Float[Tensor, "g r n j"]:
    """Return left @ right, where a group of rows shares its right side: one product a group."""
    cache_rows, counts = zip(*groups, strict=True)
    if len(set(counts)) == 1 and cache_rows == tuple(range(len(right))):
        # [g u (r/u)n i] @ [g u i j]
        by_group = left.unflatten(1, (len(cache_rows), -1)).flatten(2, 3)
        return (by_group @ right.transpose(0, 1)).view(*left.shape[:3], -1)
    found = []
    for part, row in zip(left.split(counts, 1), cache_rows, strict=True):
        product = part.flatten(1, 2) @ right[row]
        found.append(product.unflatten(1, part.shape[1:3]))
    return torch.cat(found, 1)


AttentionInterface.register(PREFIX_ATTENTION, attend)
AttentionMaskInterface.register(PREFIX_ATTENTION, sdpa_mask)
