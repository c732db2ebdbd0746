"""Weights by which all terms have as much to say, from the spread of their losses."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.objective import PRIMARY, Objective
from fuse.search.search import Search

log = logging.getLogger(__name__)

NUM_FIRST = 64
"""Of how many candidates, at least, the spread is taken; the last step is made to its end."""


def balanced_weights(search: Search) -> dict[str, float]:
    """Return a weight for each term by which the losses of the first candidates spread alike.

    With the standard deviation s of a term's losses over these,

        weight = sign(given weight) x |weight of the primary| x s of the primary / s

    so that the primary keeps its weight, and a weight of 0 stays 0. Where the primary has neither
    weight nor spread, 1 takes the place of both. A term that loses alike everywhere keeps what was
    given. The first steps of the search are made for it with the given weights; they change nothing
    of the search, and are not counted in its evaluations.
    """
    first = replace(
        search,
        steps=NUM_FIRST,
        stop_loss=None,
        stop_at_label=False,
        time_limit=None,
        max_evaluations=None,
        on_step=None,
    )
    state = first.start()
    while not state.ended and len(state.scored) < NUM_FIRST:
        state = first.accept(state, first.evaluate(state, first.propose(state)))
    search.clear()
    losses = torch.tensor(list(state.scored.values()), dtype=torch.float64)
    losses = losses[losses.isfinite().all(1)]
    weights = _from_spread(search.objective, losses)
    told = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
    log.info("weights=auto: %s, by the losses of %d candidates", told, len(losses))
    return weights


def _from_spread(objective: Objective, losses: Float[Tensor, "n t"]) -> dict[str, float]:
    """Return the weights by the losses of each term."""
    spread = dict(zip(objective.terms, losses.std(0, correction=0).tolist(), strict=True))
    wanted = abs(objective.primary.weight) * spread[PRIMARY] or 1.0
    found = {}
    for name, term in objective.terms.items():
        found[name] = term.weight
        if name != PRIMARY and term.weight and spread[name] > 0:
            found[name] = wanted / spread[name] * (1 if term.weight > 0 else -1)
    return found
