"""The search: chains of two methods, ends, starts, what is counted, and searches side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT

import fuse
from fuse.guide import Guide
from fuse.search import checkpoint
from fuse.search.methods.base import Method
from fuse.search.state import ScoredLog
from fuse.search.strategies.base import Strategy
from fuse.types import Candidates, Entry, Evaluation, Ids, Step

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
    "autodan, gcg": (
        fuse.AutoDAN(search_width=8, steps=3),
        fuse.GCG(search_width=12, steps=4),
        fuse.Beam(2),
    ),
    "autodan, random": (
        fuse.AutoDAN(search_width=8, steps=3),
        fuse.Random(search_width=12, steps=4),
        fuse.UniformCost(),
    ),
    "gcg, autodan": (
        fuse.GCG(search_width=12, steps=3),
        fuse.AutoDAN(search_width=8, steps=4),
        fuse.Beam(1),
    ),
    "gcg, pez": (
        fuse.GCG(search_width=12, prompt_length=4, moves=("swap",), steps=3),
        fuse.PEZ(lr=0.5, steps=4),
        fuse.Beam(1),
    ),
    "caption, random": (
        fuse.Caption(("A red house", "A blue boat by the sea")),
        fuse.Random(search_width=12, steps=4),
        fuse.Beam(1),
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_second_method_goes_on_from_the_best_of_the_first(
    objective: fuse.Objective, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    method, refine, strategy = CHAINS[chain]
    starts: list[tuple[str, Ids]] = []
    for kind in (type(method), type(refine)):
        original = kind.init

        def spy(
            self: Any,
            guide: Guide,
            start: Ids,
            generator: torch.Generator,
            original: Any = original,
        ) -> Any:
            starts.append((type(self).__name__.lower(), start))
            return original(self, guide, start, generator)

        monkeypatch.setattr(kind, "init", spy)
    result = fuse.search(objective, method, strategy, refine=refine, generator=seeded())
    names = chain.split(", ")
    # one trace: the steps are numbered on, and each names its method
    assert [step.step for step in result.trace] == list(range(1, len(result.trace) + 1))
    methods = [step.method for step in result.trace]
    assert methods == sorted(methods, key=names.index)
    assert set(methods) == {name for name in names if name != "caption"}
    assert methods.count(names[0]) <= method.steps
    assert methods.count(names[1]) <= refine.steps
    # the second starts from the best prompt of the first; captions are a start with no steps
    if names[0] == "caption":
        entries = objective.evaluate([objective.spell(text) for text in method.texts]).entries()
    else:
        steps = [step for step in result.trace if step.method == names[0]]
        entries = [Entry(step.loss, step.free_ids) for step in steps]
    best = min(entries)
    assert starts == [(names[0], ()), (names[1], best.ids)]
    # the best loss never rises over the chain, and neither do counts and the clock fall
    bests = [step.best_loss for step in result.trace]
    assert bests == sorted(bests, reverse=True)
    for of in ("evaluations", "seconds"):
        values = [getattr(step, of) for step in result.trace]
        assert values == sorted(values)
    assert result.loss == pytest.approx(bests[-1], abs=1e-4)
    assert result.loss <= best.loss + 1e-4


@pytest.mark.parametrize(
    ("steps", "expected"), [(2, (2, 0)), (3, (3, 0)), (5, (3, 2)), (20, (3, 17)), (None, (3, 4))]
)
def test_two_methods_share_one_budget(
    objective: fuse.Objective, steps: int | None, expected: tuple[int, int]
) -> None:
    """The first makes its own number of steps at most; the second has the rest, which may be more
    than its own number.
    """
    refine = fuse.GCG(search_width=6, steps=4)
    result = fuse.search(
        objective,
        fuse.AutoDAN(search_width=4, steps=3),
        fuse.Beam(1),
        refine=refine,
        steps=steps,
        init="A red",
    )
    methods = [step.method for step in result.trace]
    assert (methods.count("autodan"), methods.count("gcg")) == expected
    assert result.steps == sum(expected)


def test_a_method_that_ends_early_leaves_its_steps_to_the_second(objective: fuse.Objective) -> None:
    short = Scripted([objective.spell("A cup")], None)
    result = fuse.search(
        objective, short, fuse.Beam(1), refine=fuse.Random(search_width=6), steps=6
    )
    assert [step.method for step in result.trace] == ["Scripted"] + ["random"] * 5


def test_captions_are_a_start_with_no_steps(objective: fuse.Objective) -> None:
    caption = fuse.Caption(("A red house", "A blue boat"))
    alone = fuse.search(objective, caption)
    entries = objective.evaluate([objective.spell(text) for text in caption.texts]).entries()
    assert (alone.free_ids, alone.steps, alone.ended) == (min(entries).ids, 0, "steps")
    assert alone.initial_loss == pytest.approx(min(entries).loss)
    assert alone.evaluations == 2
    refined = fuse.search(objective, caption, refine=fuse.Random(search_width=6), steps=3)
    assert [step.method for step in refined.trace] == ["random"] * 3


def test_the_strategy_is_the_first_methods_and_the_second_has_its_own(
    objective: fuse.Objective,
) -> None:
    """So that one which follows a prompt of its own can refine what any strategy found."""
    with pytest.raises(fuse.FuseError, match=r"method=pez.*strategy=greedy"):
        fuse.search(objective, fuse.PEZ(), fuse.Beam(2))
    for strategy in (fuse.Beam(2), fuse.UniformCost()):
        method = fuse.AutoDAN(search_width=8)
        result = fuse.search(
            objective,
            method,
            strategy,
            refine=fuse.PEZ(lr=0.5, steps=20),
            init="A red",
            stop_loss=-1.0,
        )
        assert {step.method for step in result.trace} == {"autodan", "pez"}


@pytest.mark.parametrize(
    "method",
    [
        fuse.AutoDAN(search_width=16),
        fuse.GCG(search_width=8),
        fuse.Random(search_width=8),
        fuse.PEZ(lr=0.5),
    ],
)
def test_without_a_strategy_the_beam_is_as_wide_as_suits_the_method(
    objective: fuse.Objective, method: Method
) -> None:
    given = fuse.search(
        objective, method, fuse.Beam(method.beam_width), steps=4, generator=seeded()
    )
    left_out = fuse.search(objective, method, steps=4, generator=seeded())
    assert [step.free_ids for step in left_out.trace] == [step.free_ids for step in given.trace]


def test_refining_goes_on_where_the_first_method_stopped(objective: fuse.Objective) -> None:
    """The first steps are those of the first method alone."""
    method = fuse.AutoDAN(search_width=8, steps=3)
    alone = fuse.search(objective, method, fuse.Beam(2), generator=seeded())
    chain = fuse.search(
        objective,
        method,
        fuse.Beam(2),
        refine=fuse.GCG(search_width=8),
        steps=6,
        generator=seeded(),
    )
    assert [(s.free_ids, s.loss) for s in chain.trace[:3]] == [
        (s.free_ids, s.loss) for s in alone.trace
    ]
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
    assert [step.free_ids for step in result.trace] == [step.free_ids for step in whole.trace][
        : len(result.trace)
    ]
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
    result = fuse.search(
        objective,
        fuse.GCG(search_width=8),
        fuse.Beam(1),
        steps=5,
        init=START,
        stop_loss=loss + 0.01,
    )
    assert (result.prompt, result.steps) == (START, 0)


def test_a_search_stops_when_the_label_is_said(eliciting: fuse.Objective) -> None:
    method = fuse.GCG(search_width=24, prompt_length=4)
    result = fuse.search(
        eliciting, method, fuse.Beam(2), steps=40, stop_at_label=True, generator=seeded()
    )
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


@pytest.mark.parametrize(
    "method", [fuse.AutoDAN(search_width=8), fuse.GCG(search_width=8), fuse.Random(search_width=8)]
)
def test_the_starting_text_competes(objective: fuse.Objective, method: Method) -> None:
    loss = objective.evaluate_text(START)[0]
    none = fuse.search(objective, method, fuse.Beam(1), steps=0, init=START)
    assert (none.prompt, none.loss, none.initial_loss, none.trace) == (
        START,
        loss,
        pytest.approx(loss, abs=1e-5),
        (),
    )
    some = fuse.search(objective, method, fuse.Beam(1), steps=2, init=START)
    assert some.loss <= loss + 1e-5
    assert all(step.best_loss <= loss + 1e-5 for step in some.trace)
    start = objective.spell(START)
    shared = [
        sum(a == b for a, b in zip(step.free_ids, start, strict=False)) for step in some.trace
    ]
    assert max(shared) >= 2


def test_a_start_that_cannot_be_used_is_refused(objective: fuse.Objective) -> None:
    for text in ("a house " * 200, "naïve", "a  house"):
        with pytest.raises(fuse.FuseError, match="init="):
            fuse.search(objective, fuse.GCG(), fuse.Beam(1), steps=1, init=text)


def test_no_steps_and_no_start_find_nothing(objective: fuse.Objective) -> None:
    with pytest.raises(fuse.FuseError, match="steps=0: nothing was found"):
        fuse.search(objective, fuse.AutoDAN(), fuse.Beam(1), steps=0)


def test_only_different_candidates_are_counted(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    asked: list[Ids] = []
    original = fuse.Random.propose

    def spy(self: Any, *arguments: Any) -> Any:
        candidates = original(self, *arguments)
        asked.extend(candidates.ids if candidates is not None else ())
        return candidates

    monkeypatch.setattr(fuse.Random, "propose", spy)
    method = fuse.Random(
        search_width=16, moves=("delete",), buffer_size=4
    )  # from few texts: many come again
    result = fuse.search(objective, method, fuse.Beam(4), steps=10, init=START)
    different = {objective.spell(START), *asked}
    assert len(asked) + 1 == len(different), "nothing is proposed twice"
    assert result.evaluations == sum(objective.valid(list(different)))
    assert result.trace[-1].evaluations == result.evaluations
    again = fuse.search(objective, method, fuse.Beam(4), steps=10, init=START)
    assert again.prompt == result.prompt
    assert again.evaluations == result.evaluations, "each search counts its own"


def test_two_searches_on_one_objective_count_for_themselves(objective: fuse.Objective) -> None:
    def searches() -> list[fuse.Search]:
        return [
            fuse.Search(
                objective, fuse.Random(search_width=8), steps=steps, generator=seeded(steps)
            )
            for steps in (3, 5)
        ]

    alone = [search.run() for search in searches()]
    together = fuse.search_together(searches())
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, fuse.Result)
        assert (one.evaluations, one.prompt) == (other.evaluations, other.prompt)


def test_the_same_search_run_twice_gives_the_same_result(objective: fuse.Objective) -> None:
    search = fuse.Search(objective, fuse.GCG(search_width=8), steps=3, generator=seeded(7))
    first, second = search.run(), search.run()
    assert [step.free_ids for step in first.trace] == [step.free_ids for step in second.trace]
    other = fuse.search(objective, fuse.GCG(search_width=8), steps=3, generator=seeded(8))
    assert [step.free_ids for step in first.trace] != [step.free_ids for step in other.trace]


def test_what_was_scored_long_ago_is_forgotten(
    objective: fuse.Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log stays small, and what fell out of it is scored again with the same loss."""
    method = fuse.Random(search_width=16, moves=("delete",), buffer_size=4)
    options = {"steps": 6, "init": START, "generator": seeded()}
    whole = fuse.search(objective, method, fuse.Beam(4), **options)
    monkeypatch.setattr("fuse.search.state.MAX_MEMO_BYTES", 2_000)
    search = fuse.Search(objective, method, fuse.Beam(4), **options)
    state, sizes = search.start(), []
    while not state.ended:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
        sizes.append(len(state.scored))
    assert state.best is not None
    assert state.best.ids == whole.free_ids
    assert state.evaluations > whole.evaluations
    assert max(sizes) < whole.evaluations


