"""Proof that a model's gradient by embeddings is that of its network by the tokens it reads.

A network may look a token up more than once, or not by its embedding layer, so that embeddings
which stand for what that layer returns are not all that it reads.

Shape letters: t positions, v vocabulary, u different tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.models.base import Model
from fuse.models.model_files import first_line
from fuse.models.proof import plain_options
from fuse.models.reuse_trial import is_coarse
from fuse.nn.lm_head import widened
from fuse.types import Ids

MAX_ERROR, MAX_COARSE_ERROR = 1e-3, 0.3
"""How much gradients may differ, relative to their size; the latter in coarse types."""


class GradientProof:
    """The gradient of one row's log-probability, by what each of its different tokens adds.

    Args:
        model: a model none of whose fast ways is on.
        row: what the network reads, read plainly.
        plain: what is differentiated, as a function of the log-probabilities of that pass [t v].
        own: the same as a function of what the model reads instead of the embeddings [1 t d].
        kept: the tokens whose gradients are compared.
    """

    def __init__(
        self,
        model: Model,
        row: Ids,
        plain: Callable[[Float[Tensor, "t v"]], Tensor],
        own: Callable[[Float[Tensor, "1 t d"]], Tensor],
        kept: Ids,
    ) -> None:
        self._model, self._plain, self._own = model, plain, own
        self._ids = torch.tensor([row], device=model.device)
        self._tokens = torch.tensor(kept, device=model.device).unique()
        self._expected: Tensor | None = None
        if model.no_gradient is None:
            expected = self._tried(self._plain_gradient)
            if isinstance(expected, str):
                model.no_gradient = expected
            else:
                self._expected = expected

    def fault(self) -> str | None:
        """Return why the model's gradient is not that of its network; None if it is."""
        expected = self._expected
        if self._model.no_gradient is not None or expected is None:
            return self._model.no_gradient
        found = self._tried(self._own_gradient)
        if isinstance(found, str):
            return found
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
        if error <= (MAX_COARSE_ERROR if is_coarse(self._model) else MAX_ERROR):
            return None
        return "it reads more of its tokens than their embeddings"

    def _tried(self, gradient: Callable[[], Tensor]) -> Tensor | str:
        """Return a gradient, or why there is none."""
        try:
            with torch.enable_grad():
                return gradient()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a network without one fails in its own way
            return f"no gradient goes through it ({type(error).__name__}: {first_line(error)})"

    def _plain_gradient(self) -> Float[Tensor, "u d"]:
        """Return the gradient by a shift of each token's embedding, wherever it is looked up."""
        network, table = self._model.network, self._model.vocabulary.embedding
        shift = table.new_zeros(len(self._tokens), table.shape[1]).requires_grad_()
        with self._model.lookups.shifted(self._tokens, shift):
            logits = network(input_ids=self._ids, **plain_options(network)).logits
        log_probs = widened(logits)[0].log_softmax(-1)
        return torch.autograd.grad(self._plain(log_probs), shift)[0].float()

    def _own_gradient(self) -> Float[Tensor, "u d"]:
        """Return the gradient by the embeddings that the network is given, for each token."""
        embeddings: Any = self._model.vocabulary.embedding[self._ids].requires_grad_()
        (gradient,) = torch.autograd.grad(self._own(embeddings), embeddings)
        stands = (self._ids == self._tokens[:, None]).to(gradient)  # [u t]
        return (stands @ gradient[0]).float()
