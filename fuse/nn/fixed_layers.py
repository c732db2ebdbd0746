"""Layers of a network whose weights stay as they are: quicker, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from fuse.nn.hooks import changing_input, changing_output
from fuse.nn.prepacked import Prepacked, linear

IMAGE_TOWERS = ("vision_model", "visual")
"""Names of the parts that read images. They run once in a search: prepacking would not pay."""


class FixedLinear(torch.nn.Linear):
    """A linear layer whose weight is prepacked."""

    prepacked: Prepacked

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, False, self.prepacked)


class FixedConv1D(Conv1D):
    """A linear layer with a transposed weight, as GPT-2 has it, which is prepacked."""

    prepacked: Prepacked

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, True, self.prepacked)


FIXED = {torch.nn.Linear: FixedLinear, Conv1D: FixedConv1D}
"""The classes of layers that are changed, and what they become."""
PLAIN = {fixed: plain for plain, fixed in FIXED.items()}
"""What they were."""


class Acceleration:
    """Prepacked weights in a network's linear layers, and torch's own GELU in place of GPT-2's.

    Left as they are: the output layer, whose products an `EmbeddingTable` computes, and layers with
    a forward method of their own, such as those whose weights accelerate loads for each pass.
    """

    def __init__(self, network: Any) -> None:
        self._linear: list[Any] = []
        self._activations: list[tuple[Any, str, Any]] = []
        """Modules, and the name and the GELU of a child of each."""
        output_layer = getattr(network, "get_output_embeddings", lambda: None)()
        for path, module in network.named_modules():
            for name, child in module.named_children():
                if type(child) is NewGELUActivation:
                    self._activations.append((module, name, child))
            if module is output_layer or path.partition(".")[0] in IMAGE_TOWERS:
                continue
            if type(module) in FIXED and "forward" not in vars(module):
                self._linear.append(module)
        self.turn(True)

    def turn(self, on: bool) -> None:
        """Turn it on or off."""
        for module in self._linear:
            if on and type(module) in FIXED:
                module.__class__, module.prepacked = FIXED[type(module)], Prepacked()
            elif not on and type(module) in PLAIN:
                module.__class__ = PLAIN[type(module)]
                del module.prepacked
        for module, name, own in self._activations:
            setattr(module, name, ACT2FN["gelu_pytorch_tanh"].eval() if on else own)


class LastFeedForward:
    """The feed-forward part of a transformer's last layer, computed only for states that are read.

    It is left as it is where that would change results. This is decided when the object is made:
    each layer needs a part called `mlp` that takes states alone; and the outputs must not change
    when the last of them returns zero for all tokens but the last one. (Some transformers mix
    tokens after it, or run it twice.)

    Args:
        transformer: the network that holds the layers.
        num_layers: how many layers it has.
        outputs: runs the network and returns its outputs at the last token.
    """

    def __init__(self, transformer: Any, num_layers: int, outputs: Callable[[], Tensor]) -> None:
        found = []
        for name, module in transformer.named_modules():
            if name.split(".")[-1] == "mlp":
                found.append(module)
        fits = len(found) == num_layers and len(signature(found[-1].forward).parameters) == 1
        self._module = found[-1] if fits and _is_last(found[-1], outputs) else None
        self.is_on = self._module is not None
        """Whether it is computed for the states that are read alone."""

    def turn(self, on: bool) -> None:
        """Turn it on, where that changes no result, or off."""
        self.is_on = on and self._module is not None

    @contextmanager
    def only(self, *index: Any) -> Iterator[None]:
        """Compute it for the states [b t d] at `[index]` alone, and return zero for the others."""
        if self._module is None or not self.is_on:
            yield
            return
        shapes: list[torch.Size] = []

        def index_on(device: torch.device) -> tuple[Any, ...]:
            return tuple(part.to(device) if isinstance(part, Tensor) else part for part in index)

        def select(states: Tensor) -> Tensor:
            shapes.append(states.shape)
            return states[index_on(states.device)]

        def restore(found: Tensor) -> Tensor:
            whole = found.new_zeros(shapes.pop())
            whole[index_on(found.device)] = found
            return whole

        with changing_input(self._module, select), changing_output(self._module, restore):
            yield


@torch.no_grad()
def _is_last(module: Any, outputs: Callable[[], Tensor]) -> bool:
    """Whether the last token's outputs stay the same bits if the module is zero elsewhere."""

    def last_only(found: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(found[:, :-1]), found[:, -1:]], 1)

    expected = outputs()
    with changing_output(module, last_only):
        return torch.equal(outputs(), expected)