def test_a_log_is_a_value() -> None:
    empty = ScoredLog()
    one = empty.extended([(1,)], [(0.5,)])
    two = one.extended([(2,)], [(1.5,)])
    other = one.extended([(3,)], [(2.5,)])
    assert [dict(log) for log in (empty, one)] == [{}, {(1,): (0.5,)}]
    assert (dict(two), dict(other)) == (
        {(1,): (0.5,), (2,): (1.5,)},
        {(1,): (0.5,), (3,): (2.5,)},
    )
    assert (2,) not in one and (2,) not in other and len(two) == 2
    again = ScoredLog.from_tensors(two.tensors())
    assert list(again.items()) == list(two.items())
    assert len(ScoredLog.from_tensors(empty.tensors())) == 0


def test_every_step_is_reported_once(objective: fuse.Objective) -> None:
    seen: list[Step] = []
    method, refine = fuse.AutoDAN(search_width=4, steps=2), fuse.GCG(search_width=4)
    result = fuse.search(
        objective, method, fuse.Beam(2), refine=refine, steps=5, on_step=seen.append
    )
    assert tuple(seen) == result.trace
    assert len(seen) == 5


class Scripted(Method):
    """Proposes what it is told, step by step; None ends the search."""

    steps, prompt_length, buffer_size = 9, 1, 1

    def __init__(self, *script: list[Ids] | None) -> None:
        self.script = script

    def propose(
        self, state: int | None, beam: Any, guide: Guide, rng: torch.Generator
    ) -> Candidates | None:
        rows = self.script[state or 0]
        return None if rows is None else Candidates(rows, state=(state or 0) + 1)


