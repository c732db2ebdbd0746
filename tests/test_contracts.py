"""Laws of every method x strategy x number of secondaries x adapter.

A new name in the registry is enrolled by that alone. The whole grid runs under `pytest -m full`;
plain `pytest` takes a slice that has every part in it.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import astuple, replace
from itertools import product
from typing import Any

import pytest
import torch
import toys
from conftest import ROOT
from readme_tables import updated

import fuse
from fuse.registry import ADAPTERS, METHODS, STRATEGIES
from fuse.search.checks import check_combination

STEPS = 3
WORDS = "a red blue green house boat cup tree by the sea in snow at night turquoise umbrella sad"
NAMED = {"greedy": fuse.Beam(1), "beam": fuse.Beam(3), "uniform_cost": fuse.UniformCost()}
"""Strategies by the names that a user types; others of the registry join by theirs."""
ALL_STRATEGIES: dict[str, fuse.Strategy] = {
    **NAMED,
    **{name: STRATEGIES[name]() for name in STRATEGIES if name not in NAMED},
}
SECONDARIES = ("clip", "mood")
SMALL = {"search_width": 12, "texts": ("A red house in the snow.",)}
CONTINUOUS = {"search_width": 3, "prompt_length": 4}
SMALLER = dict.fromkeys(("pez", "embedding", "relaxed", "langevin"), CONTINUOUS)


def method_of(name: str, **options: object) -> fuse.Method:
    """Return a method, small enough for tests."""
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    own = {**SMALL, **SMALLER.get(name, {}), **options}
    given = {key: value for key, value in own.items() if key in fields}
    return METHODS[name](**given)


def goes_together(method: str, strategy: str) -> bool:
    return ALL_STRATEGIES[strategy] == fuse.Beam(1) or not METHODS[method].greedy_only


PAIRS = [pair for pair in product(METHODS, ALL_STRATEGIES) if goes_together(*pair)]
Cell = tuple[str, str, int, str]


def whole_grid() -> list[Cell]:
    """Return every method, strategy, number of secondaries and adapter."""
    cells = []
    for (method, strategy), number, adapter in product(PAIRS, (0, 1, 2), ADAPTERS):
        if number or adapter == next(iter(ADAPTERS)):
            cells.append((method, strategy, number, adapter))
    return cells


def slice_of_grid() -> list[Cell]:
    """Return each method twice, and each strategy, with secondaries and adapters in turn."""
    cells = []
    for i, method in enumerate(METHODS):
        strategies = [strategy for one, strategy in PAIRS if one == method]
        chosen = dict.fromkeys([strategies[i % len(strategies)], "greedy"])
        for number, strategy in enumerate(chosen, i):
            adapter = list(ADAPTERS)[number % len(ADAPTERS)]
            cells.append((method, strategy, (1, 2, 0)[number % 3], adapter))
    return cells


SLICE = slice_of_grid()
OTHERS = [pytest.param(*cell, marks=pytest.mark.full) for cell in whole_grid() if cell not in SLICE]


@pytest.fixture(scope="module")
def adapters(
    lm: fuse.CausalLM, clip: fuse.CLIP, mood: fuse.Classifier
) -> dict[tuple[str, str], fuse.Adapter]:
    targets = {"clip": clip, "mood": mood}
    found = {}
    for (name, kind), key in product(ADAPTERS.items(), SECONDARIES):
        found[name, key] = kind.fit(lm.vocabulary, targets[key], WORDS.split())
    return found


@pytest.fixture
def objective(
    secondaries: int,
    adapter_name: str,
    adapters: dict[tuple[str, str], fuse.Adapter],
    lm: fuse.CausalLM,
    clip: fuse.CLIP,
    mood: fuse.Classifier,
    house: torch.Tensor,
) -> fuse.Objective:
    by_clip, by_mood = adapters[adapter_name, "clip"], adapters[adapter_name, "mood"]
    loss = fuse.CosineDistance(house)
    terms = {
        "clip": fuse.Term(clip, loss, weight=10, prefix="a picture:", adapter=by_clip),
        "mood": fuse.Term(mood, fuse.ClassNLL(1), adapter=by_mood),
    }
    chosen = {key: terms[key] for key in SECONDARIES[:secondaries]}
    return fuse.Objective(fuse.Term(lm, fuse.NLL(), prefix="Look:"), chosen)


@pytest.fixture
def secondaries() -> int:
    return 1


@pytest.fixture
def adapter_name() -> str:
    return "semantic"


def run(
    objective: fuse.Objective, method: str, strategy: str, seed: int = 0, **options: object
) -> fuse.Result:
    rng = torch.Generator().manual_seed(seed)
    chosen = method_of(method, **options)
    return fuse.search(objective, chosen, ALL_STRATEGIES[strategy], steps=STEPS, generator=rng)


def comparable(result: fuse.Result) -> list[tuple[Any, ...]]:
    """Return the trace without its clock."""
    return [astuple(replace(step, seconds=0.0)) for step in result.trace]


@pytest.mark.parametrize(("method", "strategy", "secondaries", "adapter_name"), [*SLICE, *OTHERS])
def test_contracts(objective: fuse.Objective, method: str, strategy: str, secondaries: int) -> None:
    search = fuse.Search(objective, method_of(method), ALL_STRATEGIES[strategy], steps=STEPS)
    result = fuse.check_search(search)
    if method_of(method).steps:
        assert 1 <= len(result.trace) == result.steps <= STEPS
        assert {step.method for step in result.trace} == {method}
    assert result.loss <= result.initial_loss + 1e-4
    assert len(result.terms) == 1 + secondaries
    if secondaries:
        assert result.terms["clip"].text.removeprefix("a picture:").strip() == result.prompt


TOYS: dict[str, tuple[fuse.Method, fuse.Strategy | None]] = {
    "annealing": (fuse.GCG(search_width=12), toys.Annealing()),
    "annealing, autodan": (fuse.AutoDAN(search_width=12), toys.Annealing()),
    "pareto": (fuse.GCG(search_width=12), toys.Pareto()),
    "pareto, autodan": (fuse.AutoDAN(search_width=12), toys.Pareto(4)),
    "metropolis": (toys.MetropolisHastings(), None),
}


@pytest.mark.parametrize("toy", TOYS)
def test_parts_of_ones_own_obey_the_contracts(objective: fuse.Objective, toy: str) -> None:
    method, strategy = TOYS[toy]
    fuse.check_search(fuse.Search(objective, method, strategy, steps=STEPS))


@pytest.mark.parametrize("kind", [toys.Annealing, toys.Pareto, toys.MetropolisHastings])
def test_a_part_of_ones_own_is_short(kind: type) -> None:
    assert len(inspect.getsource(kind).splitlines()) < 60


class Forgetful(fuse.GCG):
    """Breaks the law that all chance comes from the generator."""

    def propose(self, state: Any, beam: Any, guide: fuse.Guide, rng: torch.Generator) -> Any:
        return super().propose(state, beam, guide, torch.default_generator)


class Sticky(fuse.Random):
    """Breaks the law that the state is a value."""

    def propose(self, state: Any, beam: Any, guide: fuse.Guide, rng: torch.Generator) -> Any:
        state.append(len(state))
        return super().propose(state, beam, guide, rng)

    def init(self, guide: fuse.Guide, start: Any, rng: torch.Generator) -> Any:
        return [], super().init(guide, start, rng)[1]


class Hidden(fuse.Random):
    """Breaks the law that nothing is kept outside of the state."""

    seen: list[int] = []  # noqa: RUF012

    def propose(self, state: Any, beam: Any, guide: fuse.Guide, rng: torch.Generator) -> Any:
        self.seen.append(1)
        rng.manual_seed(len(self.seen))
        return super().propose(state, beam, guide, rng)


@pytest.mark.parametrize(
    ("kind", "law"),
    [(Forgetful, "another trace"), (Sticky, "changes the state"), (Hidden, "another trace")],
)
def test_a_part_that_breaks_a_law_is_caught(
    objective: fuse.Objective, kind: type, law: str
) -> None:
    with pytest.raises(fuse.ContractError, match=law):
        fuse.check_search(fuse.Search(objective, kind(search_width=12), steps=3))


UNFIT = [pair for pair in product(METHODS, ALL_STRATEGIES) if pair not in PAIRS]


@pytest.mark.parametrize(("method", "strategy"), UNFIT)
def test_what_means_nothing_together_is_refused(
    objective: fuse.Objective, method: str, strategy: str
) -> None:
    with pytest.raises(fuse.FuseError, match=f"method={method}.*strategy=greedy"):
        run(objective, method, strategy)
    check_combination(method_of(method), ALL_STRATEGIES["greedy"])


def test_the_readmes_table_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text()
    assert updated(text) == text, "run python scripts/readme_tables.py"


def test_another_seed_gives_another_trace_where_chance_plays(objective: fuse.Objective) -> None:
    for method in ("gcg", "random", "embedding"):
        first, second = (run(objective, method, "greedy", seed=seed) for seed in (1, 2))
        assert comparable(first) != comparable(second)


def test_evaluate_in_a_batch_equals_one_by_one(objective: fuse.Objective) -> None:
    texts = [" a red house", " Anna", " two boats by the sea, and a kite"]
    rows = [ids for ids, _ in objective.vocabulary.encode(texts)]
    together = objective.evaluate(rows)
    for i, row in enumerate(rows):
        objective.clear()
        alone = objective.evaluate([row])
        torch.testing.assert_close(together.loss[i : i + 1], alone.loss, atol=1e-4, rtol=0)


def test_known_losses_are_not_computed_again(objective: fuse.Objective, lm: fuse.CausalLM) -> None:
    texts = [" a red house", " Anna", " a red house"]
    rows = [ids for ids, _ in objective.vocabulary.encode(texts)]
    first = objective.evaluate(rows)
    known = {entry.ids: entry.terms for entry in first.entries()}
    assert len(known) == 2
    objective.clear()
    passes: list[int] = []
    with lm.network.register_forward_hook(lambda *_: passes.append(1)):
        again = objective.evaluate(rows[::-1], known)
    assert not passes
    assert torch.equal(first.loss, again.loss.flip(0))


def test_rows_that_do_not_spell_themselves_are_refused(objective: fuse.Objective) -> None:
    vocabulary = objective.vocabulary
    row = vocabulary.encode([" a red house"])[0][0]
    split: tuple[int, ...] = ()
    for letter in "house":
        split += vocabulary.encode([letter])[0][0]
    evaluated = objective.evaluate([row, row + split, row * 60])
    assert evaluated.loss.isfinite().tolist() == [True, False, False]
    assert evaluated.valid.tolist() == [True, False, False]
    assert evaluated.num_non_finite == 0


def test_without_an_adapter_a_foreign_secondary_is_refused(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor
) -> None:
    secondary = fuse.Term(clip, fuse.CosineDistance(house))
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": secondary})
    with pytest.raises(fuse.FuseError, match=r"secondary\.clip\.adapter"):
        fuse.search(objective, fuse.GCG(), fuse.Beam())


def test_search_from_a_text(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    method = fuse.AutoDAN(search_width=8)
    result = fuse.search(objective, method, fuse.Beam(1), steps=3, init="A red house")
    assert all(step.prompt.startswith("A red house") for step in result.trace)
    assert result.initial_loss == pytest.approx(objective.evaluate_text("A red house")[0], abs=1e-5)
    with pytest.raises(fuse.FuseError, match="init="):
        fuse.search(objective, fuse.AutoDAN(), fuse.Beam(1), init="a house " * 200)


def test_elicitation_beats_its_start(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the snow.")))
    method = fuse.GCG(search_width=32, prompt_length=4)
    result = fuse.search(objective, method, fuse.Beam(2), steps=8)
    assert result.loss < result.initial_loss
    assert result.terms["primary"].text.endswith(" in the snow.")
