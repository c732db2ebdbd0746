"""Activation targets: text that excites a neuron, a direction or a class within a language model.

A part of the network, such as a layer or the neurons of its feed-forward part, returns a vector for
each token. What is sought is a large number made of it (EPO, arXiv 2402.01702).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError, did_you_mean
from fuse.losses import Loss
from fuse.models import CausalLM
from fuse.nn.batch import Inputs

Pooling = Literal["last", "mean", "max"]


@dataclass(frozen=True, eq=False)
class Activation(Loss[CausalLM]):
    """Maximise what a part of the network returns: -(number) of the prompt's tokens.

    Args:
        layer: the number of a layer, from 0, whose outgoing states are read; or the name of any
            module within the network, such as `transformer.h.2.mlp.act`, for its neurons.
        neuron: the index of the number that is sought; with a probe of several classes that of the
            class.
        direction: a vector [d], with which the states are multiplied; or a probe [c d], of which
            log p(class | state) is sought.
        pooling: the number at the prompt's last token, the mean or the largest over its tokens.

    Raises:
        FuseError: neither a neuron nor a direction; where it is evaluated, that the network has no
            such part.
    """

    layer: int | str
    neuron: int | None = None
    direction: Float[Tensor, "*c d"] | None = None
    pooling: Pooling = "last"

    reads_states = True

    def __post_init__(self) -> None:
        several = self.direction is not None and self.direction.ndim == 2
        if (self.neuron is None) == (self.direction is None or several):
            raise FuseError(
                f"neuron={self.neuron}: expected the index of a number, or a direction; or both, "
                "where that is a probe of several classes"
            )
        if self.direction is not None and not self.direction.isfinite().all():
            raise FuseError("direction: its numbers are not finite")

    def __call__(self, model: CausalLM, inputs: Inputs) -> Float[Tensor, " b"]:
        states = model.states(inputs, self.module(model))
        sought = self._sought(states.to(torch.promote_types(states.dtype, torch.float32)))
        if self.pooling == "mean":
            shares = inputs.free / inputs.free.sum(1, keepdim=True).clamp_min(1)
            return -(sought * shares).sum(1)
        if self.pooling == "max":
            largest = sought.masked_fill(~inputs.free, -torch.inf).amax(1)
            return -largest.masked_fill(~inputs.free.any(1), 0.0)
        # Without a prompt, what stands before it is last
        position = torch.arange(sought.shape[1], device=sought.device)
        last = torch.where(inputs.free, position, 0).amax(1, keepdim=True)
        return -sought.gather(1, last)[:, 0]

    def module(self, model: CausalLM) -> Any:
        """Return the part of the network that is read.

        Raises:
            FuseError: there is none of this name.
        """
        layers = model.layers()
        if str(self.layer).isdecimal():
            if int(self.layer) < len(layers):
                return layers[int(self.layer)]
            raise FuseError(f"layer={self.layer}: expected a number below {len(layers)}")
        modules = dict(model.network.named_modules())
        if self.layer not in modules:
            near = did_you_mean(str(self.layer), list(modules))
            raise FuseError(
                f"layer={self.layer}: {near}expected the number of a layer, below {len(layers)}, "
                "or the name of a module of the network"
            )
        return modules[self.layer]

    def _sought(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b t"]:
        """Return the number that is sought, for each token."""
        width = states.shape[-1]
        if self.direction is None:
            return states[..., self._checked(width)]
        if self.direction.shape[-1] != width:
            raise FuseError(
                f"direction: a vector of {self.direction.shape[-1]} numbers, expected {width}, as "
                f"many as layer={self.layer} returns"
            )
        products = states @ self.direction.to(states).T
        if self.direction.ndim == 1:
            return products
        return products.log_softmax(-1)[..., self._checked(len(self.direction))]

    def _checked(self, count: int) -> int:
        """Return the neuron; raise FuseError where there are not so many."""
        assert self.neuron is not None
        if not 0 <= self.neuron < count:
            raise FuseError(f"neuron={self.neuron}: expected a number below {count}")
        return self.neuron
