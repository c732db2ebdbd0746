"""Discrete Langevin proposals (arXiv 2206.09914), accepted by Metropolis and Hastings's rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, Positive, Whole, check_options
from fuse.search.methods.base import PROMPT_LENGTH, Method
from fuse.statistics import num_non_finite
from fuse.types import Candidates, Evaluation, Ids


@dataclass(frozen=True)
class Chains:
    """Where each chain stands, and where it may go next.

    `threshold` is the rise of the loss up to which the new row is accepted.
    """

    rows: tuple[Ids, ...]
    losses: tuple[float, ...]
    gradient: Float[Tensor, "b s d"]
    new: tuple[Ids, ...]
    new_gradient: Float[Tensor, "b s d"]
    threshold: tuple[float, ...]


@dataclass(frozen=True)
class Langevin(Method):
    """Walk through prompts in proportion to exp(-loss / temperature) (arXiv 2206.09914, DLP).

    A chain at the row x moves all its tokens at once, each on its own: at a position with the token
    x and the gradient g by its embedding E_x it draws the token v with
    q(v | x) ~ exp(-g . (E_v - E_x) / (2 `temperature`) - |E_v - E_x|^2 / (2 `step_size` r^2)),
    where r is the mean norm of the allowed embeddings. The new row x' is accepted with the
    probability min(1, exp((loss(x) - loss(x')) / temperature) q(x | x') / q(x' | x)); a row that is
    not valid never is. `search_width` chains walk side by side, all from the first prompt; they
    meet nowhere.
    """

    greedy_only: ClassVar[bool] = True
    search_width: Annotated[Count, Doc("chains, of which each scores one candidate a step")] = 16
    temperature: Annotated[Positive, Doc("by which losses and gradients are divided")] = 0.5
    step_size: Annotated[
        Positive, Doc("how far tokens move: squared distances are divided by twice this")
    ] = 0.1
    prompt_length: Annotated[Count, PROMPT_LENGTH] = 8
    steps: Annotated[Whole, Doc("at most")] = 300

    def __post_init__(self) -> None:
        check_options(self)

    def propose(
        self, state: Chains | None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates:
        if state is None:
            return self._begin(beam[0], guide)
        ids = torch.tensor(state.rows, device=state.gradient.device)
        log_q = self._log_proposal(ids, state.gradient, guide)
        noise = -torch.empty(log_q.shape).exponential_(generator=rng).log()
        drawn = (log_q.cpu() + noise).argmax(-1).to(ids.device)
        # What the user has put into the start, and no candidate may gain, stays where it is
        moved = guide.allowed[ids]
        new = torch.where(moved, drawn, ids)
        rows = tuple(tuple(row) for row in new.tolist())
        gradient, dropped = _gradient(rows, guide)
        back = self._log_proposal(new, gradient, guide)
        ratio = (_picked(back, ids) - _picked(log_q, new)).where(moved, 0.0).sum(1)
        chance = torch.rand(len(rows), generator=rng)
        threshold = self.temperature * (ratio.cpu() - chance.log())
        state = replace(state, new=rows, new_gradient=gradient, threshold=tuple(threshold.tolist()))
        parents = [0] * len(rows)
        return Candidates(rows, parents, state, dropped)

    def observe(self, state: Chains, evaluated: Evaluation) -> Chains:
        found = {entry.ids: entry.loss for entry in evaluated.entries()}
        rows, losses, accepted = list(state.rows), list(state.losses), []
        for i, row in enumerate(state.new):
            loss = found.get(row, math.inf)
            accepted.append(loss < math.inf and loss - losses[i] <= state.threshold[i])
            if accepted[i]:
                rows[i], losses[i] = row, loss
        kept = torch.tensor(accepted, device=state.gradient.device)[:, None, None]
        gradient = torch.where(kept, state.new_gradient, state.gradient)
        return replace(state, rows=tuple(rows), losses=tuple(losses), gradient=gradient)

    def _begin(self, first: Ids, guide: Guide) -> Candidates:
        """Return the first prompt, so that its loss becomes known."""
        rows = (first,) * self.search_width
        gradient, dropped = _gradient(rows, guide)
        state = Chains(
            rows,
            (math.inf,) * len(rows),
            gradient,
            rows,
            gradient,
            (math.inf,) * len(rows),
        )
        return Candidates([first], [0], state, dropped)

    def _log_proposal(
        self, ids: Int[Tensor, "b s"], gradient: Float[Tensor, "b s d"], guide: Guide
    ) -> Float[Tensor, "b s v"]:
        """Return log q(v | x) at each position."""
        table = guide.vocabulary.embedding.float()
        present = table[ids]
        rise = gradient @ table.T - (gradient * present).sum(-1, keepdim=True)
        distance = torch.cdist(present.flatten(0, 1), table).reshape(rise.shape) / guide.radius
        logits = -rise / (2 * self.temperature) - distance.square() / (2 * self.step_size)
        return logits.masked_fill(~guide.allowed, -torch.inf).log_softmax(-1)


def _gradient(rows: Sequence[Ids], guide: Guide) -> tuple[Float[Tensor, "b s d"], int]:
    """Return the gradient at each row, zero where it is not finite, and of how many it is not."""
    gradient = guide.embedding_gradient(rows)
    return gradient.nan_to_num(0.0, 0.0, 0.0).float(), num_non_finite(gradient)


def _picked(log_q: Float[Tensor, "b s v"], ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    return log_q.gather(-1, ids[..., None])[..., 0]
