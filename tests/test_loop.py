"""The loop: chains of two methods, ends, starts, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT

import fuse
from fuse.guide import Guide
from fuse.methods import Method
from fuse.strategies import Strategy
from fuse.types import Ids, Step

START = "There is a big red house"


@pytest.fixture
def objective(lm: fuse.CausalLM) -> fuse.Objective:
    return fuse.Objective(fuse.Term(lm, fuse.NLL()))


@pytest.fixture
def eliciting(lm: fuse.CausalLM) -> fuse.Objective:
    return fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the")))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CHAINS: dict[str, tuple[Method, Method, Strategy]] = {
    "autodan, gcg": (fuse.AutoDAN(search_width=8, steps=3), fuse.GCG(search_width=12, steps=4), fuse.Beam(2)),
    "autodan, random": (fuse.AutoDAN(search_width=8, steps=3), fuse.Random(search_width=12, steps=4), fuse.UniformCost()),
    "gcg, autodan": (fuse.GCG(search_width=12, steps=3), fuse.AutoDAN(search_width=8, steps=4), fuse.Beam(1)),
    "gcg, pez": (fuse.GCG(search_width=12, prompt_length=4, moves=("swap",), steps=3), fuse.PEZ(lr=0.5, steps=4), fuse.Beam(1)),
    "caption, random": (fuse.Caption(("A red house", "A blue boat by the sea")), fuse.Random(search_width=12, steps=4), fuse.Beam(1)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_second_method_goes_on_from_the_best_of_the_first(objective: fuse.Objective, monkeypatch: pytest.MonkeyPatch, chain: str) -> None:
    method, refine, strategy = CHAINS[chain]
    starts: list[tuple[str, Ids]] = []
    for kind in (type(method), type(refine)):
        original = kind.init

        def spy(self: Any, guide: Guide, start: Ids, generator: torch.Generator, original: Any = original) -> Any:
            starts.append((type(self).__name__.lower(), start))
            return original(self, guide, start, generator)

        monkeypatch.setattr(kind, "init", spy)
    result = fuse.search(objective, method, strategy, refine=refine, generator=seeded())
    names = chain.split(", ")
    # one trace: the steps are numbered on, and each tells its method
    assert [step.step for step in result.trace] == list(range(1, len(result.trace) + 1))
    told = [step.method for step in result.trace]
    assert told == sorted(told, key=names.index)
    assert set(told) == set(names)
    assert told.count(names[0]) <= method.steps
    assert told.count(names[1]) <= refine.steps
    # the second starts from the best prompt of the first
    first = [step for step in result.trace if step.method == names[0]]
    best = min(first, key=lambda step: (step.loss, step.free_ids))
    assert starts == [(names[0], ()), (names[1], best.free_ids)]
    # the best loss never rises over the chain, and neither do counts and the clock fall
    bests = [step.best_loss for step in result.trace]
    assert bests == sorted(bests, reverse=True)
    for of in ("evaluations", "seconds"):
        values = [getattr(step, of) for step in result.trace]
        assert values == sorted(values)
    assert result.loss == pytest.approx(bests[-1], abs=1e-4)
    assert result.loss <= best.loss + 1e-4


@pytest.mark.parametrize(("steps", "expected"), [(2, (2, 0)), (3, (3, 0)), (5, (3, 2)), (20, (3, 17)), (None, (3, 4))])
def test_two_methods_share_one_budget(objective: fuse.Objective, steps: int | None, expected: tuple[int, int]) -> None:
    """The first makes its own number of steps at most; the second has the rest, which may be more than its own number."""
    refine = fuse.GCG(search_width=6, steps=4)
    result = fuse.search(objective, fuse.AutoDAN(search_width=4, steps=3), fuse.Beam(1), refine=refine, steps=steps, init="A red")
    told = [step.method for step in result.trace]
    assert (told.count("autodan"), told.count("gcg")) == expected
    assert result.steps == sum(expected)


def test_a_method_that_ends_early_leaves_its_steps_to_the_second(objective: fuse.Objective) -> None:
    caption = fuse.Caption(("A red house", "A blue boat"), steps=5)
    result = fuse.search(objective, caption, fuse.Beam(1), refine=fuse.Random(search_width=6), steps=6)
    assert [step.method for step in result.trace] == ["caption"] + ["random"] * 5


def test_the_strategy_is_the_first_methods_and_the_second_has_its_own(objective: fuse.Objective) -> None:
    """So that one which follows a prompt of its own can refine what any strategy found."""
    with pytest.raises(fuse.FuseError, match=r"method=pez.*strategy=greedy"):
        fuse.search(objective, fuse.PEZ(), fuse.Beam(2))
    for strategy in (fuse.Beam(2), fuse.UniformCost()):
        method = fuse.AutoDAN(search_width=8)
        result = fuse.search(objective, method, strategy, refine=fuse.PEZ(lr=0.5, steps=20), init="A red", stop_loss=-1.0)
        assert {step.method for step in result.trace} == {"autodan", "pez"}


@pytest.mark.parametrize("method", [fuse.AutoDAN(search_width=16), fuse.GCG(search_width=8), fuse.Random(search_width=8), fuse.PEZ(lr=0.5)])
def test_without_a_strategy_the_beam_is_as_wide_as_suits_the_method(objective: fuse.Objective, method: Method) -> None:
    given = fuse.search(objective, method, fuse.Beam(method.beam_width), steps=4, generator=seeded())
    left_out = fuse.search(objective, method, steps=4, generator=seeded())
    assert [step.free_ids for step in left_out.trace] == [step.free_ids for step in given.trace]


def test_refining_goes_on_where_the_first_method_stopped(objective: fuse.Objective) -> None:
    """The first steps are those of the first method alone."""
    method = fuse.AutoDAN(search_width=8, steps=3)
    alone = fuse.search(objective, method, fuse.Beam(2), generator=seeded())
    chain = fuse.search(objective, method, fuse.Beam(2), refine=fuse.GCG(search_width=8), steps=6, generator=seeded())
    assert [(s.free_ids, s.loss) for s in chain.trace[:3]] == [(s.free_ids, s.loss) for s in alone.trace]
    assert chain.loss <= alone.loss + 1e-5
    assert chain.initial_loss == alone.initial_loss


@pytest.mark.parametrize("strategy", [fuse.Beam(1), fuse.Beam(3), fuse.UniformCost()])
def test_a_search_stops_at_the_wanted_loss(objective: fuse.Objective, strategy: Strategy) -> None:
    method = fuse.Random(search_width=20, prompt_length=3)
    whole = fuse.search(objective, method, strategy, steps=8, generator=seeded())
    bests = [step.best_loss for step in whole.trace]
    assert bests[-1] < bests[0]
    wanted = (bests[0] + bests[-1]) / 2
    result = fuse.search(objective, method, strategy, steps=8, stop_loss=wanted, generator=seeded())
    assert [step.free_ids for step in result.trace] == [step.free_ids for step in whole.trace][: len(result.trace)]
    assert result.trace[-1].best_loss <= wanted
    assert all(step.best_loss > wanted for step in result.trace[:-1])
    never = fuse.search(objective, method, strategy, steps=8, stop_loss=-1.0, generator=seeded())
    assert len(never.trace) == len(whole.trace)


def test_a_search_that_stops_does_not_go_on_to_the_second_method(objective: fuse.Objective) -> None:
    method, refine = fuse.AutoDAN(search_width=8, steps=3), fuse.GCG(search_width=8)
    result = fuse.search(objective, method, fuse.Beam(1), refine=refine, stop_loss=1000.0)
    assert [step.method for step in result.trace] == ["autodan"]


def test_a_start_at_the_wanted_loss_needs_no_step(objective: fuse.Objective) -> None:
    loss = objective.evaluate_text(START)[0]
    result = fuse.search(objective, fuse.GCG(search_width=8), fuse.Beam(1), steps=5, init=START, stop_loss=loss + 0.01)
    assert (result.prompt, result.steps) == (START, 0)


def test_a_search_stops_when_the_label_is_said(eliciting: fuse.Objective) -> None:
    method = fuse.GCG(search_width=24, prompt_length=4)
    result = fuse.search(eliciting, method, fuse.Beam(2), steps=40, stop_at_label=True, generator=seeded())
    assert 1 < result.steps < 40
    assert eliciting.says_label([result.free_ids]) == [True]
    best: tuple[float, Ids] = (float("inf"), ())
    for step in result.trace[:-1]:
        best = min(best, (step.loss, step.free_ids))
        assert eliciting.says_label([best[1]]) == [False]
    whole = fuse.search(eliciting, method, fuse.Beam(2), steps=result.steps + 2, generator=seeded())
    assert whole.steps == result.steps + 2


def test_to_stop_at_a_label_there_must_be_one(objective: fuse.Objective) -> None:
    with pytest.raises(fuse.FuseError, match=r"stop_at_label=true.*label=TEXT"):
        fuse.search(objective, fuse.GCG(), fuse.Beam(1), stop_at_label=True)


@pytest.mark.parametrize("method", [fuse.AutoDAN(search_width=8), fuse.GCG(search_width=8), fuse.Random(search_width=8)])
def test_the_starting_text_competes(objective: fuse.Objective, method: Method) -> None:
    loss = objective.evaluate_text(START)[0]
    none = fuse.search(objective, method, fuse.Beam(1), steps=0, init=START)
    assert (none.prompt, none.loss, none.initial_loss, none.trace) == (START, loss, pytest.approx(loss, abs=1e-5), ())
    some = fuse.search(objective, method, fuse.Beam(1), steps=2, init=START)
    assert some.loss <= loss + 1e-5
    assert all(step.best_loss <= loss + 1e-5 for step in some.trace)
    start = objective.spell(START)
    shared = [sum(a == b for a, b in zip(step.free_ids, start, strict=False)) for step in some.trace]
    assert max(shared) >= 2


def test_a_start_that_cannot_be_used_is_refused(objective: fuse.Objective) -> None:
    for text in ("a house " * 200, "naïve", "a  house"):
        with pytest.raises(fuse.FuseError, match="init="):
            fuse.search(objective, fuse.GCG(), fuse.Beam(1), steps=1, init=text)


def test_no_steps_and_no_start_find_nothing(objective: fuse.Objective) -> None:
    with pytest.raises(fuse.FuseError, match="steps=0: nothing was found"):
        fuse.search(objective, fuse.AutoDAN(), fuse.Beam(1), steps=0)


def test_only_different_candidates_are_counted(lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    asked: list[Ids] = []
    original = fuse.Random.propose

    def spy(self: Any, *arguments: Any) -> Any:
        state, candidates = original(self, *arguments)
        asked.extend(candidates)
        return state, candidates

    monkeypatch.setattr(fuse.Random, "propose", spy)
    method = fuse.Random(search_width=16, moves=("delete",), buffer_size=4)  # from few texts: many come again
    result = fuse.search(objective, method, fuse.Beam(4), steps=10, init=START)
    different = {objective.spell(START), *asked}
    assert len(asked) > len(different)
    assert result.evaluations == sum(objective.valid(list(different)))
    assert result.trace[-1].evaluations == result.evaluations
    again = fuse.search(objective, method, fuse.Beam(4), steps=10, init=START)
    assert again.prompt == result.prompt
    assert again.evaluations <= 3  # what was scored is remembered


def test_what_was_scored_long_ago_is_forgotten(lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memo stays small, and what fell out of it is scored again alike."""
    monkeypatch.setattr("fuse.objective.MEMO", 3)
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    rows = [objective.spell(text) for text in ("A red house", "A cup", "A boat", "There is a key", "Anna")]
    first = objective.evaluate(rows).loss
    assert len(objective._scored) == 3
    torch.testing.assert_close(objective.evaluate(rows).loss, first, atol=1e-5, rtol=0)
    assert objective.evaluations == 7


