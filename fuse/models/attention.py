"""Attention of many rows to keys and values that they take over from a trunk, in the caches of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
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


@dataclass(frozen=True)
class Plan:
    """Which of a batch's tokens belong to its rows, and what they see. Rows that go on from one row of the trunk follow one another."""

    groups: list[tuple[int, int]]
    """Rows of the trunk, and how many rows of the batch go on from each."""
    tokens: Int[Tensor, "r q"]
    """The numbers of the tokens that each row reads itself; shorter rows are filled up."""
    where: Int[Tensor, " n"]
    """Where each of the n tokens stands in `tokens`, line after line."""
    distance: Int[Tensor, "r q k"]
    """How many places each token stands behind those of its row of the trunk and, behind these, those that its own row reads;
    negative where it sees nothing of them."""


def leftmost(marked: Bool[Tensor, "b t"]) -> tuple[Int[Tensor, "b q"], Bool[Tensor, "b q"]]:
    """The marked places of each row from the left on, as wide as the row with the most; False behind the last one."""
    counts = marked.sum(1, keepdim=True)
    places = marked.long().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    return places, torch.arange(places.shape[1], device=marked.device) < counts


def _plan(branch: Branch, own: Bool[Tensor, "b t"]) -> Plan:
    """The plan for rows that read their `own` tokens themselves, which are numbered row after row."""
    order = branch.row.argsort(stable=True)
    numbers = (own.flatten().cumsum(0).view(own.shape) - 1)[order]
    own, known = own[order], branch.known[order]
    lines, counts = branch.row[order].unique_consecutive(return_counts=True)
    places, real = leftmost(own)
    number = torch.arange(places.shape[1], device=own.device)
    # Where in its row each token of the trunk stands, if anywhere
    beyond, size = own.shape[1], branch.trunk.states[0][0].shape[-2]
    where = torch.full((len(own), size + 1), beyond, device=own.device)
    where = where.scatter(1, torch.where(known >= 0, known, size), torch.arange(beyond, device=own.device).expand_as(known))[:, :size]
    among = torch.where(number <= number[:, None], places[..., None] - places[:, None], -1)
    distance = torch.cat([places[..., None] - where[:, None], among], 2)
    tokens = torch.where(real, numbers.gather(1, places), -1)
    found = tokens.flatten().argsort(stable=True)[int((tokens < 0).sum()) :]
    return Plan(list(zip(lines.tolist(), counts.tolist(), strict=True)), tokens.clamp_min(0), found, distance)


class BranchLayer(DynamicLayer):
    """One layer's keys and values of a batch's own tokens, beside those of a trunk."""

    def __init__(self, branch: Branch, layer: int, plan: Plan, unseen: Bool[Tensor, "r q k"]) -> None:
        super().__init__()
        self.plan, self.unseen = plan, unseen
        self.trunk_keys, self.trunk_values = branch.trunk.states[layer]


def branch_cache(branch: Branch, own: Bool[Tensor, "b t"], windows: Sequence[int | None] = ()) -> Cache:
    """What a batch goes on from that reads its rows' `own` tokens, one row after another, for the attention BRANCHING alone.

    Where a layer has a window, each token sees so many places, its own one included.
    """
    plan, layers = _plan(branch, own), range(len(branch.trunk.states))
    unseen = {window: (plan.distance < 0) | (plan.distance >= (window or inf)) for window in {None, *windows}}
    return Cache([BranchLayer(branch, layer, plan, unseen[windows[layer] if windows else None]) for layer in layers])


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
    attention_mask: Tensor | None,
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
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    assert key is layer.keys, "the attention has to read what the cache returns"
    plan, (rows, _, length, width) = layer.plan, query.shape
    scaled = query * (width**-0.5 if scaling is None else scaling)
    # [g r n e]: heads that share their keys stand among the tokens of a row
    own_query = _rows(scaled, plan).unflatten(0, (key.shape[1], -1)).transpose(1, 2).flatten(2, 3)
    own_key, own_value = _rows(key, plan), _rows(value, plan)
    scores = torch.cat([_shared(own_query, plan.groups, layer.trunk_keys.mT), own_query @ own_key.mT], -1)
    # The least number instead of -inf: what sees nothing stays a number
    count = plan.tokens.shape[1]
    scores.unflatten(2, (-1, count)).masked_fill_(layer.unseen[:, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value)
    known = layer.trunk_keys.shape[-2]
    out = _shared(weights[..., :known], plan.groups, layer.trunk_values) + weights[..., known:] @ own_value
    found = out.unflatten(2, (-1, count)).permute(1, 3, 0, 2, 4).flatten(2, 3).flatten(0, 1)
    return found.index_select(0, plan.where).view(rows, length, *found.shape[1:]), None


def _rows(states: Float[Tensor, "b h t e"], plan: Plan) -> Float[Tensor, "h r q e"]:
    """What belongs to the tokens of each row."""
    return states.transpose(0, 1).flatten(1, 2).index_select(1, plan.tokens.flatten()).unflatten(1, plan.tokens.shape)


def _shared(left: Float[Tensor, "g r n i"], groups: list[tuple[int, int]], right: Float[Tensor, "u g i j"]) -> Float[Tensor, "g r n j"]:
    """left @ right, where rows of a batch share their right side: one product a group."""
    lines, counts = zip(*groups, strict=True)
    if len(set(counts)) == 1 and lines == tuple(range(len(right))):
        # [g u (r/u)n i] @ [g u i j]
        return (left.unflatten(1, (len(lines), -1)).flatten(2, 3) @ right.transpose(0, 1)).view(*left.shape[:3], -1)
    found = [
        (part.flatten(1, 2) @ right[line]).unflatten(1, part.shape[1:3]) for part, line in zip(left.split(counts, 1), lines, strict=True)
    ]
    return torch.cat(found, 1)


AttentionInterface.register(BRANCHING, attend)
AttentionMaskInterface.register(BRANCHING, sdpa_mask)
