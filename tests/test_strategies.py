"""Strategies: what they keep, in which order, and when a search has nothing left to expand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import pytest
import torch

import fuse
from fuse.search.strategies.base import Strategy
from fuse.types import Candidates, Entry, Evaluation, Ids

Pair = tuple[float, Ids]
"""A loss, and the sequence that has it."""


def evaluated(*pairs: Pair) -> Evaluation:
    """Return an evaluation of these sequences."""
    losses = torch.tensor([loss for loss, _ in pairs])
    terms = {"primary": losses, "other": 2 * losses}
    valid = torch.ones(len(pairs), dtype=torch.bool)
    return Evaluation(Candidates([ids for _, ids in pairs]), losses, terms, valid)


def random_pairs(count: int, generator: torch.Generator) -> list[Pair]:
    """Return sequences of different lengths, many of equal loss; each has always the same one."""
    lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
    rows = {tuple(torch.randint(4, (n,), generator=generator).tolist()) for n in lengths}
    order = torch.randperm(len(rows), generator=generator).tolist()
    rows = sorted(rows)
    return [(float(sum(rows[i]) % 5), rows[i]) for i in order]


def test_leaves_are_left_out_and_nothing_else_changes() -> None:
    found = weighed((9.0, 0.1), (3.0, 0.2), (1.0, 0.5), weights=(1.0, 10.0))
    first, second, third = found.candidates.ids
    candidates = replace(found.candidates, parents=[0, 1, 2], leaves=frozenset([second]))
    growing = replace(found, candidates=candidates).growing()
    assert growing.candidates.ids == [first, third]
    assert growing.candidates.parents == [0, 2]
    assert growing.weights == found.weights
    assert growing.entries() == [found.entries()[0], found.entries()[2]]


def test_the_front_holds_what_nothing_goes_on_from(generator: torch.Generator) -> None:
    """A finished text may be better than all that are expanded."""
    found = weighed((3.0, 0.2), (1.0, 0.1), weights=(1.0, 10.0))
    candidates = replace(found.candidates, leaves=frozenset([(1,)]))
    strategy = fuse.Pareto(population=2)
    growing = replace(found, candidates=candidates).growing()
    state, beam = strategy.select(strategy.init(1), growing, generator)
    assert beam == [(0,)]
    assert [entry.ids for entry in strategy.front(state)] == [(1,)]


def test_what_counts_of_an_evaluation_counts_once() -> None:
    """In its order; not what was refused, and not what has no finite loss."""
    losses = torch.tensor([2.0, torch.inf, 1.0, 2.0, torch.inf])
    terms = {"primary": torch.tensor([2.0, 3.0, 1.0, 2.0, torch.nan]), "other": torch.zeros(5)}
    candidates = Candidates([(1,), (2,), (3,), (1,), (4,)])
    valid = torch.tensor([True, False, True, True, True])
    found = Evaluation(candidates, losses, terms, valid)
    assert found.entries() == [Entry(2.0, (1,)), Entry(1.0, (3,))]
    assert [entry.terms for entry in found.entries()] == [(2.0, 0.0), (1.0, 0.0)]
    assert found.num_non_finite == 1


# --- beam ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 50])
def test_a_beam_keeps_the_best(generator: torch.Generator, width: int) -> None:
    pairs = random_pairs(30, generator)
    strategy = fuse.Beam(width)
    _, beam = strategy.select(strategy.init(), evaluated(*pairs), generator)
    loss = {ids: loss for loss, ids in pairs}
    assert len(beam) == len(set(beam)) == min(width, len(pairs))
    assert [loss[ids] for ids in beam] == sorted(loss.values())[:width]


def test_a_beam_breaks_ties_alike_in_every_order(generator: torch.Generator) -> None:
    pairs = [(1.0, (3, 1)), (1.0, (2,)), (1.0, (3,)), (0.5, (9,)), (1.0, (2, 7))]
    strategy = fuse.Beam(3)
    for order in (pairs, pairs[::-1], pairs[2:] + pairs[:2]):
        _, beam = strategy.select(strategy.init(), evaluated(*order), generator)
        assert beam == [(9,), (2,), (2, 7)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, [(4,), (5,)]),
        (1, [(1,), (4,), (5,)]),
        (2, [(1,), (2,), (4,), (5,)]),
        (9, [(1,), (2,), (4,), (3,)]),
    ],
)
def test_as_many_earlier_entries_compete_again_as_the_buffer_holds(
    generator: torch.Generator, size: int, expected: list[Ids]
) -> None:
    strategy = fuse.Beam(4)
    earlier = evaluated((1.0, (1,)), (2.0, (2,)), (3.0, (3,)))
    later = evaluated((2.5, (4,)), (9.0, (5,)))
    state, _ = strategy.select(strategy.init(size), earlier, generator)
    state, beam = strategy.select(state, later, generator)
    assert beam == expected
    assert len(state.buffer) <= size
    _, again = strategy.select(state, evaluated(), generator)
    assert again == expected[: min(size, 4)]


def test_what_comes_again_is_not_twice_in_the_beam(generator: torch.Generator) -> None:
    strategy = fuse.Beam(3)
    first = evaluated((1.0, (1,)), (2.0, (2,)))
    state, _ = strategy.select(strategy.init(2), first, generator)
    again = evaluated((1.0, (1,)), (3.0, (3,)), (3.0, (3,)))
    assert strategy.select(state, again, generator)[1] == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    "strategy", [fuse.Beam(2), fuse.UniformCost(4), fuse.Anneal(0.0), fuse.Pareto(2)]
)
def test_a_strategys_state_is_a_value(generator: torch.Generator, strategy: Strategy) -> None:
    """The same state and losses give the same answer again."""
    earlier = evaluated((1.0, (1,)), (2.0, (2,)), (3.0, (3,)))
    state, _ = strategy.select(strategy.init(2), earlier, generator)
    later = evaluated((0.5, (4,)), (2.5, (5,)))
    first, second = (strategy.select(state, later, generator) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("strategy", [fuse.Beam(3), fuse.UniformCost(4)])
def test_no_more_candidates_are_kept_of_a_step_than_are_ranked(
    generator: torch.Generator, strategy: Strategy
) -> None:
    """Where a coarse model scores first, so many are scored again precisely."""
    pairs = random_pairs(60, generator)
    state, beam = strategy.select(strategy.init(0), evaluated(*pairs), generator)
    kept = {*beam, *(entry.ids for entry in getattr(state, "waiting", ()))}
    assert len(kept) <= strategy.num_ranked
    assert len(kept) >= strategy.num_ranked - 1 > 1


@pytest.mark.parametrize("kind", [fuse.Beam, fuse.UniformCost])
def test_sizes_below_one_are_refused(kind: type) -> None:
    with pytest.raises(fuse.FuseError, match="=0: expected a whole number from 1"):
        kind(0)


@pytest.mark.parametrize("buffer_size", [0, 1, 5])
def test_in_a_search_the_best_earlier_prompts_are_changed_again(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, buffer_size: int
) -> None:
    """A step's beam holds the `buffer_size` best of what came before wherever those are better."""
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