def test_a_step_without_candidates_is_no_end_and_no_record(objective: fuse.Objective) -> None:
    """Nor is one whose candidates are all refused."""
    house, cup = objective.spell("A red house"), objective.spell("A cup")
    broken = tuple(i for letter in "house" for i in objective.vocabulary.encode([letter])[0][0])
    result = fuse.search(
        objective, Scripted([house], [], [broken], [broken, cup], None), fuse.Beam(1), init=START
    )
    assert [step.free_ids for step in result.trace] == [house, cup]
    assert [step.step for step in result.trace] == [1, 2]
    assert all(step.loss < float("inf") for step in result.trace)


def test_a_method_of_ones_own_is_named_by_its_class(objective: fuse.Objective) -> None:
    result = fuse.search(
        objective, Scripted([objective.spell("A cup")], None), fuse.Beam(1), init=START
    )
    assert {step.method for step in result.trace} == {"Scripted"}


def searches(
    lm: fuse.CausalLM, clip: fuse.CLIP, method: Method, **options: Any
) -> list[fuse.Search]:
    """Return three searches for pictures, over the same models."""
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, clip)
    found = []
    for name in ("house", "boat", "tent"):
        (image,) = clip.embed_images([fuse.open_image(ROOT / f"images/{name}.png")])
        term = fuse.Term(clip, fuse.CosineDistance(image), weight=10, adapter=adapter)
        objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": term})
        found.append(fuse.Search(objective, method, steps=4, **options))
    return found


