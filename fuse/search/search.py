"""One search as ask and tell: propose candidates, accept their losses."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.memo import STEPS_BETWEEN_TRIMS, trim_heap
from fuse.nn.operations import OperationCounter
from fuse.objective import Objective
from fuse.registry import METHODS
from fuse.search.checks import check_combination, check_objective
from fuse.search.methods.base import Method, random_prompt
from fuse.search.outcome import (
    EXHAUSTED,
    NOT_FINITE,
    Parents,
    best_scored,
    better,
    never_finite,
    origins,
    result_of,
    step_record,
    trouble,
    why_nothing,
)
from fuse.search.screening import Probe
from fuse.search.state import SearchState
from fuse.search.strategies.base import Strategy
from fuse.search.strategies.beam import Beam
from fuse.types import (
    UNCHANGED,
    Candidates,
    Entry,
    Evaluation,
    Ids,
    Result,
    Step,
)

NUM_OTHER_STARTS = 4
"""How many random prompts are tried where the start has no finite loss."""

LIMITS = ("steps", "stop_loss", "label", "time_limit", "max_evaluations")
"""Why a search ended that goes on where these are other ones."""


@dataclass(frozen=True)
class Stage:
    """One method and the strategy that selects for it."""

    method: Method
    strategy: Strategy


@dataclass(frozen=True)
class Search:
    """A search for a prompt of low loss. It holds options alone; all that changes is in
    `SearchState`.

    Example::

        search = Search(objective, GCG())
        state = search.start()
        while not state.ended:
            candidates = search.propose(state)
            evaluated = search.evaluate(state, candidates)
            state = search.accept(state, evaluated)
        result = search.result(state)

    Args:
        strategy: what is expanded next; None for beam search as wide as suits the method.
        refine: a second method, which goes on from the best prompt of the first when that has ended
            or made its own number of steps, by the strategy that suits it.
        steps: how many times to propose in all; None for the methods' own numbers.
        init: the text to start from; empty for the method's own start. Of several the strategy
            chooses the first beam, but a method that grows its prompts begins as it does without
            them, and they compete with what it writes. Their words are offered wherever the method
            puts in tokens.
        stop_loss: end as soon as the best loss is at or below this.
        stop_at_label: end as soon as the primary greedily says its label after the best prompt.
        probe: chooses which candidates are scored; None for all.
        generator: the only source of chance (on the CPU), as it is when the search is made; None
            for one with seed 0.
        on_step: called after every step, with its record.
        time_limit: end after the step in which so many seconds have passed.
        max_evaluations: end after the step in which so many candidates have been scored.

    Raises:
        FuseError: a method that does not go with the strategy or the objective; `stop_at_label`
            without a label.
    """

    objective: Objective
    method: Method
    strategy: Strategy | None = None
    refine: Method | None = None
    steps: int | None = None
    init: str | Sequence[str] = ""
    stop_loss: float | None = None
    stop_at_label: bool = False
    probe: Probe | None = None
    generator: torch.Generator | None = None
    on_step: Callable[[Step], None] | None = None
    time_limit: float | None = None
    max_evaluations: int | None = None
    first_rng: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    """The generator's state when the search was made: the same search run twice is the same."""

    def __post_init__(self) -> None:
        for stage in self.stages:
            check_combination(stage.method, stage.strategy)
            check_objective(self.objective, stage.method, self.stop_at_label, self.probe)
        rng = torch.Generator().manual_seed(0) if self.generator is None else self.generator
        object.__setattr__(self, "first_rng", rng.get_state())

    @property
    def first_strategy(self) -> Strategy:
        """The first method's strategy."""
        return self.stages[0].strategy

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The methods that follow one another."""
        first = Stage(self.method, self.strategy or own_strategy(self.method))
        if self.refine is None:
            return (first,)
        return first, Stage(self.refine, own_strategy(self.refine))

    @property
    def most_steps(self) -> int:
        """How many steps the search takes, if nothing ends it."""
        if self.steps is not None:
            return self.steps
        return sum(stage.method.steps for stage in self.stages)

    @cached_property
    def guide(self) -> Guide:
        """What the methods see of the objective."""
        return Guide(self.objective, () if isinstance(self.init, str) else self.init)

    @cached_property
    def counters(self) -> list[OperationCounter]:
        """What counts the operations of all models that it asks, each once."""
        found = self.objective.counters
        if self.probe is not None and self.probe.draft is not None:
            found = [*found, self.probe.draft.model.operations]
        return list({id(one): one for one in found}.values())

    @property
    def operations(self) -> int:
        """How many operations its models have made so far, whoever asked."""
        return sum(one.total for one in self.counters)

    # --- ask and tell ----------------------------------------------------------------------------

    def start(self) -> SearchState:
        """Return the state before the first step; the start is scored.

        Raises:
            FuseError: a starting text or a length that some model cannot take; a term with no
                finite loss of the start, nor of a few random prompts.
        """
        texts = [self.init] if isinstance(self.init, str) else self.init
        starts = list(dict.fromkeys(self.objective.spell(text) for text in texts if text))
        assert self.first_rng is not None
        state = SearchState(rng=self.first_rng)
        if len(starts) > 1:  # the method is told of the best one
            evaluated = self.evaluate(state, Candidates(starts))
            state = self._counted(state, evaluated)
            starts.sort(key=dict(zip(starts, evaluated.loss.tolist(), strict=True)).__getitem__)
        state = self._begin_stage(state, 0, starts)
        if state.initial_loss is None:
            self._try_other_starts(state)
        return state

    @torch.inference_mode(False)
    @torch.enable_grad()
    def propose(self, state: SearchState, *, prefill: bool = True) -> Candidates:
        """Return what to try next. Neither the search nor the state is changed.

        Args:
            prefill: whether the step begins by reading the beam; False where that was done before,
                for several searches together.

        Returns:
            Candidates, with `over` where the method has nothing more to propose.
        """
        began, operations = time.perf_counter(), self.operations
        if prefill:
            self.objective.prefill(state.beam)
        stage, rng = self.stages[state.stage], self._rng(state)
        self.guide.scored = state.scored
        candidates = stage.method.propose(state.method, state.beam, self.guide, rng)
        if candidates is None:
            candidates = Candidates(over=True)
        candidates = replace(candidates, ids=[tuple(row) for row in candidates.ids])
        if candidates.parents and not stage.method.greedy_only:
            candidates = self._still_whole(state.beam, candidates)
        if self.probe is not None and not candidates.over:
            width = stage.strategy.width
            candidates = self.probe.choose(
                self.objective,
                state.beam,
                candidates,
                rng,
                width,
                state.scored.known(candidates.ids),
            )
        return replace(candidates, rng=rng.get_state(), began=began, operations_before=operations)

    def _still_whole(self, beam: Sequence[Ids], candidates: Candidates) -> Candidates:
        """Return the candidates without unfinished ones that come from a finished row."""
        was, ends = self.objective.finished(beam), self.objective.finished(candidates.ids)
        origin = candidates.parents
        return candidates.kept([i for i, own in enumerate(ends) if own or not was[origin[i]]])

    def evaluate(self, state: SearchState, candidates: Candidates) -> Evaluation:
        """Return the losses of candidates; those that this search has scored lately are not scored
        again.
        """
        num_ranked = self.stages[state.stage].strategy.num_ranked
        known = state.scored.known(candidates.ids)
        evaluated = self.objective.evaluate(candidates, known, num_ranked)
        if candidates.operations_before is None:
            return evaluated
        return replace(evaluated, operations=self.operations - candidates.operations_before)

    def accept(self, state: SearchState, evaluated: Evaluation) -> SearchState:
        """Return the state after a step whose candidates were evaluated."""
        candidates, stage, rng = evaluated.candidates, self.stages[state.stage], self._rng(state)
        method = state.method if candidates.state is UNCHANGED else candidates.state
        state = replace(state, operations=state.operations + evaluated.operations)
        if candidates.over:
            return self._next_stage(replace(state, method=method), state.trouble or EXHAUSTED)
        if candidates.rng is not None:
            rng.set_state(candidates.rng)
        if state.proposed % STEPS_BETWEEN_TRIMS == STEPS_BETWEEN_TRIMS - 1:
            trim_heap()
        entries = evaluated.entries()
        state = self._counted(state, evaluated)
        before = state.beam
        strategy, beam = stage.strategy.select(state.strategy, evaluated.growing(), rng)
        state = replace(
            state,
            rng=rng.get_state(),
            proposed=state.proposed + 1,
            stage_proposed=state.stage_proposed + 1,
            method=stage.method.observe(method, evaluated),
            strategy=strategy,
            beam=tuple(beam),
            trouble="" if entries else trouble(evaluated),
            seconds=state.seconds + max(0.0, time.perf_counter() - candidates.began),
        )
        if entries:
            state = self._recorded(state, stage.method, entries, origins(before, candidates))
        return self._limited(state)

    def result(
        self, state: SearchState, trace: Sequence[Step] = (), *, rescore: bool = True
    ) -> Result:
        """Return the best prompt.

        Args:
            trace: the steps that led to the state; they become part of the result.
            rescore: whether it is scored anew, from its text alone.

        Raises:
            FuseError: nothing was found.
        """
        if state.best is None:
            raise FuseError(why_nothing(self.objective, state, self.steps))
        state = replace(state, found=self._found(state), front=self._front(state))
        return result_of(self.objective, state, trace, rescore=rescore)

    def reopened(self, state: SearchState) -> SearchState:
        """Return a state that goes on where one of the limits was reached that is higher now."""
        if state.ended and state.ended not in LIMITS:
            return state
        return self._limited(replace(state, ended=""))

    def clear(self) -> None:
        """Forget what was computed of any text, so that what follows depends on a state alone."""
        self.objective.clear()
        if self.probe is not None and self.probe.draft is not None:
            self.probe.draft.clear()

    def run(self) -> Result:
        """Search until it ends.

        Raises:
            FuseError: as `start` and `result`.
        """
        state = self.start()
        trace: list[Step] = []
        while not state.ended:
            candidates = self.propose(state)
            evaluated = self.evaluate(state, candidates)
            after = self.accept(state, evaluated)
            if after.step > state.step and after.last is not None:
                trace.append(after.last)
                if self.on_step is not None:
                    self.on_step(after.last)
            state = after
        return self.result(state, trace)

    def search(self) -> Result:
        """Do `run`, by its former name."""
        warnings.warn("Task.search() is now Search.run()", DeprecationWarning, stacklevel=2)
        return self.run()

    # --- from one state to the next --------------------------------------------------------------

    def _rng(self, state: SearchState) -> torch.Generator:
        """Return a generator in the state's state."""
        rng = torch.Generator()
        rng.set_state(state.rng)
        return rng

    def _try_other_starts(self, state: SearchState) -> None:
        """Raise FuseError where some random prompts have no finite loss either, as the start has
        none.
        """
        rng = self._rng(state)
        lengths = range(1, 1 + min(NUM_OTHER_STARTS, self.guide.max_length))
        tried = self.evaluate(
            state, Candidates([random_prompt(self.guide, length, rng) for length in lengths])
        )
        if tried.loss.isfinite().any() or not tried.valid.any():
            return
        state = self._counted(state, tried)
        if never_finite(self.objective, state):
            why = why_nothing(self.objective, replace(state, trouble=NOT_FINITE), self.steps)
            raise FuseError(why)
        largest = max(self.objective.terms, key=lambda name: abs(self.objective.terms[name].weight))
        raise FuseError(
            f"{largest}.weight={self.objective.terms[largest].weight}: the sum of the losses, each "
            "times its weight, is more than float32 holds; give a smaller weight"
        )

    def _begin_stage(self, state: SearchState, number: int, starts: Sequence[Ids]) -> SearchState:
        """Return the state before the first step of a method that begins with `starts`, the best
        first; none for its own.
        """
        began, before = time.perf_counter(), self.operations
        stage, rng = self.stages[number], self._rng(state)
        several = list(starts) if len(starts) > 1 else []
        # Whole texts are not written on: they compete with what a method grows
        joined, rivals = ([], several) if stage.method.grows else (several, [])
        first = () if rivals else next(iter(starts), ())
        method, beam = stage.method.init(self.guide, first, rng)
        rows = [row for row in dict.fromkeys([*beam, *joined]) if row]
        # An empty start is no prompt: the loss of one random token stands for its own, and does not
        # compete
        started = [*rows, *rivals] or [random_prompt(self.guide, 1, rng)]
        evaluated = self.evaluate(replace(state, stage=number), Candidates(started))
        state = self._counted(state, evaluated)
        entries = evaluated.entries() if rows or rivals else []
        goes_on = number and stage.strategy.width > 1 and not stage.method.greedy_only
        pool = self.evaluate(replace(state, stage=number), Candidates(rows))
        if goes_on:
            pool = best_scored(self.objective, state)
        strategy = stage.strategy.init(stage.method.buffer_size)
        strategy, chosen = stage.strategy.select(strategy, pool, rng)
        if joined or goes_on:
            beam = list(chosen) or beam
        losses = [state.scored[row] for row in started if row in state.scored]
        if state.initial_loss is None and losses:
            lowest = float(self.objective.total(torch.tensor(losses)).min())
            state = replace(state, initial_loss=lowest if lowest < torch.inf else None)
        state = replace(
            state,
            stage=number,
            stage_proposed=0,
            rng=rng.get_state(),
            method=method,
            strategy=strategy,
            beam=tuple(beam),
            best=better(self.objective, state.best, entries),
            trouble="" if entries or not any(beam) else trouble(evaluated),
            operations=state.operations + self.operations - before,
            seconds=state.seconds + time.perf_counter() - began,
        )
        return self._limited(state)

    def _next_stage(self, state: SearchState, reason: str) -> SearchState:
        """Return the state at the beginning of the next method, or the end of the search."""
        state = replace(state, found=self._found(state), front=self._front(state))
        if state.stage + 1 == len(self.stages):
            return replace(state, ended=reason)
        starts = [state.best.ids] if state.best else state.beam[:1]
        return self._begin_stage(state, state.stage + 1, starts)

    def _limited(self, state: SearchState) -> SearchState:
        """Return the state, ended or in the next stage where a limit is reached."""
        goal = "" if state.best is None else self._goal(state.best)
        if goal:
            return replace(state, found=self._found(state), ended=goal)
        limits = {
            "time_limit": self.time_limit is not None and state.seconds >= self.time_limit,
            "max_evaluations": self.max_evaluations is not None
            and state.evaluations >= self.max_evaluations,
            NOT_FINITE: state.best is None and state.proposed > 0 and state.trouble == NOT_FINITE,
        }
        for reason, reached in limits.items():
            if reached:
                return replace(state, ended=reason)
        if state.proposed >= self.most_steps:
            return replace(state, found=self._found(state), ended="steps")
        if state.stage_proposed >= self._own_steps(state):
            return self._next_stage(state, "steps")
        return state

    def _own_steps(self, state: SearchState) -> int:
        """Return how many steps the present method has: the last one has all that are left."""
        left = self.most_steps - (state.proposed - state.stage_proposed)
        if state.stage + 1 == len(self.stages):
            return left
        return min(self.stages[state.stage].method.steps, left)

    def _goal(self, best: Entry) -> str:
        """Return which goal the best prompt has reached; empty for none."""
        low = self.stop_loss is not None and best.loss <= self.stop_loss
        if low and self.objective.finished([best.ids])[0]:
            return "stop_loss"
        return "label" if self.stop_at_label and self.objective.says_label([best.ids])[0] else ""

    def _counted(self, state: SearchState, evaluated: Evaluation) -> SearchState:
        """Return the state with new candidates in its log and its counts."""
        rows, losses = [], []
        values = torch.stack(list(evaluated.terms.values()), 1).tolist()
        seen = set(state.scored.known(evaluated.candidates.ids))
        for row, own, valid in zip(
            evaluated.candidates.ids, values, evaluated.valid.tolist(), strict=True
        ):
            if valid and row not in seen:
                seen.add(row)
                rows.append(row)
                losses.append(tuple(own))
        dropped = evaluated.num_non_finite + evaluated.candidates.num_non_finite
        return replace(
            state,
            scored=state.scored.extended(rows, losses),
            evaluations=state.evaluations + len(rows) + evaluated.candidates.num_judged,
            num_non_finite=state.num_non_finite + dropped,
        )

    def _recorded(
        self, state: SearchState, method: Method, entries: Sequence[Entry], parents: Parents
    ) -> SearchState:
        """Return the state with one more step in the trace."""
        best = better(self.objective, state.best, entries)
        assert best is not None
        name = METHODS.name_of(method)
        last = step_record(self.objective, state, name, min(entries), best, parents)
        return replace(state, step=state.step + 1, best=best, last=last)

    def _found(self, state: SearchState) -> tuple[Ids, ...]:
        """Return what all methods have collected so far, each once."""
        own = self.stages[state.stage].method.found(state.method)
        return tuple(dict.fromkeys([*state.found, *own]))

    def _front(self, state: SearchState) -> tuple[Entry, ...]:
        """Return the Pareto front of the latest strategy that keeps one."""
        return tuple(self.stages[state.stage].strategy.front(state.strategy)) or state.front


def own_strategy(method: Method) -> Beam:
    """Return the beam search that suits a method."""
    return Beam(method.beam_width, method.distance)
