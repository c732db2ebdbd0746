"""Probe sampling (arXiv 2403.01251, algorithm 1): a cheap guess says which candidates are worth
scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from fuse.objective import PRIMARY, Known, Objective
from fuse.options import LARGE, check_options
from fuse.statistics import rank_correlation
from fuse.term import Term
from fuse.types import Candidates, Ids

MIN_PROBE = 8
"""Candidates in a probe, at least: a rank correlation of fewer says nothing."""


@dataclass(frozen=True)
class Probe:
    """Choose the candidates that are scored, by a guess at the losses of all (arXiv 2403.01251).

    Of n candidates the share `probe_share`, drawn at random, is scored, and so are the best by the
    guess. The draft's loss stands for the primary's in the weighted sum, by which all n are ranked;
    its tokens may be others. Other models guess for themselves, reading of each candidate little
    more than what changed (`Engine.estimate`), and so does the primary without a draft. With the
    rank correlation r of both on the probe, (1 - r) / 2 x n / `reduction` of the best are scored,
    at least as many as the strategy expands at once.

    Raises:
        FuseError: an option out of range.
    """

    draft: Term | None = None
    probe_share: Annotated[
        float, Gt(0), Lt(1), Doc("of the candidates, drawn at random, tells how far the two agree")
    ] = 1 / 16
    reduction: Annotated[
        float,
        Ge(1),
        Le(LARGE),
        Doc("where they do not agree at all, one candidate in so many is scored; else fewer"),
    ] = 8.0

    def __post_init__(self) -> None:
        check_options(self)

    def choose(
        self,
        objective: Objective,
        beam: Sequence[Ids],
        candidates: Candidates,
        rng: torch.Generator,
        width: int = 1,
        known: Known | None = None,
    ) -> Candidates:
        """Return those of the candidates, made from the beam, that are to be scored.

        Args:
            width: how many of the best by the guess are among them, at least.
            known: losses of candidates that were scored before.

        Returns:
            Valid candidates alone, each once, in their order.
        """
        first = {row: i for i, row in reversed(list(enumerate(map(tuple, candidates.ids))))}
        index = sorted(first.values())
        valid = objective.valid([candidates.ids[i] for i in index])
        index = [i for i, ok in zip(index, valid, strict=True) if ok]
        rows = [candidates.ids[i] for i in index]
        num_probed = max(MIN_PROBE, round(self.probe_share * len(rows)))
        chosen = list(range(len(rows)))
        if len(rows) > 2 * num_probed:
            chosen = self._chosen(objective, beam, rows, num_probed, rng, width, known)
        return candidates.kept([index[i] for i in chosen])

    def _chosen(
        self,
        objective: Objective,
        beam: Sequence[Ids],
        rows: Sequence[Ids],
        num_probed: int,
        rng: torch.Generator,
        width: int,
        known: Known | None,
    ) -> list[int]:
        """Return which rows are scored: the probe and the best by the guess."""
        if self.draft is not None:
            self.draft.engine.prefill(self.draft.encode(objective.vocabulary.decode(beam)))
        guessed = self._guess(objective, rows)
        probe = torch.randperm(len(rows), generator=rng)[:num_probed]
        true = objective.evaluate([rows[i] for i in probe.tolist()], known).loss
        disagreement = (1 - rank_correlation(guessed[probe], true)) / 2
        count = max(width, round(disagreement * len(rows) / self.reduction))
        return sorted({*probe.tolist(), *guessed.argsort(stable=True)[:count].tolist()})

    def _guess(self, objective: Objective, rows: Sequence[Ids]) -> Float[Tensor, " n"]:
        """Return the weighted sum of guesses; inf for what the draft's context has no room for."""
        prompts = objective.vocabulary.decode(rows)
        total = torch.zeros(len(rows))
        for name, term in objective.terms.items():
            if not term.weight:
                continue
            draft = self.draft if name == PRIMARY else None
            encoded = (draft or term).encode(prompts)
            fits = [i for i, fit in enumerate((draft or term).fits(encoded)) if fit]
            guess = term.engine.estimate if draft is None else draft.score
            losses = torch.full_like(total, torch.inf)
            losses[fits] = guess([encoded[i] for i in fits])
            total += losses * term.weight
        return total