@pytest.mark.parametrize(
    "method", [fuse.AutoDAN(search_width=16), fuse.GCG(search_width=8)], ids=["autodan", "gcg"]
)
def test_searches_side_by_side_find_what_they_find_alone(
    lm: fuse.CausalLM, clip: fuse.CLIP, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = lm.network.forward
    monkeypatch.setattr(
        lm.network, "forward", lambda *a, **k: (passes.append(1), forward(*a, **k))[1]
    )
    alone = [search.run() for search in searches(lm, clip, method)]
    count = len(passes)
    together = fuse.search_together(searches(lm, clip, method))
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, fuse.Result)
        assert [step.free_ids for step in one.trace] == [step.free_ids for step in other.trace]
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
        assert one.evaluations == other.evaluations
    assert len({result.prompt for result in alone}) == 3
    assert len(passes) - count < 0.8 * count


def test_one_of_several_searches_may_fail_or_end_early(lm: fuse.CausalLM, clip: fuse.CLIP) -> None:
    first, second, third = searches(lm, clip, fuse.AutoDAN(search_width=32))
    found = fuse.search_together(
        [replace(first, init="house" * 200), replace(second, steps=1), third]
    )
    assert isinstance(found[0], fuse.FuseError)
    assert "init=" in str(found[0])
    assert [len(result.trace) for result in found[1:] if isinstance(result, fuse.Result)] == [1, 4]
    assert isinstance(found[2], fuse.Result)
    assert found[2].prompt == third.run().prompt
    assert fuse.search_together([]) == []


