"""Strategies: what they keep, in which order, and when a search has nothing left to expand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

import fuse
from fuse.strategies import Entry, Strategy
from fuse.types import Ids


def entries(*pairs: tuple[float, Ids]) -> list[Entry]:
    return list(pairs)


def random_entries(count: int, generator: torch.Generator) -> list[Entry]:
    """Sequences of different lengths, many of equal loss; a sequence always has the same one."""
    rows = {tuple(torch.randint(4, (int(n),), generator=generator).tolist()) for n in torch.randint(1, 5, (count,), generator=generator)}
    return [(float(sum(row) % 5), row) for row in sorted(rows, key=lambda _: float(torch.rand(1, generator=generator)))]


# --- beam ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 50])
def test_a_beam_keeps_the_best(generator: torch.Generator, width: int) -> None:
    scored = random_entries(30, generator)
    strategy = fuse.Beam(width)
    _, beam = strategy.select(strategy.init(), scored, 0)
    loss = {ids: loss for loss, ids in scored}
    assert len(beam) == len(set(beam)) == min(width, len(scored))
    assert [loss[ids] for ids in beam] == sorted(loss.values())[:width]


def test_a_beam_breaks_ties_alike_in_every_order() -> None:
    scored = entries((1.0, (3, 1)), (1.0, (2,)), (1.0, (3,)), (0.5, (9,)), (1.0, (2, 7)))
    strategy = fuse.Beam(3)
    beams = {tuple(strategy.select(strategy.init(), order, 0)[1]) for order in (scored, scored[::-1], scored[2:] + scored[:2])}
    assert beams == {((9,), (2,), (2, 7))}


def test_as_many_earlier_entries_compete_again_as_the_buffer_holds() -> None:
    strategy = fuse.Beam(4)
    earlier = entries((1.0, (1,)), (2.0, (2,)), (3.0, (3,)))
    later = entries((2.5, (4,)), (9.0, (5,)))
    for size, expected in ((0, [(4,), (5,)]), (1, [(1,), (4,), (5,)]), (2, [(1,), (2,), (4,), (5,)]), (9, [(1,), (2,), (4,), (3,)])):
        state, _ = strategy.select(strategy.init(), earlier, size)
        state, beam = strategy.select(state, later, size)
        assert beam == expected
        assert len(state) <= size
        _, again = strategy.select(state, [], size)
        assert again == expected[: min(size, 4)]


def test_what_comes_again_is_not_twice_in_the_beam() -> None:
    strategy = fuse.Beam(3)
    state, _ = strategy.select(strategy.init(), entries((1.0, (1,)), (2.0, (2,))), 2)
    assert strategy.select(state, entries((1.0, (1,)), (3.0, (3,)), (3.0, (3,))), 2)[1] == [(1,), (2,), (3,)]


def test_a_strategys_state_is_a_value() -> None:
    """The same state and entries give the same answer again."""
    for strategy in (fuse.Beam(2), fuse.UniformCost(4)):
        state, _ = strategy.select(strategy.init(), entries((1.0, (1,)), (2.0, (2,)), (3.0, (3,))), 2)
        later = entries((0.5, (4,)), (2.5, (5,)))
        first, second = (strategy.select(state, later, 2) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("kind", [fuse.Beam, fuse.UniformCost])
def test_sizes_below_one_are_refused(kind: type) -> None:
    with pytest.raises(fuse.FuseError, match="=0: expected at least 1"):
        kind(0)


@pytest.mark.parametrize("buffer_size", [0, 1, 5])
def test_in_a_search_the_best_earlier_prompts_are_changed_again(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, buffer_size: int
) -> None:
    """The beam of a step holds the `buffer_size` best of what came before wherever those are better."""
    beams: list[list[Ids]] = []
    original = fuse.Random.propose

    def spy(self: Any, state: Any, beam: Sequence[Ids], *rest: Any) -> Any:
        beams.append(list(beam))
        return original(self, state, beam, *rest)

    monkeypatch.setattr(fuse.Random, "propose", spy)
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    method = fuse.Random(search_width=6, buffer_size=buffer_size, prompt_length=3)
    result = fuse.search(objective, method, fuse.Beam(4), steps=12)
    bests = [step.best_loss for step in result.trace]
    leading = [objective.evaluate([beam[0]]).loss.item() for beam in beams[1:]]
    if buffer_size:
        assert leading == pytest.approx(bests[:-1], abs=1e-5)
        assert any(set(a) & set(b) for a, b in pairwise(beams))
    else:
        assert leading != pytest.approx(bests[:-1], abs=1e-5)


# --- uniform cost --------------------------------------------------------------------------------------------------


class Reference:
    """Uniform-cost search over all that was ever scored, by a plain list."""

    def __init__(self, size: int) -> None:
        self.size, self.waiting, self.expanded = size, {}, []  # type: ignore[var-annotated]

    def select(self, scored: Sequence[Entry]) -> list[Ids]:
        for loss, ids in scored:
            if ids not in self.expanded:
                self.waiting[ids] = loss
        if not self.waiting:
            return []
        order = sorted(self.waiting, key=lambda ids: (self.waiting[ids], ids))
        self.expanded.append(order[0])
        self.waiting = {ids: self.waiting[ids] for ids in order[1 : self.size + 1]}
        return order[:1]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_uniform_cost_equals_a_plain_frontier(generator: torch.Generator, size: int) -> None:
    strategy, reference = fuse.UniformCost(size), Reference(size)
    state = strategy.init()
    seen: list[Ids] = []
    for count in (8, 0, 5, 20, 0, 0, 9, *[0] * 40):
        scored = random_entries(count, generator) if count else []
        state, beam = strategy.select(state, scored, 3)
        assert beam == reference.select(scored)
        assert len(state[0]) <= size
        seen += beam
    assert len(seen) == len(set(seen))  # nothing is expanded twice
    assert not state[0]
    assert len({len(ids) for ids in seen}) > 1 or size == 1


def test_what_is_not_yet_expanded_waits_beside_prompts_of_other_lengths() -> None:
    strategy = fuse.UniformCost(10)
    state, beam = strategy.select(strategy.init(), entries((1.0, (1,)), (2.0, (2,)), (5.0, (3,))), 0)
    assert beam == [(1,)]
    state, beam = strategy.select(state, entries((3.0, (1, 1)), (4.0, (1, 2)), (1.0, (1,))), 0)
    assert beam == [(2,)]
    for expected in ([(1, 1)], [(1, 2)], [(3,)], [], []):
        state, beam = strategy.select(state, [], 0)
        assert beam == expected


def test_a_full_frontier_drops_the_dearest() -> None:
    strategy = fuse.UniformCost(2)
    state, _ = strategy.select(strategy.init(), entries(*((float(i), (i,)) for i in range(9, 0, -1))), 0)
    assert state[0] == entries((2.0, (2,)), (3.0, (3,)))


class Recorder(Strategy):
    """A strategy that remembers what it was given and what it chose."""

    def __init__(self, inner: Strategy) -> None:
        self.inner, self.beams, self.scored = inner, [], []  # type: ignore[var-annotated]

    def init(self) -> Any:
        return self.inner.init()

    def select(self, state: Any, scored: Sequence[Entry], buffer_size: int) -> tuple[Any, list[Ids]]:
        state, beam = self.inner.select(state, scored, buffer_size)
        self.beams.append(beam)
        self.scored.append(scored)
        return state, beam


def test_an_empty_frontier_ends_the_search(lm: fuse.CausalLM) -> None:
    """Deletions alone reach every part of a prompt, each once, and no more."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    strategy = Recorder(fuse.UniformCost())
    method = fuse.Random(search_width=40, moves=("delete",))
    result = fuse.search(objective, method, strategy, steps=100, init="A red house stands")
    row = objective.spell("A red house stands")
    parts = [tuple(t for i, t in enumerate(row) if mask >> i & 1) for mask in range(1, 2 ** len(row))]
    valid = {part for part, ok in zip(parts, objective.valid(parts), strict=True) if ok}
    expanded = [ids for beam in strategy.beams for ids in beam]
    assert len(expanded) == len(set(expanded))
    # the start is expanded as well
    assert set(expanded) <= valid
    assert {ids for step in strategy.scored for _, ids in step} <= set(expanded)
    assert result.steps < 20
    assert result.evaluations == len({ids for step in strategy.scored for _, ids in step})


def test_uniform_cost_returns_to_shorter_prompts(lm: fuse.CausalLM) -> None:
    """AutoDAN under it: a prompt that was passed over is expanded later, and none twice."""
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the snow.")))
    strategy = Recorder(fuse.UniformCost(30))
    fuse.search(objective, fuse.AutoDAN(search_width=10), strategy, steps=25)
    expanded = [ids for beam in strategy.beams for ids in beam]
    assert all(len(beam) <= 1 for beam in strategy.beams)
    assert len(expanded) == len(set(expanded)) > 20
    lengths = [len(ids) for ids in expanded]
    assert any(later < earlier for earlier, later in pairwise(lengths))
    reference = Reference(30)
    assert [reference.select(scored) for scored in strategy.scored] == strategy.beams
