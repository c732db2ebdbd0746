"""Copies of a model for further threads: the same weights, and all else their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import Model
from fuse.nn.network_view import shared_parts

M = TypeVar("M", bound=Model)


@torch.inference_mode(False)
@torch.no_grad()
def replica(model: M, device: torch.device | None = None) -> M:
    """Copy a model for another thread.

    What a network reads and returns is changed within a pass, so that no two threads may use one
    network at once. On the model's own device the copy takes no memory but for prepacked weights.

    Args:
        device: where it runs; None for the model's own.

    Raises:
        FuseError: the weights are brought for each pass to where it runs, or it cannot be copied.
    """
    kind, own = type(model.network).__name__, model.device
    vocabulary = model.vocabulary
    memo: dict[int, Any] = {id(one): one for one in vars(vocabulary).values()}
    del memo[id(vocabulary.table)]  # prepacked weights are no part of what is shared
    for module in model.network.modules():
        if hasattr(module, "_hf_hook"):
            raise FuseError(
                f"network={kind}: its layers are spread over devices by accelerate, "
                "so that it reads one batch at a time; give device_map=null, or scoring.workers=1"
            )
        memo.update({id(one): one for one in shared_parts(module)})
    memo.pop(id(model.operations), None)  # the copy has a counter of its own
    memo[id(model.replicas)] = []
    for tensor in _tensors(model, set()):
        memo[id(tensor)] = _moved(tensor, device) if device and tensor.device == own else tensor
    try:
        found = copy.deepcopy(model, memo)
    except Exception as error:  # any object may refuse in its own way
        reason = str(error).split("\n")[0]
        raise FuseError(
            f"network={kind}: cannot be copied ({reason}); give scoring.workers=1"
        ) from error
    found.operations.total = 0
    return found


def _tensors(part: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor that a model holds, in its network and beside it."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, dict | list | tuple):
        for child in part.values() if isinstance(part, dict) else part:
            yield from _tensors(child, seen)
    elif isinstance(part, torch.nn.Module) or type(part).__module__.startswith("fuse."):
        yield from _tensors(vars(part), seen)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, a parameter as one."""
    moved = tensor.to(device)
    if type(tensor) is torch.nn.Parameter:
        return torch.nn.Parameter(moved, requires_grad=False)
    return moved