# --- uniform cost ----------------------------------------------------------------------------


class Reference:
    """Uniform-cost search over all that was ever scored, by a plain list."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: dict[Ids, float] = {}
        self.expanded: list[Ids] = []

    def select(self, pairs: Sequence[Pair]) -> list[Ids]:
        for loss, ids in pairs:
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
    state = strategy.init(3)
    seen: list[Ids] = []
    for count in (8, 0, 5, 20, 0, 0, 9, *[0] * 40):
        pairs = random_pairs(count, generator) if count else []
        state, beam = strategy.select(state, evaluated(*pairs), generator)
        assert beam == reference.select(pairs)
        assert len(state.waiting) <= size
        seen += beam
    assert len(seen) == len(set(seen))  # nothing is expanded twice
    assert not state.waiting
    assert len({len(ids) for ids in seen}) > 1 or size == 1


def test_what_is_not_yet_expanded_waits_beside_prompts_of_other_lengths(
    generator: torch.Generator,
) -> None:
    strategy = fuse.UniformCost(10)
    first = evaluated((1.0, (1,)), (2.0, (2,)), (5.0, (3,)))
    state, beam = strategy.select(strategy.init(), first, generator)
    assert beam == [(1,)]
    second = evaluated((3.0, (1, 1)), (4.0, (1, 2)), (1.0, (1,)))
    state, beam = strategy.select(state, second, generator)
    assert beam == [(2,)]
    for expected in ([(1, 1)], [(1, 2)], [(3,)], [], []):
        state, beam = strategy.select(state, evaluated(), generator)
        assert beam == expected


def test_a_full_frontier_drops_the_dearest(generator: torch.Generator) -> None:
    strategy = fuse.UniformCost(2)
    pairs = [(float(i), (i,)) for i in range(9, 0, -1)]
    state, _ = strategy.select(strategy.init(), evaluated(*pairs), generator)
    assert state.waiting == (Entry(2.0, (2,)), Entry(3.0, (3,)))


class Recorder(Strategy):
    """A strategy that remembers what it was given and what it chose."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.beams: list[Sequence[Ids]] = []
        self.scored: list[list[Pair]] = []

    def init(self, buffer_size: int = 0) -> Any:
        return self.inner.init(buffer_size)

    def select(
        self, state: Any, evaluated: Evaluation, rng: torch.Generator
    ) -> tuple[Any, Sequence[Ids]]:
        state, beam = self.inner.select(state, evaluated, rng)
        self.beams.append(beam)
        self.scored.append([(entry.loss, entry.ids) for entry in evaluated.entries()])
        return state, beam

    @property
    def expanded(self) -> list[Ids]:
        return list(chain.from_iterable(self.beams))

    @property
    def seen(self) -> set[Ids]:
        return {ids for _, ids in chain.from_iterable(self.scored)}


