"""What is minimised. A loss has a target, and makes one number a row of a model's forward pass.

A new loss is one small class: read the model through `Inputs`, return [b]. A text that has to
stand after the prompt is its `label`. Where a token is also the label of its own position, go
through `inputs.labels`, so that the gradient by one-hot tokens holds both roles.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.models import CausalLM, Diffusion, MaskedLM, Model, VectorModel
from fuse.models.diffusion import NoisyPicture
from fuse.nn.batch import Inputs

ModelT = TypeVar("ModelT", bound=Model)


class Loss(ABC, Generic[ModelT]):
    """A function of a model and a batch; lower is better."""

    label: str = ""
    """Text that is put after the prompt and its suffix."""
    reads_prompt: bool = False
    """Whether it needs to know how likely each token of the prompt is."""
    reads_states: bool = False
    """Whether it reads states of all tokens of the prompt: rows are then read whole."""

    def reads_labels(self, model: ModelT) -> bool:
        """Return whether free tokens are labels too, with a gradient by `Inputs.labels`."""
        return False

    @abstractmethod
    def __call__(self, model: ModelT, inputs: Inputs) -> Float[Tensor, " b"]:
        """Return the loss of every row."""


@dataclass(frozen=True)
class NLL(Loss[Any]):
    """Measure fluency: mean over the free tokens of -log p(x_t | x_<t), in nats a token.

    It is 0 for an empty prompt. With another `length_penalty` than 1, here as in all measures of
    fluency, the sum over the n tokens is divided by n ** length_penalty, as beam search has it
    (arXiv 1609.08144, section 7). The mean lets what is said already pay for what is not: a small
    LM finds repetitions likely, so that a text becomes better by rambling on.

    A free token acts twice, as input to later positions and as the label of its own; the label is
    relaxed as a one-hot row y_t, so that its gradient is -log p(. | x_<t). With a masked LM p(x_t |
    all others) takes the place of p(x_t | x_<t), and the loss is the pseudo log-likelihood (arXiv
    1910.14659).
    """

    reads_prompt = True
    length_penalty: float = 1.0

    def reads_labels(self, model: CausalLM | MaskedLM) -> bool:
        return True

    def __call__(self, model: CausalLM | MaskedLM, inputs: Inputs) -> Float[Tensor, " b"]:
        log_probs = model.label_log_probs(inputs, inputs.free)
        return -_mean(log_probs, inputs.free, self.length_penalty)


@dataclass(frozen=True)
class LogProb(Loss[CausalLM]):
    """Measure fluency as in arXiv 2205.12558: `NLL`, with the label relaxed as an embedding.

    Mean of -(e_t . h_(t-1) - logsumexp_v(E_v . h_(t-1))), for the hidden state h, the output table
    E and the embedding e_t of the token itself. Where output and input tables are not one, e_t is
    no label, and the label is relaxed as a one-hot row instead: by one-hot tokens the two differ by
    a constant at each position.
    """

    reads_prompt = True
    length_penalty: float = 1.0

    def reads_labels(self, model: CausalLM) -> bool:
        return not model.tied

    def __call__(self, model: CausalLM, inputs: Inputs) -> Float[Tensor, " b"]:
        log_probs = model.label_log_probs(inputs, inputs.free, as_embedding=model.tied)
        return -_mean(log_probs, inputs.free, self.length_penalty)


@dataclass(frozen=True)
class KLDiv(Loss[CausalLM]):
    """Measure fluency: mean over the free tokens of KL(q_t || p_t), in nats.

    p_t is the prediction for position t, and q_t = softmax_v(-|e_t - E_v|^2 / tau) over the input
    table E. As tau (in squared units of the embeddings) tends to 0, q_t tends to the token itself,
    and the loss to `NLL`.
    """

    reads_prompt = True
    tau: float = 1.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise FuseError(f"tau={self.tau}: expected a number above 0")

    def __call__(self, model: CausalLM, inputs: Inputs) -> Float[Tensor, " b"]:
        total = torch.zeros(len(inputs.ids), device=model.device)
        for part in model.predictions(inputs, inputs.free):
            log_p = part.logits.all_log_probs(part.index)
            table = model.vocabulary.embedding.to(log_p)
            if inputs.embeddings is None:
                own = table[inputs.ids[part.at]]
            else:
                own = inputs.embeddings[part.at].to(table)
            # -|e - E_v|^2 without |e|^2, which is the same for all v
            squares = table.square().sum(-1)
            log_q = ((2 * own @ table.T - squares) / self.tau).log_softmax(-1)
            divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
            total = total.to(divergence).index_add(0, part.row, divergence)
        return _per_length(total, inputs.free, self.length_penalty)


@dataclass(frozen=True)
class CrossEntropy(Loss[CausalLM]):
    """Measure elicitation: mean over the label's tokens of -log p(label_t | prompt, label_<t).

    It is in nats a token.

    Args:
        perplexity_weight: adds this multiple of the prompt's `NLL`, to keep it fluent.
    """

    label: str
    perplexity_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.label:
            raise FuseError(
                "label=null: loss=cross_entropy needs the text to elicit; give label=TEXT"
            )

    @property
    def reads_prompt(self) -> bool:  # type: ignore[override]
        return self.perplexity_weight != 0

    def reads_labels(self, model: CausalLM) -> bool:
        return self.perplexity_weight != 0

    def __call__(self, model: CausalLM, inputs: Inputs) -> Float[Tensor, " b"]:
        read = inputs.label | inputs.free if self.perplexity_weight else inputs.label
        log_probs = model.label_log_probs(inputs, read)
        fluency = _mean(log_probs, inputs.free)
        return -_mean(log_probs, inputs.label) - self.perplexity_weight * fluency


@dataclass(frozen=True, eq=False)
class DenoisingError(Loss[Diffusion]):
    """Measure likeness to a picture: mean over its noisy versions z_t, and over all their numbers,
    of (eps - eps_theta(z_t, t, text))^2, as a diffusion model is trained (arXiv 2302.03668,
    2312.12416).

    Where the model says the velocity or the picture itself, that takes the place of the noise eps.

    Args:
        target: what `Diffusion.noisy_picture` makes of the picture.
    """

    target: NoisyPicture

    def __call__(self, model: Diffusion, inputs: Inputs) -> Float[Tensor, " b"]:
        return model.denoising_errors(inputs, self.target).mean(1)


class VectorLoss(Loss[VectorModel]):
    """A function of the vector that a model makes of a text."""

    @abstractmethod
    def at(self, vectors: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        """Return the loss of each vector."""

    def __call__(self, model: VectorModel, inputs: Inputs) -> Float[Tensor, " b"]:
        return self.at(model.vector(inputs))


def direction(vector: Tensor, key: str = "target") -> Float[Tensor, " e"]:
    """Return a vector at unit length.

    Raises:
        FuseError: it is no single row of finite numbers that are not all 0; the message has the
            key.
    """
    vector = vector.float()
    length = float(vector.norm())
    if vector.ndim != 1 or not 0 < length < math.inf:
        raise FuseError(
            f"{key}: a vector of shape {list(vector.shape)} and length {length} has no "
            "direction; give one row of finite numbers that are not all 0"
        )
    return normalize(vector, dim=-1)


@dataclass(frozen=True)
class CosineDistance(VectorLoss):
    """Compare meanings: 1 - cos(the text's vector, target), between 0 and 2.

    Args:
        target: a vector of whatever length.
        key: what errors call it.

    Raises:
        FuseError: the target has no direction; where it is compared, that it is not as wide as the
            model's vectors.
    """

    target: Float[Tensor, " e"]
    key: str = "target"

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", direction(self.target, self.key))

    def at(self, vectors: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        if vectors.shape[-1] != len(self.target):
            width = vectors.shape[-1]
            raise FuseError(
                f"{self.key}: a vector of {len(self.target)} numbers, expected {width}, "
                "as many as the model's own have; make it with the same model"
            )
        return 1 - normalize(vectors, dim=-1) @ self.target.to(vectors)


@dataclass(frozen=True)
class ClassNLL(VectorLoss):
    """Measure kind: -log p(class | text) of one class of a classifier, in nats.

    Args:
        target: the index of the class.
    """

    target: int

    def at(self, vectors: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        return -vectors[:, self.target]


@dataclass(frozen=True)
class SquaredDistance(VectorLoss):
    """Measure a rating: (rating - target)^2, of a classifier with one output.

    Args:
        target: the rating that is sought.
    """

    target: float

    def at(self, vectors: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
        return (vectors[:, 0] - self.target).square()


def _mean(
    values: Float[Tensor, "b t"], where: Bool[Tensor, "b t"], length_penalty: float = 1.0
) -> Float[Tensor, " b"]:
    """Return the mean of a row's values at the marked positions; 0 where there is none.

    Args:
        length_penalty: the sum is divided by their number raised to this power.
    """
    return _per_length(torch.where(where, values, 0.0).sum(1), where, length_penalty)


def _per_length(
    total: Float[Tensor, " b"], where: Bool[Tensor, "b t"], length_penalty: float
) -> Float[Tensor, " b"]:
    """Return a row's sum by the number of its marked positions, raised to a power."""
    return total / where.sum(1).clamp_min(1).to(total) ** length_penalty
