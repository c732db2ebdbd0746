"""The laws of every search, as a check to call on a method or a strategy of one's own.

Example::

    check_search(Search(objective, MyMethod(), MyStrategy(), steps=4))
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

from fuse.objective import Objective
from fuse.search import checkpoint
from fuse.search.search import Search
from fuse.search.state import SearchState
from fuse.types import Result, Step

TOLERANCE = 1e-4
"""How far two computations of one loss may be apart."""

Between = Callable[[SearchState], SearchState]
"""What happens to a state between two steps."""


class ContractError(AssertionError):
    """A law is broken; the message says which."""


def check_search(search: Search) -> Result:
    """Run a search twice, and check the laws of searches.

    Run again with the same seed, stopped after each step, written to a file and read again, it
    gives the same trace to the bit, evaluations included; proposing changes no state; the best loss
    never rises; no candidate holds a forbidden token; the loss of the result is that of exactly its
    text; a search ends with a reason.

    Raises:
        ContractError: a law is broken.
        FuseError: as `Search.run`.
    """
    trace, state = _run(search, lambda state: state)
    resumed, end = _run(search, lambda state: _through_a_file(search, state))
    _require(
        _comparable(resumed) == _comparable(trace),
        "the same seed, or a resume, gives another trace",
    )
    ends = [checkpoint.snapshot(_timeless(one)) for one in (end, state)]
    _require(ends[0] == ends[1], "a resumed search ends otherwise")
    _require(bool(state.ended), "the search ended without a reason")
    _check_trace(search.objective, trace)
    result = search.result(state, trace)
    _check_result(search.objective, result)
    return result


def _run(search: Search, between: Between) -> tuple[list[Step], SearchState]:
    """Run a search whose caches are emptied after each step: it depends on its state alone."""
    search.clear()
    state = search.start()
    trace: list[Step] = []
    while not state.ended:
        search.clear()
        state = between(state)
        before = checkpoint.snapshot(state)
        candidates = search.propose(state)
        _require(checkpoint.snapshot(state) == before, "proposing changes the state")
        evaluated = search.evaluate(state, candidates)
        after = search.accept(state, evaluated)
        if after.step > state.step and after.last is not None:
            trace.append(after.last)
        state = after
    return trace, state


def _through_a_file(search: Search, state: SearchState) -> SearchState:
    """Write a state to a file, and read it again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        path.write_bytes(checkpoint.to_bytes({"": state}, 0))
        return checkpoint.read(path, {"": search})[1][""]


def _comparable(trace: list[Step]) -> list[tuple[object, ...]]:
    """Return a trace without its clock."""
    return [astuple(replace(step, seconds=0.0)) for step in trace]


def _timeless(state: SearchState) -> SearchState:
    """Return a state without its clock."""
    last = state.last and replace(state.last, seconds=0.0)
    return replace(state, seconds=0.0, last=last)


def _check_trace(objective: Objective, trace: list[Step]) -> None:
    """Check the laws of a trace."""
    bests = [step.best_loss for step in trace]
    _require(bests == sorted(bests, reverse=True), "the best loss rises")
    for number, step in enumerate(trace, 1):
        _require(step.step == number, f"step {number} is numbered {step.step}")
        _require(step.best_loss <= step.loss, f"step {number}: the best loss is not the best")
        allowed = all(objective.allowed[token] for token in step.free_ids)
        _require(allowed, f"step {number}: {step.prompt!r} holds a forbidden token")
        valid = objective.valid([step.free_ids]) == [True]
        _require(valid, f"step {number}: {step.prompt!r} is not valid")
        loss, _ = objective.evaluate_text(step.prompt)
        right = math.isclose(loss, step.loss, abs_tol=TOLERANCE, rel_tol=TOLERANCE)
        _require(right, f"step {number}: {step.loss} is not the loss of its text, {loss}")


def _check_result(objective: Objective, result: Result) -> None:
    """Check the laws of a result."""
    loss, terms = objective.evaluate_text(result.prompt)
    right = math.isclose(loss, result.loss, abs_tol=TOLERANCE, rel_tol=TOLERANCE)
    _require(right, f"{result.loss} is not the loss of {result.prompt!r}, {loss}")
    _require(set(terms) == set(result.terms), "the result lacks a term")
    total = sum(term.weight * term.loss for term in result.terms.values())
    _require(total == result.loss, "the loss is not the sum of its terms")
    decoded = objective.vocabulary.decode([result.free_ids])
    _require(decoded == [result.prompt], "the ids do not spell the prompt")
    for one in result.front:
        loss, _ = objective.evaluate_text(one.prompt)
        right = math.isclose(loss, one.loss, abs_tol=TOLERANCE, rel_tol=TOLERANCE)
        _require(right, f"{one.loss} is not the loss of {one.prompt!r} in the front, {loss}")
    best = min([step.loss for step in result.trace] + [result.initial_loss])
    _require(result.loss <= best + TOLERANCE * max(1.0, abs(best)), "the result is not the best")


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise ContractError(otherwise)