class Breaking(fuse.GCG):
    """Fails in its second step, with an error that nobody foresaw."""

    def propose(self, state: Any, beam: Any, guide: Guide, rng: torch.Generator) -> Any:
        if state is not None:
            raise ZeroDivisionError("on purpose")
        candidates = super().propose(state, beam, guide, rng)
        assert candidates is not None
        return replace(candidates, state=1)


class BreakingLoss(fuse.NLL):
    """Fails once it has been asked a few times."""

    def __init__(self) -> None:
        object.__setattr__(self, "asked", [])

    def __call__(self, model: Any, inputs: Any) -> torch.Tensor:
        self.asked.append(1)  # type: ignore[attr-defined]
        if len(self.asked) > 4:  # type: ignore[attr-defined]
            raise IndexError("on purpose")
        return super().__call__(model, inputs)


def test_an_error_of_any_kind_leaves_the_others_results(lm: fuse.CausalLM) -> None:
    def search(method: Method, loss: Any = None) -> fuse.Search:
        objective = fuse.Objective(fuse.Term(lm, loss or fuse.NLL()))
        return fuse.Search(objective, method, steps=4, generator=seeded())

    plain = fuse.GCG(search_width=8)
    alone = search(plain).run()
    found = fuse.search_together(
        [
            search(plain),
            search(Breaking(search_width=8)),
            search(plain, BreakingLoss()),
            search(plain),
        ]
    )
    assert isinstance(found[1], ZeroDivisionError)
    assert isinstance(found[2], IndexError)
    for result in (found[0], found[3]):
        assert isinstance(result, fuse.Result)
        assert [s.free_ids for s in result.trace] == [s.free_ids for s in alone.trace]
        assert result.evaluations == alone.evaluations
    with pytest.raises(ZeroDivisionError):
        search(Breaking(search_width=8)).run()


def test_ask_and_tell_is_the_loop(objective: fuse.Objective) -> None:
    search = fuse.Search(objective, fuse.GCG(search_width=8), steps=4)
    state = search.start()
    while not state.ended:
        candidates = search.propose(state)
        assert all(0 <= parent < len(state.beam) for parent in candidates.parents)
        state = search.accept(state, objective.evaluate(candidates))
    result = search.result(state)
    assert result.free_ids == search.run().free_ids
    assert result.ended == "steps"


def test_limits_end_a_search_and_say_so(objective: fuse.Objective) -> None:
    method = fuse.GCG(search_width=8)
    some = fuse.search(objective, method, max_evaluations=20)
    assert some.ended == "max_evaluations"
    assert 20 <= some.evaluations < 20 + 2 * 8
    quick = fuse.search(objective, method, time_limit=1e-6)
    assert (quick.ended, quick.steps) == ("time_limit", 0)
    goal = fuse.search(objective, method, stop_loss=1000.0)
    assert goal.ended == "stop_loss"


