"""Checks of what a fitted adapter's file holds, before anything is computed with it.

Each raises ValueError, with what is wrong with the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from fuse.nn.embedding_table import EmbeddedVocabulary

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


MAX_WORDS = 2**22
"""The most words that an adapter is fitted on."""
MAX_SUBTOKENS = 2**6
"""The most tokens that one of these words has."""


def check_shape(
    name: str, shape: Sequence[int], source: EmbeddedVocabulary, target: EmbeddedVocabulary
) -> None:
    """Check that a tensor of this shape can belong to a pair, before it is read."""
    widths = source.embedding.shape[1], target.embedding.shape[1]
    most = max(MAX_WORDS * max(widths), MAX_SUBTOKENS * widths[0] * widths[1])
    if len(shape) > 3 or math.prod(shape) > most:
        raise ValueError(f"{name} has shape {tuple(shape)}, too many numbers for this pair")


def check_names(tensors: Mapping[str, Tensor], *expected: str) -> None:
    """Check that a file holds exactly these tensors."""
    if set(tensors) != set(expected):
        raise ValueError(f"it holds {sorted(tensors)}, expected {sorted(expected)}")


def checked_integers(
    tensors: Mapping[str, Tensor], name: str, low: int, high: int, length: int | None = None
) -> Int[Tensor, " n"]:
    """Return a vector of integers from `low` to below `high`, of this length if one is given."""
    found = tensors[name]
    if found.dtype not in INTEGERS or found.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(found.shape)} and type {found.dtype}")
    if length is not None and len(found) != length:
        raise ValueError(f"{name} has {len(found)} numbers, expected {length}")
    found = found.long()
    if bool(((found < low) | (found >= high)).any()):
        raise ValueError(f"{name} holds numbers outside {low}..{high - 1}")
    return found


def checked_floats(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of finite floating-point numbers of this shape, in float32."""
    found = tensors[name]
    if not found.is_floating_point() or tuple(found.shape) != shape:
        kind = f"shape {tuple(found.shape)} and type {found.dtype}"
        raise ValueError(f"{name} has {kind}, expected floating-point numbers of shape {shape}")
    found = found.float()
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} holds numbers that are not finite")
    return found
