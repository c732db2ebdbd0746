"""The loop: propose, score, select; keep the best; write the trace."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.methods import METHODS, Method
from fuse.methods.base import random_prompt
from fuse.models import CausalLM
from fuse.objective import Objective
from fuse.probe import Probe
from fuse.strategies import Beam, Strategy, name_of
from fuse.types import Evaluation, Ids, Result, Step


def method_name(method: Method) -> str:
    """A method's name in `conf/method`."""
    return next((name for name, kind in METHODS.items() if type(method) is kind), type(method).__name__)


def check_combination(method: Method, strategy: Strategy) -> None:
    """Raises FuseError where a method goes with greedy search alone and the strategy is another one."""
    if method.greedy_only and strategy != Beam(1):
        raise FuseError(f"strategy={name_of(strategy)}: method={method_name(method)} follows a prompt of its own; give strategy=greedy")


def check_objective(objective: Objective, method: Method, stop_at_label: bool = False) -> None:
    """Raises FuseError where a method asks the primary for what it cannot tell, or a label is waited for that is not there."""
    model = objective.primary.model
    if method.reads_predictions and not isinstance(model, CausalLM):
        raise FuseError(
            f"method={method_name(method)}: it reads next-token probabilities, and primary is a {type(model).__name__}; use a causal LM"
        )
    if stop_at_label and not objective.elicits:
        raise FuseError("stop_at_label=true: there is no label; give label=TEXT and primary.loss=cross_entropy")