def test_an_empty_frontier_ends_the_search(lm: fuse.CausalLM) -> None:
    """Deletions alone reach every part of a prompt, each once, and no more."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    strategy = Recorder(fuse.UniformCost())
    method = fuse.Random(search_width=40, moves=("delete",))
    result = fuse.search(objective, method, strategy, steps=100, init="A red house stands")
    row = objective.spell("A red house stands")
    masks = range(1, 2 ** len(row))
    parts = [tuple(t for i, t in enumerate(row) if mask >> i & 1) for mask in masks]
    valid = {part for part, ok in zip(parts, objective.valid(parts), strict=True) if ok}
    assert len(strategy.expanded) == len(set(strategy.expanded))
    # the start is expanded as well
    assert set(strategy.expanded) <= valid
    assert strategy.seen <= set(strategy.expanded)
    assert result.steps < 20
    assert result.evaluations == len(strategy.seen)
    assert result.ended == "exhausted"


def test_uniform_cost_returns_to_shorter_prompts(lm: fuse.CausalLM) -> None:
    """AutoDAN under it: a prompt that was passed over is expanded later, and none twice."""
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the snow.")))
    strategy = Recorder(fuse.UniformCost(30))
    fuse.search(objective, fuse.AutoDAN(search_width=10), strategy, steps=25)
    assert all(len(beam) <= 1 for beam in strategy.beams)
    assert len(strategy.expanded) == len(set(strategy.expanded)) > 20
    lengths = [len(ids) for ids in strategy.expanded]
    assert any(later < earlier for earlier, later in pairwise(lengths))
    reference = Reference(30)
    assert [reference.select(pairs) for pairs in strategy.scored] == strategy.beams


# --- simulated annealing ---------------------------------------------------------------------


def test_annealing_takes_a_worse_prompt_as_often_as_its_temperature_says(
    generator: torch.Generator,
) -> None:
    """A rise by 1 at temperature 2: exp(-1/2) = 61 of 100 times; a better one always."""
    strategy = fuse.Anneal(temperature=2.0, cooling=1.0)
    state, beam = strategy.select(strategy.init(), evaluated((1.0, (1,))), generator)
    assert beam == [(1,)]
    worse = evaluated((2.0, (2,)), (5.0, (3,)))
    taken = sum(strategy.select(state, worse, generator)[1] == [(2,)] for _ in range(1000))
    assert 550 < taken < 660
    better = evaluated((0.5, (4,)), (0.7, (5,)))
    assert all(strategy.select(state, better, generator)[1] == [(4,)] for _ in range(50))


def test_annealing_cools_to_greedy_search(generator: torch.Generator) -> None:
    """Each step cools; cold, it holds the best so far, also where nothing counts."""
    strategy = fuse.Anneal(temperature=1e9, cooling=0.5)
    state, _ = strategy.select(strategy.init(), evaluated((1.0, (1,))), generator)
    for _ in range(5):
        before = state
        state, _ = strategy.select(state, evaluated((1.0, (1,))), generator)
        assert state.temperature == before.temperature / 2
    assert strategy.select(state, evaluated((100.0, (2,))), generator)[1] == [(2,)]
    for _ in range(3000):
        state, _ = strategy.select(state, evaluated((1.0, (1,))), generator)
    assert state.temperature == 0.0
    assert strategy.select(state, evaluated((1.01, (2,))), generator)[1] == [(1,)]
    assert strategy.select(state, evaluated(), generator)[1] == [(1,)]


def test_annealing_in_a_search_goes_uphill_while_it_is_hot(lm: fuse.CausalLM) -> None:
    """Cold, it is greedy search with a buffer of one."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    method = fuse.Random(search_width=6, prompt_length=4)

    def beams(strategy: Strategy) -> list[Ids]:
        recorder = Recorder(strategy)
        fuse.search(objective, method, recorder, steps=12)
        return recorder.expanded

    def rises(rows: list[Ids]) -> int:
        losses = objective.evaluate(rows).loss.tolist()
        return sum(later > earlier for earlier, later in pairwise(losses))

    hot, cold = (fuse.Anneal(temperature, 1.0) for temperature in (5.0, 0.0))
    assert rises(beams(hot)) > 2
    assert rises(beams(cold)) == 0
    assert beams(cold) == beams(fuse.Beam(1))


