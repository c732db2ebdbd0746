"""Probe sampling (arXiv 2403.01251, algorithm 1): a cheap guess says which candidates are worth scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter.fidelity import rank_correlation
from fuse.errors import FuseError
from fuse.objective import PRIMARY, Objective, Term
from fuse.types import Ids

SMALLEST = 8
"""Candidates in a probe, at least: a rank correlation of fewer says nothing."""


@dataclass(frozen=True)
class Probe:
    """Of n candidates the share `probe_share`, drawn at random, is scored, and so are the best by the draft.

    The draft's loss stands for the primary's in the weighted sum, by which all n are ranked; its tokens may be others.
    Other models guess for themselves, reading of each candidate little more than what changed (`Scorer.estimate`), and so does
    the primary without a draft.
    With the rank correlation r of both on the probe, (1 - r) / 2 x n / `reduction` of the best are scored, at least as many
    as the strategy expands at once.
    """

    draft: Term | None = None
    probe_share: float = 1 / 16
    reduction: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.probe_share < 1:
            raise FuseError(f"scoring.probe_share={self.probe_share}: expected a number between 0 and 1")
        if not self.reduction >= 1:
            raise FuseError(f"scoring.reduction={self.reduction}: expected 1 or more")

    def choose(
        self, objective: Objective, beam: Sequence[Ids], candidates: Sequence[Ids], generator: torch.Generator, width: int = 1
    ) -> list[Ids]:
        """Those of the candidates, made from the beam, that are to be scored, at least `width`; invalid ones are not among them."""
        distinct = list(dict.fromkeys(candidates))
        rows = [row for row, ok in zip(distinct, objective.valid(distinct), strict=True) if ok]
        probed = max(SMALLEST, round(self.probe_share * len(rows)))
        if len(rows) <= 2 * probed:
            return rows
        if self.draft is not None:
            self.draft.scorer.expand(self.draft.encode(objective.vocabulary.decode(beam)))
        guessed = self._guess(objective, rows)
        probe = torch.randperm(len(rows), generator=generator)[:probed]
        true = objective.evaluate([rows[i] for i in probe.tolist()]).loss
        disagreement = (1 - rank_correlation(guessed[probe], true)) / 2
        favoured = guessed.argsort(stable=True)[: max(width, round(disagreement * len(rows) / self.reduction))]
        return [rows[i] for i in sorted({*probe.tolist(), *favoured.tolist()})]

    def _guess(self, objective: Objective, rows: Sequence[Ids]) -> Float[Tensor, " n"]:
        """The weighted sum of guesses; inf for what the draft's context has no room for."""
        prompts = objective.vocabulary.decode(rows)
        total = torch.zeros(len(rows))
        for name, term in objective.terms.items():
            guesser = self.draft or term if name == PRIMARY else term
            encoded = guesser.encode(prompts)
            fits = [i for i, e in enumerate(encoded) if len(e.ids) <= guesser.vocabulary.max_length]
            losses = torch.full_like(total, torch.inf)
            guess = guesser.score if guesser is self.draft else guesser.scorer.estimate
            losses[fits] = guess([encoded[i] for i in fits])
            total += losses * term.weight if term.weight else 0
        return total
