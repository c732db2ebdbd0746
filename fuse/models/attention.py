"""Attention of many rows to keys and values that they take over from a trunk, in the caches of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fuse.types import Branch

BRANCHING = "fuse_branching"
"""The name of this attention among those of transformers."""
APART = 64
"""From how many tokens on that all rows begin with it pays not to lay them side by side for each row."""


@dataclass(frozen=True)
class Plan:
    """Where the queries and keys of each row stand.

    Queries are numbered among a batch's own tokens, keys among those of its trunk, but for the first that are kept apart,
    and its own behind these. Each row sees the tokens that are kept apart, and of its keys those that are `seen`.
    """

    queries: Int[Tensor, "r q"]
    keys: Int[Tensor, "r k"]
    seen: Bool[Tensor, "r q k"]
    real: Bool[Tensor, "r q"]
    """False at queries that fill up shorter rows."""


def _apart(branch: Branch) -> int:
    """How many tokens the keys and values of which are not laid side by side, since all rows begin with the very same."""
    length = min(branch.trunk.common, branch.length)
    return length if length >= APART else 0


def _plan(branch: Branch, own: Int[Tensor, "b t"]) -> Plan:
    """What rows see that read the tokens numbered by `own` themselves; -1 elsewhere."""
    apart, trunk = _apart(branch), branch.trunk.states[0][0]
    rest = trunk.shape[-2] - apart
    taken = torch.where(branch.known >= 0, branch.row[:, None] * rest + branch.known - apart, -1)
    keys = torch.where(own >= 0, own + len(trunk) * rest, taken)[:, apart:]
    counts = (own >= 0).sum(1)
    places = (own >= 0).long().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    seen = (keys >= 0)[:, None] & (torch.arange(apart, own.shape[1], device=own.device) <= places[..., None])
    real = torch.arange(places.shape[1], device=own.device) < counts[:, None]
    return Plan(own.gather(1, places).clamp_min(0), keys.clamp_min(0), seen, real)


class BranchLayer(DynamicLayer):
    """One layer's keys and values of a batch's own tokens, beside those of a trunk."""

    def __init__(self, branch: Branch, layer: int, plan: Plan) -> None:
        super().__init__()
        self.plan, apart = plan, _apart(branch)
        self.apart = [states[0, :, :apart] for states in branch.trunk.states[layer]]
        self.rest = [_tokens(states[:, :, apart:]) for states in branch.trunk.states[layer]]


def branch_cache(branch: Branch, own: Int[Tensor, "b t"]) -> Cache:
    """What a batch goes on from that reads the tokens numbered by `own`, for the attention BRANCHING alone."""
    plan = _plan(branch, own)
    return Cache([BranchLayer(branch, layer, plan) for layer in range(len(branch.trunk.states))])


def whole_cache(branch: Branch | None, config: Any = None) -> Any:
    """What all rows of a batch begin with, for any attention, as a copy of every row's; empty without a branch."""
    cache = DynamicCache(config=config)
    if branch is not None:
        for layer, (keys, values) in enumerate(branch.trunk.states):
            cache.update(keys[branch.row, :, : branch.length], values[branch.row, :, : branch.length], layer)
    return cache


def attend(
    module: Any,
    query: Float[Tensor, "b h q e"],
    key: Float[Tensor, "b g k e"],
    value: Float[Tensor, "b g k e"],
    mask: Tensor | None,
    *,
    branching: Cache | None = None,
    updating: Cache | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "b q h e"], None]:
    """Softmax attention to the batch's own keys and, with `branching`, to those of its trunk, as its plan says.

    `updating` comes from models that know of no cache; others have updated `branching` before.
    """
    if updating is not None:
        key, value = updating.update(key, value, module.layer_idx)
    layer = None if branching is None else branching.layers[module.layer_idx]
    if layer is None or not isinstance(layer, BranchLayer):
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)
    assert key is layer.keys, "the attention has to read what the cache returns"
    rows, heads, length, width = query.shape
    queries = _tokens(query * (width**-0.5 if scaling is None else scaling))
    keys, values = (torch.cat([rest, _tokens(own)]) for rest, own in zip(layer.rest, (key, value), strict=True))
    found = _attention(queries, keys, values, layer.apart, layer.plan)
    out = found.new_zeros(rows * length, *found.shape[1:]).index_copy(0, layer.plan.queries[layer.plan.real], found)
    return out.view(rows, length, heads, -1), None


def _attention(
    queries: Float[Tensor, "n h e"], keys: Float[Tensor, "m g e"], values: Float[Tensor, "m g e"], apart: list[Tensor], plan: Plan
) -> Float[Tensor, "o h e"]:
    """What the queries find."""
    length = plan.queries.shape[1]
    # [r g n e]: heads that share their keys stand among the queries
    query = _picked(queries, plan.queries).unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    key, value = _picked(keys, plan.keys), _picked(values, plan.keys)
    scores = (query @ key.mT).unflatten(2, (-1, length))
    # The least number instead of -inf: what sees nothing stays a number
    scores = scores.masked_fill(~plan.seen[:, None, None], torch.finfo(scores.dtype).min).flatten(2, 3)
    first = apart[0].shape[-2]
    if first:
        scores = torch.cat([_shared(query, apart[0].mT), scores], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value)
    out = weights[..., first:] @ value
    if first:
        out = out + _shared(weights[..., :first], apart[1])
    return out.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2)[plan.real]


def _shared(left: Float[Tensor, "r g n i"], right: Float[Tensor, "g i j"]) -> Float[Tensor, "r g n j"]:
    """left @ right, as one product for all rows."""
    return (left.transpose(0, 1).flatten(1, 2) @ right).unflatten(1, left.shape[::2]).transpose(0, 1)


def _tokens(states: Float[Tensor, "b h t e"]) -> Float[Tensor, "bt h e"]:
    return states.transpose(1, 2).flatten(0, 1)


def _picked(tokens: Float[Tensor, "n h e"], at: Int[Tensor, "r k"]) -> Float[Tensor, "r h k e"]:
    # Of whole lines, since that is several times as quick
    return tokens.flatten(1).index_select(0, at.flatten()).view(*at.shape, *tokens.shape[1:]).transpose(1, 2)


AttentionInterface.register(BRANCHING, attend)
AttentionMaskInterface.register(BRANCHING, sdpa_mask)