# --- Pareto ----------------------------------------------------------------------------------


def weighed(*terms: tuple[float, float], weights: tuple[float, float]) -> Evaluation:
    """Return an evaluation of sequences (0,), (1,), ... with these losses of two terms."""
    columns = torch.tensor(terms).T
    candidates = Candidates([(i,) for i in range(len(terms))])
    total = torch.tensor(weights) @ columns
    valid = torch.ones(len(terms), dtype=torch.bool)
    names = dict(zip(("primary", "other"), columns, strict=True))
    factors = dict(zip(("primary", "other"), weights, strict=True))
    return Evaluation(candidates, total, names, valid, factors)


def test_each_member_is_the_best_by_its_own_weights(generator: torch.Generator) -> None:
    """With weights 1 and 10, factors 0.1, 1 and 10: by hand."""
    strategy = fuse.Pareto(population=3)
    assert strategy.factors == pytest.approx([0.1, 1.0, 10.0])
    assert fuse.Pareto(population=1).factors == [1.0]
    # sums by factor: (0,) 1.9, 10, 91; (1,) 2.3, 5, 32; (2,) 5.1, 6, 15; (3,) 10.9, 19, 100
    found = weighed((9.0, 0.1), (3.0, 0.2), (1.0, 0.5), (9.0, 1.0), weights=(1.0, 10.0))
    state, beam = strategy.select(strategy.init(1), found, generator)
    assert beam == [(0,), (1,), (2,)]
    assert [entry.ids for entry in strategy.front(state)] == [(1,), (2,), (0,)]
    # A negative weight turns what is better round
    found = weighed((1.0, 1.0), (1.0, 2.0), weights=(1.0, -1.0))
    state, beam = strategy.select(strategy.init(), found, generator)
    assert beam == [entry.ids for entry in state.front] == [(1,)]


