"""Attention of many rows to keys and values that some of them share, in the caches of transformers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fuse.types import Branch

BRANCHING = "fuse_branching"
"""The name of this attention among those of transformers."""


class BranchLayer(DynamicLayer):
    """One layer's keys and values of a batch's own tokens, which stand behind those of a trunk."""

    def __init__(self, branch: Branch, layer: int, groups: list[tuple[int, int]]) -> None:
        super().__init__()
        keys, values = branch.trunk.states[layer]
        self.shared_keys, self.shared_values = keys[:, :, : branch.length], values[:, :, : branch.length]
        self.groups = groups
        """Rows of the trunk, and how many rows of the batch, one after another, go on from each."""

    def get_seq_length(self) -> int:
        return self.shared_keys.shape[-2] + super().get_seq_length()


def branch_cache(branch: Branch, rows: Tensor) -> Cache:
    """What these rows of a batch go on from, for the attention BRANCHING alone: nothing is copied."""
    lines, counts = branch.row[rows].unique_consecutive(return_counts=True)
    groups = list(zip(lines.tolist(), counts.tolist(), strict=True))
    return Cache([BranchLayer(branch, layer, groups) for layer in range(len(branch.trunk.states))])


def whole_cache(branch: Branch | None, rows: Tensor, config: Any = None) -> Any:
    """The same for any attention, as a copy of every row's; empty without a branch."""
    cache = DynamicCache(config=config)
    if branch is not None:
        for layer, (keys, values) in enumerate(branch.trunk.states):
            cache.update(keys[branch.row[rows], :, : branch.length], values[branch.row[rows], :, : branch.length], layer)
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
    """Softmax attention to the batch's own keys and, with `branching`, to those of its trunk.

    `updating` comes from models that know of no cache; others have updated `branching` before.
    """
    if updating is not None:
        key, value = updating.update(key, value, module.layer_idx)
    layer = None if branching is None else branching.layers[module.layer_idx]
    if layer is None or not isinstance(layer, BranchLayer):
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)
    assert key is layer.keys, "the attention has to read what the cache returns"
    rows, heads, length, width = query.shape
    # [b g r e]: heads that share their keys stand among the tokens
    query = (query * (width**-0.5 if scaling is None else scaling)).reshape(rows, key.shape[1], -1, width)
    scores = torch.cat([_shared(query, layer.groups, layer.shared_keys.mT), query @ key.mT], -1).view(rows, heads, length, -1)
    if mask is not None:
        # The least number instead of -inf: padding that sees nothing stays a number
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value).view(*query.shape[:3], -1)
    known = layer.shared_keys.shape[-2]
    out = _shared(weights[..., :known], layer.groups, layer.shared_values) + weights[..., known:] @ value
    return out.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def _shared(left: Float[Tensor, "b g r i"], groups: list[tuple[int, int]], right: Float[Tensor, "u g i j"]) -> Float[Tensor, "b g r j"]:
    """left @ right, where rows of the batch share their right side: one product a group."""
    lines, counts = zip(*groups, strict=True)
    found = []
    for part, line in zip(left.split(counts), lines, strict=True):
        product = part.transpose(0, 1).flatten(1, 2) @ right[line]
        found.append(product.unflatten(1, part.shape[::2]).transpose(0, 1))
    return torch.cat(found) if len(found) > 1 else found[0]


AttentionInterface.register(BRANCHING, attend)
AttentionMaskInterface.register(BRANCHING, sdpa_mask)
