"""Descent on relaxed one-hot tokens: a mixture of tokens at each position (arXiv 2507.01693,
2402.09154).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, NotNegative, Share, Whole, check_options
from fuse.search.methods.base import PROMPT_LENGTH
from fuse.search.methods.continuous import Continuous, spellable
from fuse.search.methods.simplex import onto_low_entropy, onto_simplex
from fuse.statistics import num_non_finite
from fuse.types import Candidates, Ids

SPREAD = 1.0
"""The standard deviation of the first logits: at first no position holds all tokens alike."""


@dataclass(frozen=True)
class State:
    """The logits of the a allowed tokens at each position, or their shares where these are
    projected, and the optimiser's state.
    """

    logits: Float[Tensor, "b s a"]
    optimiser: Any = None


@dataclass(frozen=True)
class Relaxed(Continuous):
    """Descend on mixtures of tokens: relaxed one-hots (SODA, arXiv 2507.01693).

    At each position the models read sum_v p_v E_v over the allowed tokens v, with their embeddings
    E_v and p = softmax(z). The gradient g by the mixture gives that by the logits,
    p_v (E_v . g - sum_u p_u E_u . g), and Adam with `lr` moves z, which is then multiplied by
    `decay`. The candidates are the likeliest tokens of
    `search_width` rows, which descend side by side from random logits; of the first row the first
    prompt's tokens are the likeliest. Models with other tokens take part at the likeliest tokens,
    through their adapters.

    With `projection` simplex Adam moves the shares p themselves, by E_v . g, and then they are
    projected: onto the simplex, and to a Gini entropy 1 - sum_v p_v^2 of at most `max_entropy`
    (PGD, arXiv 2402.09154). There is no `decay`, and the first prompt's tokens have all shares.
    """

    search_width: Annotated[Count, Doc("prompts that descend side by side")] = 4
    projection: Annotated[
        Literal["softmax", "simplex"],
        Doc("softmax: logits are moved; simplex: shares, projected (arXiv 2402.09154)"),
    ] = "softmax"
    lr: Annotated[NotNegative, Doc("learning rate, of logits; of shares about 0.1")] = 1.5
    decay: Annotated[Share, Doc("what is left of the logits after a step")] = 0.98
    max_entropy: Annotated[
        Share, Doc("Gini entropy of a position's shares at most, where these are projected")
    ] = 0.4
    prompt_length: Annotated[Count, PROMPT_LENGTH] = 8
    steps: Annotated[Whole, Doc("at most")] = 300

    def __post_init__(self) -> None:
        check_options(self)

    def propose(
        self, state: State | None, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates:
        tokens, table = guide.allowed_tokens, guide.allowed_embeddings
        state = state or self._begin(beam[0], tokens, rng)
        shares = self._shares(state.logits)
        gradient = guide.embedding_gradient(_likeliest(state.logits, tokens), shares @ table)
        dropped = num_non_finite(gradient)
        by_token = gradient.nan_to_num(0.0, 0.0, 0.0).to(table) @ table.T
        if self.projection == "softmax":
            by_token = shares * (by_token - (shares * by_token).sum(-1, keepdim=True))
        logits, optimiser = self.descend(state.logits, by_token, state.optimiser)
        if self.projection == "softmax":
            logits = self.decay * logits
        else:
            logits = onto_low_entropy(onto_simplex(logits), self.max_entropy)
        rows = spellable(_likeliest(logits, tokens), guide)
        state = State(logits, optimiser)
        return Candidates(rows, [0] * len(rows), state, dropped)

    def _shares(self, logits: Float[Tensor, "b s a"]) -> Float[Tensor, "b s a"]:
        return logits.softmax(-1) if self.projection == "softmax" else logits

    def _begin(self, first: Ids, tokens: Int[Tensor, " a"], rng: torch.Generator) -> State:
        """Return random logits, or shares; of row 0 those of the first prompt's tokens are the
        highest.
        """
        size = self.search_width, len(first), len(tokens)
        logits = SPREAD * torch.randn(size, generator=rng)
        index = {token: i for i, token in enumerate(tokens.tolist())}
        for position, token in enumerate(first):
            if token in index:
                far = logits[0, position].max() + SPREAD
                logits[0, position, index[token]] = far if self.projection == "softmax" else 1e3
        if self.projection == "simplex":
            logits = logits.softmax(-1)
        return State(logits.to(tokens.device))


def _likeliest(logits: Float[Tensor, "b s a"], tokens: Int[Tensor, " a"]) -> list[Ids]:
    """Return the tokens of the highest logits."""
    return [tuple(row) for row in tokens[logits.argmax(-1)].tolist()]
