"""Counting the operations of a network's products with its weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import MultiheadAttention
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D


class OperationCounter:
    """Counts the operations of every product of what a network reads with its weights.

    A number that is a sum of n products costs 2 n, and as much again where the gradient by what is
    read is wanted, which has to go back through it. Counted are linear layers and convolutions,
    output layers and the gradients by one-hot tokens: what is computed, padding included, and
    nothing that came from a cache. Not counted are the products within attention, whose share is
    small for short texts, and those of weights that are no such layers.
    """

    def __init__(self, network: Any) -> None:
        self.total = 0
        self._num_summed: dict[int, int] = {}
        """Of how many products the numbers of each layer are the sum, by its `id`."""
        for module in network.modules():
            hooks = module._forward_hooks
            # A network that was another model's has its counter's hooks
            for key in [key for key, hook in hooks.items() if _is_own(hook)]:
                del hooks[key]
            count = _num_summed(module)
            if count:
                self._num_summed[id(module)] = count
                module.register_forward_hook(self._count)

    def add(self, num_results: int, num_summed: int, differentiated: bool = False) -> None:
        """Count products.

        Args:
            num_results: how many numbers they give.
            num_summed: of how many products each of these is the sum.
            differentiated: whether a gradient goes back through them.
        """
        self.total += (4 if differentiated else 2) * num_results * num_summed

    def take(self, other: OperationCounter) -> None:
        """Count what another one has counted, which begins anew."""
        self.total, other.total = self.total + other.total, 0

    def _count(self, module: Any, _: Any, out: Any) -> None:
        """Count what a layer has just returned."""
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor):
            # A copy of the network has layers of its own
            count = self._num_summed.get(id(module)) or _num_summed(module)
            self.add(out.numel(), count, out.requires_grad)


def _num_summed(module: Any) -> int:
    """Return of how many products each number that a layer returns is the sum; 0 of other modules.

    Of torch's own attention, whose four matrices are no modules, all together.
    """
    if isinstance(module, MultiheadAttention):
        return 4 * module.embed_dim
    if isinstance(module, _ConvNd):
        return module.weight.numel() // module.out_channels
    if isinstance(module, Conv1D):
        return len(module.weight)
    return getattr(module, "in_features", 0) if not any(module.children()) else 0


def _is_own(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), OperationCounter)
