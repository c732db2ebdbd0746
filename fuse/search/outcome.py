"""What a search shows of its state: a step of the trace, the best prompts, the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from fuse.objective import Objective
from fuse.search.state import SearchState
from fuse.types import (
    BeamRow,
    Candidates,
    Entry,
    Evaluation,
    FrontPrompt,
    Ids,
    Result,
    Step,
)

EXHAUSTED, NO_VALID_CANDIDATE, NOT_FINITE = "exhausted", "no valid candidate", "not finite"
"""Why a step has no candidate that counts: nothing was proposed; all were refused; no loss or
gradient was finite.
"""
NUM_EARLIER = 500
"""How many of the best prompts of the first method a wide beam of the second one chooses from."""

Parents = Mapping[Ids, int]
"""The row of the beam that each prompt came from."""


def result_of(
    objective: Objective, state: SearchState, trace: Sequence[Step], *, rescore: bool
) -> Result:
    """Return the result of a search that has a best prompt; `Search.result` describes it."""
    assert state.best is not None
    vocabulary = objective.vocabulary
    prompt = vocabulary.decode([state.best.ids])[0]
    if rescore:
        loss, terms = objective.evaluate_text(prompt)
    else:
        loss, terms = state.best.loss, objective.term_results(prompt, state.best.terms)
    counts: Counter[str] = Counter()
    for ids in state.found:
        counts.update(vocabulary.token_texts[token].strip() for token in ids)
    return Result(
        prompt=prompt,
        free_ids=state.best.ids,
        loss=loss,
        initial_loss=loss if state.initial_loss is None else state.initial_loss,
        terms=terms,
        steps=state.step,
        evaluations=state.evaluations,
        operations=state.operations,
        seconds=state.seconds,
        found=tuple(vocabulary.decode(state.found)),
        token_counts=dict(counts.most_common()),
        trace=tuple(trace),
        ended=state.ended,
        num_non_finite=state.num_non_finite,
        front=_front_prompts(objective, state.front),
    )


def _front_prompts(objective: Objective, front: Sequence[Entry]) -> tuple[FrontPrompt, ...]:
    """Return the Pareto front as text."""
    found, prompts = [], objective.vocabulary.decode([entry.ids for entry in front])
    for entry, prompt in zip(front, prompts, strict=True):
        terms = dict(zip(objective.terms, entry.terms, strict=True))
        found.append(FrontPrompt(prompt, entry.loss, terms))
    return tuple(found)


def step_record(
    objective: Objective,
    state: SearchState,
    method: str,
    winner: Entry,
    best: Entry,
    parents: Parents,
) -> Step:
    """Return a step of the trace.

    Args:
        state: after the step.
        winner: the best candidate of the step.
        best: the best of all steps.
        parents: as `origins` returns them.
    """
    return Step(
        step=state.step + 1,
        method=method,
        loss=winner.loss,
        best_loss=best.loss,
        prompt=objective.vocabulary.decode([winner.ids])[0],
        free_ids=winner.ids,
        terms=dict(zip(objective.terms, winner.terms, strict=True)),
        evaluations=state.evaluations,
        seconds=state.seconds,
        operations=state.operations,
        parent=parents.get(winner.ids),
        beam=_beam_rows(objective, state, parents),
    )


def _beam_rows(objective: Objective, state: SearchState, parents: Parents) -> tuple[BeamRow, ...]:
    """Return the beam for the trace."""
    found, prompts = [], objective.vocabulary.decode(state.beam)
    for row, prompt in zip(state.beam, prompts, strict=True):
        loss = None
        if row in state.scored:
            loss = float(objective.total(torch.tensor([state.scored[row]]))[0])
        found.append(BeamRow(prompt, loss, parents.get(row)))
    return tuple(found)


def origins(beam: Sequence[Ids], candidates: Candidates) -> dict[Ids, int]:
    """Return the row of the beam that each candidate came from; what stands in the beam already
    came from itself.
    """
    found: dict[Ids, int] = {}
    parents = candidates.parents or ([0] * len(candidates.ids) if len(beam) == 1 else [])
    for ids, parent in zip(candidates.ids, parents, strict=False):
        found.setdefault(ids, parent)
    return found | {ids: number for number, ids in enumerate(beam)}


def better(objective: Objective, best: Entry | None, entries: Sequence[Entry]) -> Entry | None:
    """Return the best of all: a finished one, if there is one."""
    pool = [*([best] if best else []), *entries]
    finished = objective.finished([entry.ids for entry in pool])
    whole = [entry for entry, ends in zip(pool, finished, strict=True) if ends]
    return min(whole or pool, default=None)


def best_scored(objective: Objective, state: SearchState) -> Evaluation:
    """Return the best of what was scored so far, the whole texts where there are any: a wide beam
    goes on from several of them.
    """
    rows = list(state.scored)
    terms = torch.tensor([state.scored[row] for row in rows]).reshape(len(rows), -1)
    loss = objective.total(terms) if rows else torch.zeros(0)
    whole = torch.tensor(objective.finished(rows), dtype=torch.bool)
    loss = torch.where(whole, loss, torch.inf) if whole.any() else loss
    best = loss.argsort(stable=True)[:NUM_EARLIER].tolist()
    columns = dict(zip(objective.terms, terms[best].unbind(1), strict=True))
    valid = torch.ones(len(best), dtype=torch.bool)
    return Evaluation(Candidates([rows[i] for i in best]), loss[best], columns, valid)


def trouble(evaluated: Evaluation) -> str:
    """Say why no candidate of a step counts."""
    if evaluated.num_non_finite or evaluated.candidates.num_non_finite:
        return NOT_FINITE
    return NO_VALID_CANDIDATE if evaluated.candidates.ids else EXHAUSTED


def why_nothing(objective: Objective, state: SearchState, steps: int | None) -> str:
    """Say why a search has found nothing, and what to do."""
    if NOT_FINITE in (state.ended, state.trouble):
        names = never_finite(objective, state)
        return (
            f"{', '.join(names) or 'objective'}: "
            f"of {state.evaluations} losses none is finite (nan or inf); "
            "check the weights of the model, or give dtype=float32"
        )
    return f"steps={steps}: nothing was found; give steps=1 or more, or a starting text"


def never_finite(objective: Objective, state: SearchState) -> list[str]:
    """Return the terms of which no loss was finite."""
    losses = torch.tensor(list(state.scored.values())).reshape(-1, len(objective.terms))
    finite = losses.isfinite().any(0).tolist()
    return [name for name, some in zip(objective.terms, finite, strict=True) if not some]