def search(
    objective: Objective,
    method: Method,
    strategy: Strategy | None = None,
    *,
    refine: Method | None = None,
    steps: int | None = None,
    init: str = "",
    stop_loss: float | None = None,
    stop_at_label: bool = False,
    probe: Probe | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Result:
    """Find a prompt of low loss.

    Args:
        strategy: what is expanded next; None for beam search as wide as suits the method.
        refine: a second method, which goes on from the best prompt of the first when that has ended or made its own
            number of steps, by the strategy that suits it.
        steps: how many times to propose in all; None for the methods' own numbers.
        init: the text to start from; empty for the method's own start.
        stop_loss: end as soon as the best loss is at or below this.
        stop_at_label: end as soon as the primary greedily says its label after the best prompt.
        probe: chooses which candidates are scored; None for all.
        generator: the only source of chance (on the CPU); None for one with seed 0.
        on_step: called after every step, with its record.

    Returns:
        The best prompt over all steps, the starting text included, scored anew from its text alone.

    Raises:
        FuseError: a starting text or a length that some model cannot take; a method that does not go with the strategy;
            `stop_at_label` without a label.
    """
    parts = [(method, strategy or Beam(method.beam_width))] + ([] if refine is None else [(refine, Beam(refine.beam_width))])
    for part in parts:
        check_combination(*part)
        check_objective(objective, part[0], stop_at_label)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    run = _Search(objective, probe, generator, on_step)
    left = sum(one.steps for one, _ in parts) if steps is None else steps

    start = objective.spell(init) if init else ()
    for number, (one, its_strategy) in enumerate(parts):
        own = left if number == len(parts) - 1 else min(one.steps, left)
        left -= run.follow(one, its_strategy, start, own, stop_loss, stop_at_label)
        start = run.best[1] or start
        if run.stopped:
            break
    return run.result(steps)


class _Search:
    """What one search has seen so far."""

    def __init__(
        self, objective: Objective, probe: Probe | None, generator: torch.Generator, on_step: Callable[[Step], None] | None
    ) -> None:
        self.objective = objective
        self.probe = probe
        self.guide = Guide(objective)
        self.generator = generator
        self.on_step = on_step
        self.began, self.scored_before = time.perf_counter(), objective.evaluations
        self.initial_loss: float | None = None
        self.best: tuple[float, Ids] = (float("inf"), ())
        self.trace: list[Step] = []
        self.found: list[Ids] = []
        self.stopped = False

    def follow(self, method: Method, strategy: Strategy, start: Ids, steps: int, stop_loss: float | None, stop_at_label: bool) -> int:
        """Up to so many steps of one method from a start; how many were made."""
        method_state, beam = method.init(self.guide, start, self.generator)
        strategy_state, _ = strategy.select(strategy.init(), self._start(beam), method.buffer_size)
        self.stopped = self._reached(stop_loss, stop_at_label)
        if self.stopped:
            return 0
        number = 0
        for number in range(1, steps + 1):
            self.objective.expand(beam)
            method_state, candidates = method.propose(method_state, beam, self.guide, self.generator)
            if candidates is None:
                number -= 1
                break
            if self.probe is not None:
                candidates = self.probe.choose(self.objective, beam, candidates, self.generator)
            evaluation = self.objective.evaluate(candidates)
            scored = [(loss, ids) for loss, ids in zip(evaluation.loss.tolist(), candidates, strict=True) if loss < float("inf")]
            strategy_state, beam = strategy.select(strategy_state, scored, method.buffer_size)
            if scored:
                self._record(method, evaluation, candidates)
                self.stopped = self._reached(stop_loss, stop_at_label)
                if self.stopped:
                    break
        self.found += [ids for ids in method.found(method_state) if ids not in self.found]
        return number

    def _reached(self, stop_loss: float | None, stop_at_label: bool) -> bool:
        """Whether the best prompt is good enough to end the search."""
        loss, ids = self.best
        return bool(ids) and ((stop_loss is not None and loss <= stop_loss) or (stop_at_label and self.objective.says_label([ids])[0]))

    def _start(self, beam: Sequence[Ids]) -> list[tuple[float, Ids]]:
        """The first beam as scored entries, which compete with all that follow."""
        started = [row for row in beam if row] or [random_prompt(self.guide, 1, self.generator)]
        losses = self.objective.evaluate(started).loss.tolist()
        if self.initial_loss is None:
            self.initial_loss = min(losses)
        # An empty start is no prompt: its loss is reported as that of one random token, which does not compete
        entries = list(zip(losses, started, strict=True)) if any(beam) else []
        self.best = min([self.best, *entries])
        return entries

    def _record(self, method: Method, evaluation: Evaluation, rows: Sequence[Ids]) -> None:
        """One more step in the trace."""
        winner = int(evaluation.loss.argmin())
        loss, free_ids = float(evaluation.loss[winner]), tuple(rows[winner])
        self.best = min(self.best, (loss, free_ids))
        step = Step(
            step=len(self.trace) + 1,
            method=method_name(method),
            loss=loss,
            best_loss=self.best[0],
            prompt=self.objective.vocabulary.decode([free_ids])[0],
            free_ids=free_ids,
            terms={name: float(losses[winner]) for name, losses in evaluation.terms.items()},
            evaluations=self.objective.evaluations - self.scored_before,
            seconds=time.perf_counter() - self.began,
        )
        self.trace.append(step)
        if self.on_step is not None:
            self.on_step(step)

    def result(self, steps: int | None) -> Result:
        """The best prompt, scored anew from its text alone."""
        if not self.best[1]:
            raise FuseError(f"steps={steps}: nothing was found; give steps=1 or more, or a starting text")
        vocabulary = self.objective.vocabulary
        prompt = vocabulary.decode([self.best[1]])[0]
        loss, terms = self.objective.evaluate_text(prompt)
        counts = Counter(vocabulary.token_texts[token].strip() for ids in self.found for token in ids)
        return Result(
            prompt=prompt,
            free_ids=self.best[1],
            loss=loss,
            initial_loss=self.initial_loss if self.initial_loss is not None else loss,
            terms=terms,
            steps=len(self.trace),
            evaluations=self.objective.evaluations - self.scored_before,
            seconds=time.perf_counter() - self.began,
            found=tuple(vocabulary.decode(self.found)),
            token_counts=dict(counts.most_common()),
            trace=tuple(self.trace),
        )