def test_members_compete_again_where_the_method_has_a_buffer(generator: torch.Generator) -> None:
    strategy = fuse.Pareto(population=2)
    first = weighed((1.0, 9.0), (9.0, 1.0), weights=(1.0, 1.0))
    later = evaluated((30.0, (7,)))
    for size, expected in ((0, [(7,)]), (1, [(1,), (0,)])):
        state, _ = strategy.select(strategy.init(size), first, generator)
        state, beam = strategy.select(state, later, generator)
        assert beam == expected
        assert {entry.ids for entry in state.front} == {(0,), (1,)}


@pytest.mark.parametrize("most", [3, 1000])
def test_the_front_is_what_no_other_prompt_beats(generator: torch.Generator, most: int) -> None:
    """Over steps, as a plain comparison of all pairs has it; the best by the sum stays."""
    strategy = fuse.Pareto(population=2, front_max_size=most)
    state, seen = strategy.init(1), []
    for number in range(6):
        losses = torch.rand(2, 20, generator=generator)
        rows = [(number, i) for i in range(20)]
        valid = torch.ones(20, dtype=torch.bool)
        terms = {"primary": losses[0], "other": losses[1]}
        found = Evaluation(Candidates(rows), losses.sum(0), terms, valid)
        seen += found.entries()
        state, _ = strategy.select(state, found, generator)
    expected = []
    for one in seen:
        beaten = [o for o in seen if all(map(float.__le__, o.terms, one.terms)) and o is not one]
        expected += [] if beaten else [one]
    assert len(expected) > 3
    assert state.front[0] == min(seen)
    assert set(state.front) <= set(expected)
    assert len(state.front) == min(most, len(expected))


def test_a_search_returns_its_front(lm: fuse.CausalLM, mood: fuse.Classifier) -> None:
    """It holds the best prompt and others: more fluent ones, and ones of a better mood."""
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, mood)
    secondary = fuse.Term(mood, fuse.ClassNLL(1), weight=2.0, adapter=adapter)
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"mood": secondary})
    method = fuse.GCG(search_width=24, prompt_length=5)
    result = fuse.search(objective, method, fuse.Pareto(4), steps=10)
    assert result.front[0].prompt == result.prompt
    assert len(result.front) > 2
    pairs = [tuple(one.terms.values()) for one in result.front]
    for i, own in enumerate(pairs):
        for j, other in enumerate(pairs):
            assert i == j or any(map(float.__lt__, own, other))
    sums = [fluency + 2 * mood_loss for fluency, mood_loss in pairs]
    assert [one.loss for one in result.front] == pytest.approx(sums)
    assert result.front == tuple(sorted(result.front, key=lambda one: one.loss))
    assert fuse.search(objective, method, fuse.Beam(1), steps=1).front == ()


def test_the_front_outlives_a_refinement(lm: fuse.CausalLM) -> None:
    """The strategy of the second method keeps none."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    method = fuse.Random(search_width=4, prompt_length=3, steps=2)
    refine = fuse.Random(search_width=4)
    result = fuse.search(objective, method, fuse.Pareto(2), refine=refine, steps=4)
    assert result.steps == 4
    assert len(result.front) == 1
    assert result.front[0].loss >= result.loss


def test_a_beam_may_be_kept_apart() -> None:
    """By tokens that the one holds and the other does not, wherever they stand."""
    near, moved, far = (1.0, (1, 2, 3)), (2.0, (3, 2, 1)), (3.0, (1, 5, 6))
    for distance, kept in ((0, [near, moved, far]), (2, [near, far]), (5, [near])):
        strategy = fuse.Beam(3, distance)
        state, beam = strategy.select(strategy.init(2), evaluated(near, moved, far), rng())
        assert beam == [ids for _, ids in kept]
        assert [(entry.loss, entry.ids) for entry in state.buffer] == kept[:2]


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
