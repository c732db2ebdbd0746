"""What makes a network's layers quicker, and leaves their results as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from fuse.products import Copies, affine

PICTURES = ("vision_model", "visual")
"""What networks call the parts that look at pictures, at each but once: copies of their weights would not pay."""


class FixedLinear(torch.nn.Linear):
    """A linear layer whose weight stays as it is."""

    copies: Copies

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.weight, self.bias, False, self.copies)


class FixedConv1D(Conv1D):
    """Another kind of linear layer whose weight stays as it is."""

    copies: Copies

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias, True, self.copies)


FIXED = {torch.nn.Linear: FixedLinear, Conv1D: FixedConv1D}


def quickened(network: Any) -> Any:
    """The same network, with linear layers by copies, and torch's own gelu in the place of one in six passes over memory.

    The output layer is left alone, since a `Table` does its products, and so are layers that others gave a forward pass of
    their own, such as those that move weights about.
    """
    last = getattr(network, "get_output_embeddings", lambda: None)()
    for path, module in list(network.named_modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"])
        own = module is last or path.partition(".")[0] in PICTURES or "forward" in vars(module)
        if type(module) in FIXED and not own:
            module.__class__, module.copies = FIXED[type(module)], Copies()
    return network


class LastFeedForward:
    """The feed-forward part of a transformer's last layer, computed for those tokens alone that somebody reads.

    It is left as it is unless each of the `layers` layers has one under the name `mlp` that takes states alone, and the
    last token's outputs, by `outputs`, stay what they are where that of the last layer says nothing of the others: some
    transformers mix tokens behind it, or come back to it.
    """

    def __init__(self, transformer: Any, layers: int, outputs: Callable[[], Tensor]) -> None:
        found = [module for name, module in transformer.named_modules() if name.split(".")[-1] == "mlp"]
        fits = len(found) == layers and len(signature(found[-1].forward).parameters) == 1
        self._module = found[-1] if fits and _ends(found[-1], outputs) else None

    @contextmanager
    def only(self, *index: Any) -> Iterator[None]:
        """Within this context it reads states [b t d] at `[index]`; to the others, which have no reader, it adds nothing."""
        if self._module is None:
            yield
            return
        shapes: list[torch.Size] = []

        def there(device: torch.device) -> tuple[Any, ...]:
            return tuple(part.to(device) if isinstance(part, Tensor) else part for part in index)

        def narrow(_: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
            (states,) = arguments
            shapes.append(states.shape)
            return (states[there(states.device)],)

        def widen(found: Tensor) -> Tensor:
            whole = found.new_zeros(shapes.pop())
            whole[there(found.device)] = found
            return whole

        with self._module.register_forward_pre_hook(narrow), _changing(self._module, widen):
            yield


@torch.no_grad()
def _ends(module: Any, outputs: Callable[[], Tensor]) -> bool:
    """Whether the last token's outputs are the same to the bit where a module says nothing of the other tokens."""
    wanted = outputs()
    with _changing(module, lambda found: torch.cat([torch.zeros_like(found[:, :-1]), found[:, -1:]], 1)):
        return torch.equal(outputs(), wanted)


def _changing(module: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A hook that changes the states that a module returns, alone or before others, for as long as its context lasts."""
    return module.register_forward_hook(lambda _, __, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out))