def test_every_step_is_told_once(objective: fuse.Objective) -> None:
    told: list[Step] = []
    method, refine = fuse.AutoDAN(search_width=4, steps=2), fuse.GCG(search_width=4)
    result = fuse.search(objective, method, fuse.Beam(2), refine=refine, steps=5, on_step=told.append)
    assert tuple(told) == result.trace
    assert len(told) == 5


class Scripted(Method):
    """Proposes what it is told, step by step; None ends the search."""

    steps, prompt_length, buffer_size = 9, 1, 1

    def __init__(self, *script: list[Ids] | None) -> None:
        self.script = script

    def propose(self, state: int | None, beam: Any, guide: Guide, generator: torch.Generator) -> tuple[int, list[Ids] | None]:
        return (state or 0) + 1, self.script[state or 0]


def test_a_step_without_candidates_is_no_end_and_no_record(objective: fuse.Objective) -> None:
    """Nor is one whose candidates are all refused."""
    house, cup = objective.spell("A red house"), objective.spell("A cup")
    broken = tuple(i for letter in "house" for i in objective.vocabulary.encode([letter])[0][0])
    result = fuse.search(objective, Scripted([house], [], [broken], [broken, cup], None), fuse.Beam(1), init=START)
    assert [step.free_ids for step in result.trace] == [house, cup]
    assert [step.step for step in result.trace] == [1, 2]
    assert all(step.loss < float("inf") for step in result.trace)