def test_a_higher_limit_goes_on_where_a_lower_one_ended(objective: fuse.Objective) -> None:
    method = fuse.GCG(search_width=8)
    whole = fuse.search(objective, method, steps=6)
    short = fuse.Search(objective, method, steps=3)
    state = short.start()
    while not state.ended:
        state = short.accept(state, short.evaluate(state, short.propose(state)))
    longer = replace(short, steps=6)
    state = longer.reopened(state)
    assert not state.ended
    while not state.ended:
        state = longer.accept(state, longer.evaluate(state, longer.propose(state)))
    assert longer.result(state).free_ids == whole.free_ids
    assert state.step == 6


class Sometimes(fuse.NLL):
    """nan for prompts with an odd number of tokens, or for all."""

    def __init__(self, always: bool = False) -> None:
        object.__setattr__(self, "always", always)

    def __call__(self, model: Any, inputs: Any) -> torch.Tensor:
        losses = super().__call__(model, inputs)
        odd = inputs.free.sum(1) % 2 == 1
        return torch.where(odd | self.always, torch.nan, losses)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "method",
    [
        fuse.Random(search_width=16, prompt_length=4),
        fuse.AutoDAN(search_width=16, linearise=("mean",)),
    ],
    ids=["random", "autodan"],
)
def test_losses_that_are_not_finite_drop_their_candidates(
    lm: fuse.CausalLM, method: Method
) -> None:
    objective = fuse.Objective(fuse.Term(lm, Sometimes()))
    result = fuse.search(objective, method, steps=4, init="A red house stands")
    assert len(result.free_ids) % 2 == 0
    assert result.num_non_finite > 0
    assert all(len(step.free_ids) % 2 == 0 for step in result.trace)


@pytest.mark.parametrize(
    "name", ["gcg", "random", "autodan", "pez", "embedding", "gibbs", "relaxed", "langevin"]
)
def test_a_search_without_any_finite_loss_says_why(lm: fuse.CausalLM, name: str) -> None:
    from fuse.registry import METHODS

    objective = fuse.Objective(fuse.Term(lm, Sometimes(always=True)))
    with pytest.raises(fuse.FuseError, match=r"primary: of \d+ losses none is finite.*float32"):
        fuse.search(objective, METHODS[name](), steps=3)


def test_a_search_that_ends_early_says_so(objective: fuse.Objective) -> None:
    broken: Ids = ()
    for letter in "house":
        broken += objective.vocabulary.encode([letter])[0][0]
    result = fuse.search(objective, Scripted([broken], None), fuse.Beam(1), init=START)
    assert result.ended == "no valid candidate"
    result = fuse.search(objective, Scripted([], None), fuse.Beam(1), init=START)
    assert result.ended == "exhausted"


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "method", [fuse.GCG(search_width=8), fuse.PEZ(), fuse.Embedding(search_width=2)]
)
def test_a_search_works_where_gradients_are_off(
    objective: fuse.Objective, method: Method, context: Any
) -> None:
    wanted = fuse.search(objective, method, steps=2)
    with context():
        found = fuse.search(objective, method, steps=2)
    assert [s.free_ids for s in found.trace] == [s.free_ids for s in wanted.trace]


