"""Read a vector from a file, or from numbers that were typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.losses import direction
from fuse.models.model_files import first_line
from fuse.options import shown

MAX_BYTES = 2**24
"""A file of a vector is not larger: a million numbers as text."""


def read_vector(value: str | Sequence[float | str]) -> Float[Tensor, " e"]:
    """Return the unit vector that a path or a list of numbers stands for.

    Args:
        value: a `.safetensors` file of one tensor, a `.json` file of one list, or numbers.

    Raises:
        FuseError: it cannot be read, is no single row of finite numbers, or has no direction.
    """
    numbers = read_numbers(value, "target_vector")
    if numbers.ndim == 2 and len(numbers) == 1:
        numbers = numbers[0]
    return direction(numbers, f"target_vector={shown(value)}")


def read_numbers(value: str | Sequence[float | str], key: str) -> Float[Tensor, "*_"]:
    """Return the tensor that a path or a list of numbers stands for; errors begin with the key."""
    try:
        numbers = _read(Path(value).expanduser()) if isinstance(value, str) else list(value)
        if not isinstance(numbers, Tensor):
            numbers = torch.tensor([float(number) for number in numbers])
    except (OSError, ValueError, TypeError, RuntimeError, RecursionError, OverflowError) as error:
        raise FuseError(
            f"{key}={shown(value)}: could not be read ({first_line(error)}); expected a "
            ".safetensors file of one tensor, a .json file of one list, or a list of numbers"
        ) from error
    return numbers


def _read(path: Path) -> Tensor | list[float]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.suffix not in (".safetensors", ".json"):
        raise ValueError("neither .safetensors nor .json")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if path.suffix == ".json":
        return list(json.loads(path.read_text(encoding="utf-8")))
    try:
        tensors = load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if len(tensors) != 1:
        raise ValueError(f"it holds {len(tensors)} tensors, expected one")
    return next(iter(tensors.values()))
