"""The loop: propose, score, select; keep the best; write the trace."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.methods import METHODS, Method
from fuse.methods.base import random_prompt
from fuse.models import CausalLM
from fuse.objective import Objective, evaluate_together, expand_together
from fuse.probe import Probe
from fuse.strategies import Beam, Strategy, name_of
from fuse.types import Evaluation, Ids, Result, Step

T = TypeVar("T")


def method_name(method: Method) -> str:
    """A method's name in `conf/method`."""
    return next((name for name, kind in METHODS.items() if type(method) is kind), type(method).__name__)


def check_combination(method: Method, strategy: Strategy) -> None:
    """Raises FuseError where a method goes with greedy search alone and the strategy is another one."""
    if method.greedy_only and strategy != Beam(1):
        raise FuseError(f"strategy={name_of(strategy)}: method={method_name(method)} follows a prompt of its own; give strategy=greedy")


def check_objective(objective: Objective, method: Method, stop_at_label: bool = False, probe: Probe | None = None) -> None:
    """Raises FuseError where the primary is asked for what it cannot tell, or a label is waited for that is not there."""
    model = objective.primary.model
    if probe is not None and probe.draft is None and not model.packs:
        raise FuseError(
            f"scoring.draft.model_id=null: primary is a {type(model).__name__} that cannot guess its loss from what changed; "
            "name a smaller model"
        )
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
    return Task(objective, method, strategy, refine, steps, init, stop_loss, stop_at_label, probe, generator, on_step).search()


@dataclass(frozen=True)
class Task:
    """What `search` takes."""

    objective: Objective
    method: Method
    strategy: Strategy | None = None
    refine: Method | None = None
    steps: int | None = None
    init: str = ""
    stop_loss: float | None = None
    stop_at_label: bool = False
    probe: Probe | None = None
    generator: torch.Generator | None = None
    on_step: Callable[[Step], None] | None = None

    @property
    def first_strategy(self) -> Strategy:
        """That of the first method."""
        return self.strategy or Beam(self.method.beam_width)

    @property
    def most_steps(self) -> int:
        """How many steps the search takes, if nothing ends it."""
        return self.method.steps + (self.refine.steps if self.refine else 0) if self.steps is None else self.steps

    def search(self) -> Result:
        """As `fuse.search`."""
        (found,) = search_together([self])
        if isinstance(found, FuseError):
            raise found
        return found


def search_together(tasks: Sequence[Task]) -> list[Result | FuseError]:
    """What `search` finds for each task, but for rounding, or the error that it ends with.

    Searches go side by side: those over the same models share the forward passes in which these read the beams and score
    the candidates.
    """
    searches = [_Search(task).run() for task in tasks]
    found: dict[int, Result | FuseError] = {}
    answers: dict[int, Evaluation | None] = dict.fromkeys(range(len(tasks)))
    waiting: dict[int, tuple[bool, Sequence[Ids]]] = {}
    while answers:
        for i, answer in answers.items():
            try:
                waiting[i] = searches[i].send(answer)
            except StopIteration as end:
                found[i] = end.value
            except FuseError as error:
                found[i] = error
        # No beam is read before all candidates are scored, so that searches keep step
        scoring = [i for i, (expands, _) in waiting.items() if not expands]
        asked = [(tasks[i].objective, waiting[i][1]) for i in scoring or waiting]
        if scoring:
            answers = dict(zip(scoring, evaluate_together(asked), strict=True))
        else:
            expand_together(asked)
            answers = dict.fromkeys(waiting)
        for i in answers:
            del waiting[i]
    return [found[i] for i in range(len(tasks))]


Asking = Generator[tuple[bool, Sequence[Ids]], Any, T]
"""A part of a search. It asks for rows to be expanded (True) or evaluated (False), and is sent the evaluation."""


class _Search:
    """One search, and what it has seen so far."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.objective = task.objective
        self.generator = torch.Generator().manual_seed(0) if task.generator is None else task.generator
        self.began, self.scored_before = time.perf_counter(), task.objective.evaluations
        self.initial_loss: float | None = None
        self.best: tuple[float, Ids] = (float("inf"), ())
        self.trace: list[Step] = []
        self.found: list[Ids] = []
        self.stopped = False

    def run(self) -> Asking[Result]:
        """All of it."""
        task = self.task
        parts = [(task.method, task.first_strategy)]
        if task.refine is not None:
            parts.append((task.refine, Beam(task.refine.beam_width)))
        for part in parts:
            check_combination(*part)
            check_objective(self.objective, part[0], task.stop_at_label, task.probe)
        self.guide = Guide(self.objective)
        left = task.most_steps
        start = self.objective.spell(task.init) if task.init else ()
        for number, (method, strategy) in enumerate(parts):
            own = left if number == len(parts) - 1 else min(method.steps, left)
            left -= yield from self._follow(method, strategy, start, own)
            start = self.best[1] or start
            if self.stopped:
                break
        return self._result()

    def _follow(self, method: Method, strategy: Strategy, start: Ids, steps: int) -> Asking[int]:
        """Up to so many steps of one method from a start; how many were made."""
        method_state, beam = method.init(self.guide, start, self.generator)
        entries = yield from self._start(beam)
        strategy_state, _ = strategy.select(strategy.init(), entries, method.buffer_size)
        self.stopped = self._reached()
        if self.stopped:
            return 0
        number = 0
        for number in range(1, steps + 1):
            yield True, beam
            method_state, candidates = method.propose(method_state, beam, self.guide, self.generator)
            if candidates is None:
                number -= 1
                break
            if self.task.probe is not None:
                candidates = self.task.probe.choose(self.objective, beam, candidates, self.generator, strategy.width)
            evaluation = yield False, candidates
            scored = [(loss, ids) for loss, ids in zip(evaluation.loss.tolist(), candidates, strict=True) if loss < float("inf")]
            strategy_state, beam = strategy.select(strategy_state, scored, method.buffer_size)
            if scored:
                self._record(method, evaluation, candidates)
                self.stopped = self._reached()
                if self.stopped:
                    break
        self.found += [ids for ids in method.found(method_state) if ids not in self.found]
        return number

    def _reached(self) -> bool:
        """Whether the best prompt is good enough to end the search."""
        (loss, ids), goal = self.best, self.task.stop_loss
        return bool(ids) and ((goal is not None and loss <= goal) or (self.task.stop_at_label and self.objective.says_label([ids])[0]))

    def _start(self, beam: Sequence[Ids]) -> Asking[list[tuple[float, Ids]]]:
        """The first beam as scored entries, which compete with all that follow."""
        started = [row for row in beam if row] or [random_prompt(self.guide, 1, self.generator)]
        losses = (yield False, started).loss.tolist()
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
        if self.task.on_step is not None:
            self.task.on_step(step)

    def _result(self) -> Result:
        """The best prompt, scored anew from its text alone."""
        if not self.best[1]:
            raise FuseError(f"steps={self.task.steps}: nothing was found; give steps=1 or more, or a starting text")
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
