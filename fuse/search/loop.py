"""The loop: propose, score, select, for one search or for several side by side."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch

from fuse.objective import Objective, ObjectiveGroup
from fuse.search.methods.base import Method
from fuse.search.screening import Probe
from fuse.search.search import Search
from fuse.search.state import SearchState
from fuse.search.strategies.base import Strategy
from fuse.types import Candidates, Evaluation, Result, Step

log = logging.getLogger(__name__)
T = TypeVar("T")


def search(
    objective: Objective,
    method: Method,
    strategy: Strategy | None = None,
    *,
    refine: Method | None = None,
    steps: int | None = None,
    init: str | Sequence[str] = "",
    stop_loss: float | None = None,
    stop_at_label: bool = False,
    probe: Probe | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[Step], None] | None = None,
    time_limit: float | None = None,
    max_evaluations: int | None = None,
) -> Result:
    """Find a prompt of low loss. The arguments are those of `Search`.

    Returns:
        The best prompt over all steps, the starting text included, scored anew from its text alone.

    Raises:
        FuseError: a starting text or a length that some model cannot take; a method that does not
            go with the strategy; `stop_at_label` without a label; nothing was found.
    """
    return Search(
        objective,
        method,
        strategy,
        refine,
        steps,
        init,
        stop_loss,
        stop_at_label,
        probe,
        generator,
        on_step,
        time_limit,
        max_evaluations,
    ).run()


def search_together(searches: Sequence[Search]) -> list[Result | Exception]:
    """Run searches side by side.

    Those over the same models share the forward passes in which these read the beams and score the
    candidates.

    Returns:
        What each search finds alone, but for rounding, or the error that it ends with.
    """
    running = SideBySide(searches)
    while running.active:
        running.step()
    return running.results()


@dataclass
class Lane:
    """One of several searches: where it stands, its trace, and its error if it has failed."""

    search: Search
    state: SearchState | None = None
    trace: list[Step] = field(default_factory=list)
    error: Exception | None = None

    @property
    def active(self) -> bool:
        """Whether the search goes on."""
        return self.error is None and (self.state is None or not self.state.ended)

    def attempt(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Call a function; an error of whatever kind ends this search alone."""
        try:
            return function(*arguments)
        except Exception as error:
            log.debug("a search has failed", exc_info=True)
            self.error = error
            return None


class SideBySide:
    """Searches that take their steps together.

    Args:
        searches: the searches.
        states: where each goes on; None for its start.
        traces: the steps that each has made already.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        states: Sequence[SearchState | None] = (),
        traces: Sequence[Sequence[Step]] = (),
    ) -> None:
        self.lanes = [Lane(one) for one in searches]
        for lane, state in zip(self.lanes, states or [None] * len(self.lanes), strict=True):
            lane.state = state
        for lane, trace in zip(self.lanes, traces or [()] * len(self.lanes), strict=True):
            lane.trace += trace
        for lane in self.lanes:
            if lane.state is None:
                lane.state = lane.attempt(lane.search.start)

    @property
    def active(self) -> list[Lane]:
        """The searches that go on."""
        return [lane for lane in self.lanes if lane.active]

    def step(self) -> None:
        """Make one step of every search that goes on."""
        lanes, before = self.active, _totals(self.active)
        self._prefill(lanes)
        proposed = []
        for lane in self.active:
            candidates = lane.attempt(partial(lane.search.propose, prefill=False), lane.state)
            if candidates is not None:
                proposed.append((lane, candidates))
        found = self._evaluate(proposed)
        shares = _shares(lanes, before)
        for lane, evaluated in found:
            evaluated = replace(evaluated, operations=shares[id(lane)])
            state = lane.attempt(lane.search.accept, lane.state, evaluated)
            if state is not None and lane.state is not None:
                self._advance(lane, state)

    def clear(self) -> None:
        """Forget what was computed of any text: the next steps depend on the states alone."""
        for lane in self.lanes:
            lane.search.clear()

    def results(self) -> list[Result | Exception]:
        """Return what each search has found so far, or the error that it ended with."""
        found: list[Result | Exception] = []
        for lane in self.lanes:
            result = None
            if lane.error is None:
                result = lane.attempt(lane.search.result, lane.state, lane.trace)
            found.append(result if result is not None else lane.error or RuntimeError("no result"))
        return found

    def _prefill(self, lanes: Sequence[Lane]) -> None:
        """Read the beams together."""
        beams = [lane.state.beam for lane in lanes if lane.state is not None]
        try:
            ObjectiveGroup([lane.search.objective for lane in lanes]).prefill(beams)
        except Exception:
            for lane, beam in zip(lanes, beams, strict=True):
                lane.attempt(lane.search.objective.prefill, beam)

    def _evaluate(
        self, proposed: Sequence[tuple[Lane, Candidates]]
    ) -> list[tuple[Lane, Evaluation]]:
        """Score the candidates of all searches together; each alone, where that fails, to find the
        one at fault.
        """
        if not proposed:
            return []
        group = ObjectiveGroup([lane.search.objective for lane, _ in proposed])
        candidates = [own for _, own in proposed]
        states = [lane.state for lane, _ in proposed if lane.state is not None]
        ranked = [
            lane.search.stages[state.stage].strategy.num_ranked
            for (lane, _), state in zip(proposed, states, strict=True)
        ]
        try:
            known = [
                state.scored.known(own.ids) for state, own in zip(states, candidates, strict=True)
            ]
            found = group.evaluate(candidates, known, ranked)
            return list(zip([lane for lane, _ in proposed], found, strict=True))
        except Exception:
            alone = []
            for lane, own in proposed:
                evaluated = lane.attempt(lane.search.evaluate, lane.state, own)
                if evaluated is not None:
                    alone.append((lane, evaluated))
            return alone

    def _advance(self, lane: Lane, state: SearchState) -> None:
        """Put a search into its next state, and report a step that is new in the trace."""
        before = lane.state.step if lane.state is not None else 0
        lane.state = state
        if state.last is not None and state.step > before:
            lane.trace.append(state.last)
            if lane.search.on_step is not None:
                lane.attempt(lane.search.on_step, state.last)


def _totals(lanes: Sequence[Lane]) -> dict[int, int]:
    """Return how many operations each model of some searches has made, by the counter's `id`."""
    found = {}
    for lane in lanes:
        for one in lane.search.counters:
            found[id(one)] = one.total
    return found


def _shares(lanes: Sequence[Lane], before: Mapping[int, int]) -> dict[int, int]:
    """Return how many operations each search is charged with, by its `id`: those that a model has
    made since, in equal parts for all that ask it.
    """
    sharing = Counter(id(one) for lane in lanes for one in lane.search.counters)
    found = {}
    for lane in lanes:
        own = lane.search.counters
        found[id(lane)] = sum((one.total - before[id(one)]) // sharing[id(one)] for one in own)
    return found
