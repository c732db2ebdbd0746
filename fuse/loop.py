"""The loop: propose, score, select; keep the best; write the trace."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fuse.errors import FuseError
from fuse.methods import Method
from fuse.methods.base import random_prompt
from fuse.objective import Guide, Objective
from fuse.strategies import Strategy
from fuse.types import Result, Step


def search(
    objective: Objective,
    method: Method,
    strategy: Strategy,
    *,
    steps: int | None = None,
    init: str = "",
    generator: torch.Generator | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Result:
    """Find a prompt of low loss.

    Args:
        steps: how many times to propose; None for the method's own number.
        init: the text to start from; empty for the method's own start.
        generator: the only source of chance (on the CPU); None for one with seed 0.
        on_step: called after every step, with its record.

    Returns:
        The best prompt over all steps, the starting text included, scored anew from its text alone.

    Raises:
        FuseError: a starting text or a length that some model cannot take.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    steps = method.steps if steps is None else steps
    guide = Guide(objective)
    began, scored_before = time.perf_counter(), objective.evaluations

    method_state, beam = method.init(guide, objective.spell(init) if init else (), generator)
    strategy_state = strategy.init()
    started = [row for row in beam if row] or [random_prompt(guide, 1, generator)]
    initial = objective.evaluate(started).loss
    # An empty start is no prompt: its loss is reported as that of one random token, which does not compete
    competing = list(zip(initial.tolist(), started, strict=True)) if any(beam) else []
    best = min(competing, default=(float("inf"), ()))
    strategy_state, _ = strategy.select(strategy_state, competing, method.buffer_size)

    trace: list[Step] = []
    for number in range(1, steps + 1):
        method_state, candidates = method.propose(method_state, beam, guide, generator)
        if not candidates.ids:
            break
        evaluation = objective.evaluate(candidates.ids)
        scored = [(loss, ids) for loss, ids in zip(evaluation.loss.tolist(), candidates.ids, strict=True) if loss < float("inf")]
        strategy_state, beam = strategy.select(strategy_state, scored, method.buffer_size)
        if not scored:
            continue
        winner = int(evaluation.loss.argmin())
        loss, free_ids = float(evaluation.loss[winner]), candidates.ids[winner]
        best = min(best, (loss, free_ids))
        trace.append(
            Step(
                step=number,
                loss=loss,
                best_loss=best[0],
                prompt=objective.vocabulary.decode([free_ids])[0],
                free_ids=free_ids,
                terms={name: float(losses[winner]) for name, losses in evaluation.terms.items()},
                evaluations=objective.evaluations - scored_before,
                seconds=time.perf_counter() - began,
            )
        )
        if on_step is not None:
            on_step(trace[-1])
    if not best[1]:
        raise FuseError(f"steps={steps}: nothing was found; give steps=1 or more, or a starting text")
    prompt = objective.vocabulary.decode([best[1]])[0]
    loss, terms = objective.evaluate_text(prompt)
    return Result(
        prompt=prompt,
        free_ids=best[1],
        loss=loss,
        initial_loss=float(initial.min()),
        terms=terms,
        steps=len(trace),
        evaluations=objective.evaluations - scored_before,
        seconds=time.perf_counter() - began,
        trace=tuple(trace),
    )
