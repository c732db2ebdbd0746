"""Products of a few points with a whole table, such as that of a vocabulary's embeddings."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PIECE = 1024
"""How many lines of a table are taken at once on a CPU, whose cache holds them."""
FEW = 4
"""Up to how many points the table is better taken whole, on the left side."""


def inner_products(points: Float[Tensor, "*n d"], table: Float[Tensor, "v d"]) -> Float[Tensor, "*n v"]:
    """points @ table.T, which CPUs are up to twice as slow at. A gradient goes the plain way."""
    if points.device.type != "cpu" or points.requires_grad or table.requires_grad:
        return points @ table.T
    flat = points.reshape(-1, points.shape[-1])
    if len(flat) <= FEW:
        return (table @ flat.T).T.reshape(*points.shape[:-1], len(table))
    out = flat.new_empty(len(flat), len(table))
    for begin in range(0, len(table), PIECE):
        torch.mm(flat, table[begin : begin + PIECE].T, out=out[:, begin : begin + PIECE])
    return out.view(*points.shape[:-1], len(table))