def test_a_method_of_ones_own_is_told_by_its_class(objective: fuse.Objective) -> None:
    result = fuse.search(objective, Scripted([objective.spell("A cup")], None), fuse.Beam(1), init=START)
    assert {step.method for step in result.trace} == {"Scripted"}


def searches(lm: fuse.CausalLM, clip: fuse.CLIP, method: Method, **options: Any) -> list[fuse.Task]:
    """Three searches for pictures, over the same models."""
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, clip)
    tasks = []
    for name in ("house", "boat", "tent"):
        (image,) = clip.embed_images([fuse.open_image(ROOT / f"images/{name}.png")])
        term = fuse.Term(clip, fuse.CosineDistance(image), weight=10, adapter=adapter)
        tasks.append(fuse.Task(fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": term}), method, steps=4, **options))
    return tasks


@pytest.mark.parametrize("method", [fuse.AutoDAN(search_width=32), fuse.GCG(search_width=24)], ids=["autodan", "gcg"])
def test_searches_side_by_side_find_what_they_find_alone(
    lm: fuse.CausalLM, clip: fuse.CLIP, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = lm.network.forward
    monkeypatch.setattr(lm.network, "forward", lambda *a, **k: (passes.append(1), forward(*a, **k))[1])
    alone = [task.search() for task in searches(lm, clip, method)]
    count = len(passes)
    together = fuse.search_together(searches(lm, clip, method))
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, fuse.Result)
        assert [step.free_ids for step in one.trace] == [step.free_ids for step in other.trace]
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
    assert len({result.prompt for result in alone}) == 3
    assert len(passes) - count < 0.8 * count


def test_one_of_several_searches_may_fail_or_end_early(lm: fuse.CausalLM, clip: fuse.CLIP) -> None:
    first, second, third = searches(lm, clip, fuse.AutoDAN(search_width=32))
    found = fuse.search_together([replace(first, init="house" * 200), replace(second, steps=1), third])
    assert isinstance(found[0], fuse.FuseError)
    assert "init=" in str(found[0])
    assert [len(result.trace) for result in found[1:] if isinstance(result, fuse.Result)] == [1, 4]
    assert isinstance(found[2], fuse.Result)
    assert found[2].prompt == third.search().prompt
    assert fuse.search_together([]) == []
