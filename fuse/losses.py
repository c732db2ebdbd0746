"""What is minimised. A loss owns its target and turns one model's forward pass into one number a row.

A new loss is one small class: read the model through `Inputs`, return [b]. A text that has to stand after the prompt is
its `label`. Where a token also acts as the label of its own position, go through `inputs.labels`, so that the gradient
by one-hot tokens holds both roles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models import CausalLM, EmbeddingModel, Model
from fuse.types import Inputs

ModelT = TypeVar("ModelT", bound=Model)


class Loss(ABC, Generic[ModelT]):
    """A function of a model and a batch; lower is better."""

    label: str = ""
    """Text that is put after the prompt and its suffix."""
    reads_labels: bool = False
    """Whether free tokens act as labels too, so that the loss has a gradient by `Inputs.labels`."""

    @abstractmethod
    def __call__(self, model: ModelT, inputs: Inputs) -> Float[Tensor, " b"]:
        """The loss of every row."""


@dataclass(frozen=True)
class NLL(Loss[CausalLM]):
    """Fluency: mean over the free tokens of -log p(x_t | x_<t), in nats a token. 0 for an empty prompt."""

    reads_labels = True

    def __call__(self, model: CausalLM, inputs: Inputs) -> Float[Tensor, " b"]:
        return -model.label_log_probs(inputs, inputs.free).sum(1) / inputs.free.sum(1).clamp_min(1)


@dataclass(frozen=True)
class CrossEntropy(Loss[CausalLM]):
    """Elicitation: mean over the label's tokens of -log p(label_t | prompt, label_<t), in nats a token."""

    label: str

    def __post_init__(self) -> None:
        if not self.label:
            raise FuseError("label=null: loss=cross_entropy needs the text to elicit; give label=TEXT")

    def __call__(self, model: CausalLM, inputs: Inputs) -> Float[Tensor, " b"]:
        return -model.label_log_probs(inputs, inputs.label).sum(1) / inputs.label.sum(1).clamp_min(1)


@dataclass(frozen=True)
class CosineDistance(Loss[EmbeddingModel]):
    """Meaning: 1 - cos(the text's vector, target), between 0 and 2. `target` is a unit vector [e]."""

    target: Float[Tensor, " e"]

    def __call__(self, model: EmbeddingModel, inputs: Inputs) -> Float[Tensor, " b"]:
        return 1 - model.embed(inputs) @ self.target


LM_LOSSES: dict[str, type[Any]] = {"nll": NLL, "cross_entropy": CrossEntropy}
