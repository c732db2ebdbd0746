"""A view of the caller's network: it shares the weights, and everything else is a copy.
 Classes of layers, configs, hooks and flags of a view can be changed, and the network stays what it
is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fuse.errors import FuseError

Memo = dict[int, Any]
"""Objects of a view by the `id` of the network's own ones: the memo of `copy.deepcopy`."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@torch.inference_mode(False)
@torch.no_grad()
def network_view(network: Any) -> tuple[Any, Memo]:
    """Copy a network around the same weights.

    The view is in evaluation mode, its parameters need no gradient, and torch.compile is undone.

    Returns:
        The view, and its objects by the `id` of the network's.

    Raises:
        FuseError: a part of the network cannot be copied.
    """
    modules = list(network.modules())
    memo: Memo = {}
    for module in modules:
        memo.update({id(one): one for one in shared_parts(module)})
        for weight in module._parameters.values():
            if weight is not None and id(weight) not in memo:
                memo[id(weight)] = _own_parameter(weight)
    try:
        # What a compiled module wraps stands for it; the innermost first
        for module in reversed(modules):
            if hasattr(module, "_orig_mod"):
                memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
        view = copy.deepcopy(network, memo)
    except Exception as error:  # any object may refuse in its own way
        kind, reason = type(network).__name__, str(error).split("\n")[0]
        raise FuseError(f"network={kind}: cannot be copied ({reason}); load it anew") from error
    return view.eval(), memo


def _own_parameter(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    """Return a parameter with the same memory that needs no gradient."""
    if weight.is_inference():
        return torch.nn.Parameter(weight.clone(), requires_grad=False)
    if type(weight) is not torch.nn.Parameter and not weight.requires_grad:
        return weight  # quantised ones hold more than their numbers
    return torch.nn.Parameter(weight.detach(), requires_grad=False)


def shared_parts(module: Any) -> Iterator[Any]:
    """Yield what a view shares with a module: numbers, and what is no part of the network."""
    yield from (buffer for buffer in module._buffers.values() if buffer is not None)
    for value in vars(module).values():
        # The latter hold the weights of quantised layers
        if isinstance(value, Tensor | torch.ScriptObject):
            yield value
    if hasattr(module, "_hf_hook"):
        yield module._hf_hook  # of accelerate; it may hold the weights
    for name in HOOKS:
        for hook in vars(module).get(name, {}).values():
            owner = getattr(hook, "__self__", None)
            if owner is not None and not isinstance(owner, torch.nn.Module):
                yield owner


def input_device(network: Any) -> torch.device:
    """Return where a network's inputs have to be.

    Weights that accelerate loads for each pass are on no device until then.
    """
    devices = [weight.device for weight in network.parameters() if not weight.is_meta]
    return devices[0] if devices else torch.device("cpu")
