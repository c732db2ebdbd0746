"""The numbers of a network, wherever they are held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def network_state(network: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a network's state and their names.

    Weights that a layer has packed are unpacked, and those that accelerate has moved away are taken
    from there.
    """
    for name, value in network.state_dict().items():
        if isinstance(value, tuple):  # weight and bias of a quantised layer
            for index, part in enumerate(value):
                if isinstance(part, Tensor):
                    yield f"{name}.{index}", part.detach().dequantize()
        elif isinstance(value, Tensor):
            if value.is_meta:
                value = _offloaded(network, name, value)
            yield name, value.dequantize() if value.is_quantized else value


def num_packed_weights(network: Any, vocabulary_size: int) -> int:
    """Return how many weights are packed by quantised layers without a row for each token."""
    total = 0
    for value in network.state_dict().values():
        if isinstance(value, tuple) and isinstance(value[0], Tensor):
            total += value[0].numel() * (len(value[0]) != vocabulary_size)
    return total


def _offloaded(network: Any, name: str, weight: Tensor) -> Tensor:
    """Return the weight that a hook of accelerate loads for a pass; zeros if it is not found."""
    path, _, key = name.rpartition(".")
    hook = getattr(network.get_submodule(path), "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        weights = getattr(one, "weights_map", None)
        try:
            return weights[key]  # type: ignore[index]
        except (KeyError, TypeError):
            continue
    return torch.zeros(()).expand(weight.shape)
