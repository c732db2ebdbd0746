"""Packed batches: which tokens they read, what these see, and the caches for both kinds of pass.

A packed batch is one row that holds the tokens of many: those that each row has to read itself, row
after row. A padded batch has its rows as they are.

Shape letters: b rows, r the same sorted, t positions, q own tokens of a row, k keys, n packed
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from fuse.nn.batch import CacheHits


@dataclass(frozen=True)
class PackingPlan:
    """Which tokens of a packed batch belong to which row, and what they see.

    Rows are sorted by the row of the cache that they go on from.
    """

    groups: list[tuple[int, int]]
    """Rows of the cache, and how many rows of the batch go on from each."""
    tokens: Int[Tensor, "r q"]
    """Indices in the packed batch of each row's own tokens; shorter rows are padded by 0."""
    unpadded: Int[Tensor, " n"]
    """For each token of the packed batch its index in `tokens`, flattened."""
    distance: Int[Tensor, "r q k"]
    """How many positions each token stands after each key: the cached ones, then its row's own.

    Negative where the token does not see the key.
    """
    real: Bool[Tensor, "r q"]
    """Which of `tokens` are no padding."""

    @cached_property
    def by_group(self) -> list[Int[Tensor, " _"]]:
        """The indices in the packed batch of the tokens of each group."""
        counts = [count for _, count in self.groups]
        parts = zip(self.tokens.split(counts), self.real.split(counts), strict=True)
        return [tokens[real] for tokens, real in parts]

    @cached_property
    def ungrouped(self) -> Int[Tensor, " n"]:
        """For each token of the packed batch its index in `by_group`, one group after another."""
        return torch.cat(self.by_group).argsort()

    def unseen(self, window: int | None) -> Bool[Tensor, "r q k"]:
        """Return which keys each token does not see where it sees so many positions."""
        return (self.distance < 0) | (self.distance >= (window or inf))

    def num_shared(self, unseen: Bool[Tensor, "r q k"]) -> int:
        """Return how many of the first cached keys every token sees."""
        num_cached = unseen.shape[-1] - unseen.shape[1]
        hidden = unseen[..., :num_cached] & self.real[..., None]
        return int((hidden.flatten(0, 1).any(0).cumsum(0) == 0).sum())


def leftmost(marked: Bool[Tensor, "b t"]) -> tuple[Int[Tensor, "b q"], Bool[Tensor, "b q"]]:
    """Return the marked positions of each row from the left on, and which of these are no padding.

    They are as many as the row with the most has.
    """
    counts = marked.sum(1, keepdim=True)
    found = marked.long().argsort(dim=1, descending=True, stable=True)
    positions = found[:, : int(counts.max())]
    return positions, torch.arange(positions.shape[1], device=marked.device) < counts


def _plan(hits: CacheHits, own: Bool[Tensor, "b t"]) -> PackingPlan:
    """Plan a packed batch of rows that read their `own` tokens themselves."""
    order = hits.row.argsort(stable=True)
    packed_index = (own.flatten().cumsum(0).view(own.shape) - 1)[order]  # [r t]
    own, cached_position = own[order], hits.cached_position[order]
    cache_rows, counts = hits.row[order].unique_consecutive(return_counts=True)
    positions, real = leftmost(own)  # [r q]
    tokens = torch.where(real, packed_index.gather(1, positions), -1)
    # Sorted by their index, padding first
    unpadded = tokens.flatten().argsort(stable=True)[int((tokens < 0).sum()) :]
    groups = list(zip(cache_rows.tolist(), counts.tolist(), strict=True))
    num_cached = hits.prefixes.keys_values[0][0].shape[-2]
    distance = _distance(positions, cached_position, num_cached)
    return PackingPlan(groups, tokens.clamp_min(0), unpadded, distance, real)


def _distance(
    positions: Int[Tensor, "r q"], cached_position: Int[Tensor, "r t"], num_cached: int
) -> Int[Tensor, "r q k"]:
    """Return `PackingPlan.distance` of tokens at these positions of their rows."""
    (count, width), device = cached_position.shape, positions.device
    # The position in its row for which each cached token stands; the width where there is none
    position = torch.full((count, num_cached + 1), width, device=device)
    cached_position = torch.where(cached_position >= 0, cached_position, num_cached)
    position = position.scatter(
        1, cached_position, torch.arange(width, device=device).expand(count, width)
    )[:, :num_cached]
    to_cached = positions[..., None] - position[:, None]  # [r q num_cached]
    index = torch.arange(positions.shape[1], device=device)
    to_own = positions[..., None] - positions[:, None]
    to_own = torch.where(index <= index[:, None], to_own, -1)  # [r q q]
    return torch.cat([to_cached, to_own], 2)


class PackedLayer(DynamicLayer):
    """One layer's keys and values of a packed batch, next to those of a prefix cache."""

    def __init__(
        self,
        hits: CacheHits,
        layer: int,
        plan: PackingPlan,
        window: int | None,
        unseen: Bool[Tensor, "r q k"],
        num_shared: int,
    ) -> None:
        super().__init__()
        self.plan, self.window, self.unseen, self.num_shared = plan, window, unseen, num_shared
        self.cached_keys, self.cached_values = hits.prefixes.keys_values[layer]


def packed_cache(
    hits: CacheHits, own: Bool[Tensor, "b t"], windows: Sequence[int | None] = ()
) -> Cache:
    """Return the cache for one pass over a packed batch with the attention PREFIX_ATTENTION.

    Args:
        own: the tokens that the rows read themselves.
        windows: for each layer how many positions a token sees, its own one included; None for all.
    """
    plan, layers = _plan(hits, own), range(len(hits.prefixes.keys_values))
    seen = {}
    for window in {None, *windows}:
        unseen = plan.unseen(window)
        seen[window] = unseen, plan.num_shared(unseen)
    packed: list[Any] = []
    for layer in layers:
        window = windows[layer] if windows else None
        packed.append(PackedLayer(hits, layer, plan, window, *seen[window]))
    return Cache(packed)


def padded_cache(hits: CacheHits | None, config: Any = None) -> Any:
    """Return the cache for one pass over a padded batch, with any attention; empty without hits.

    It holds a copy of the tokens that no row has to read, for each row.
    """
    cache = DynamicCache(config=config)
    if hits is not None:
        num_shared = hits.num_shared_tokens
        for layer, (keys, values) in enumerate(hits.prefixes.keys_values):
            cache.update(keys[hits.row, :, :num_shared], values[hits.row, :, :num_shared], layer)
    return cache