def test_a_state_of_another_search_is_refused(objective: fuse.Objective, tmp_path: Any) -> None:
    search = fuse.Search(objective, fuse.GCG(search_width=8, momentum=0.5), steps=2)
    path = tmp_path / "checkpoint.safetensors"
    state = search.start()
    content = checkpoint.to_bytes({"a": state}, 0)
    for wrong in (content[: len(content) // 2], b"", b"nothing"):
        path.write_bytes(wrong)
        with pytest.raises(fuse.FuseError, match="cannot be resumed from"):
            checkpoint.read(path, {"a": search})
    path.write_bytes(content)
    with pytest.raises(fuse.FuseError, match="it holds the searches a"):
        checkpoint.read(path, {"b": search})
    again = checkpoint.read(path, {"a": search})[1]["a"]
    assert checkpoint.snapshot(again) == checkpoint.snapshot(state)


def test_a_state_that_cannot_be_written_is_named() -> None:
    state = fuse.SearchState(rng=torch.Generator().get_state(), method=object())
    with pytest.raises(fuse.FuseError, match="object: cannot be written"):
        checkpoint.to_bytes({"": state}, 0)


def test_former_names_still_work_and_warn(objective: fuse.Objective) -> None:
    with pytest.warns(DeprecationWarning, match="Search"):
        kind = fuse.Task
    with pytest.warns(DeprecationWarning, match="run"):
        result = kind(objective, fuse.Random(search_width=4), steps=1).search()
    assert isinstance(result, fuse.Result)


class Watching(fuse.Random):
    """Notes what it observes."""

    def observe(self, state: Any, evaluated: Evaluation) -> Any:
        best = min(evaluated.entries(), default=None)
        seen = tuple(evaluated.candidates.parents), best.loss if best else None
        return (*(state or ()), seen)


def test_a_method_observes_parents_and_losses(objective: fuse.Objective) -> None:
    search = fuse.Search(objective, Watching(search_width=8), fuse.Beam(2), steps=3)
    state, losses = search.start(), []
    while not state.ended:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
        assert state.last is not None
        losses.append(state.last.loss)
    assert [loss for _, loss in state.method] == losses
    assert {parent for parents, _ in state.method for parent in parents} <= {0, 1}


ENDINGS = (".", "!", "?")


@pytest.fixture
def whole(lm: fuse.CausalLM) -> fuse.Objective:
    return fuse.Objective(fuse.Term(lm, fuse.NLL()), constraints=fuse.Constraints(endings=ENDINGS))


@pytest.mark.parametrize("steps", [3, 5, 8])
def test_a_search_ends_with_a_whole_text_where_it_has_met_one(
    whole: fuse.Objective, objective: fuse.Objective, steps: int
) -> None:
    method = fuse.AutoDAN(search_width=16, steps=steps)
    assert not fuse.search(objective, method, fuse.Beam(2)).prompt.endswith(ENDINGS)
    found = fuse.search(whole, method, fuse.Beam(2))
    assert found.prompt.endswith(ENDINGS)
    assert found.loss == min(one.loss for one in scored_whole(whole, method))


def scored_whole(objective: fuse.Objective, method: Method) -> list[Entry]:
    """What a search scores that ends as a whole text does."""
    search = fuse.Search(objective, method, fuse.Beam(2))
    state, found = search.start(), []
    while not state.ended:
        evaluated = search.evaluate(state, search.propose(state))
        found += [one for one in evaluated.entries() if objective.finished([one.ids])[0]]
        state = search.accept(state, evaluated)
        assert not any(objective.finished(state.beam)), "a finished row does not grow on"
    return found


@pytest.mark.parametrize("method", [fuse.GCG, fuse.Random])
def test_a_whole_text_stays_whole_under_edits(
    whole: fuse.Objective, method: type[fuse.GCG]
) -> None:
    prompts = []
    fuse.search(
        whole,
        method(search_width=32, steps=6),
        init="There is a big red house.",
        on_step=lambda step: prompts.append(step.prompt),
    )
    assert len(prompts) == 6
    assert all(prompt.endswith(ENDINGS) for prompt in prompts)


def test_an_unfinished_text_is_returned_where_there_is_no_other(lm: fuse.CausalLM) -> None:
    never = fuse.Constraints(endings=("without end",))
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), constraints=never)
    found = fuse.search(objective, fuse.AutoDAN(search_width=8, steps=3), fuse.Beam(2))
    assert found.prompt


def test_an_unfinished_text_does_not_reach_a_loss(whole: fuse.Objective) -> None:
    found = fuse.search(
        whole, fuse.AutoDAN(search_width=16, steps=12), fuse.Beam(2), stop_loss=50.0
    )
    assert found.ended == "stop_loss"
    assert found.prompt.endswith(ENDINGS)
