"""Laws that hold for every method x strategy x number of secondaries x adapter; a new name in their lists is enrolled by that alone.

The whole grid runs under `pytest -m full`; plain `pytest` takes a slice that has every part in it.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import pytest
import torch
from conftest import ROOT

import fuse
from fuse.adapter import ADAPTERS, Adapter
from fuse.loop import check_combination
from fuse.methods import METHODS, Method
from fuse.strategies import Strategy
from fuse.types import Result

STEPS = 4
STRATEGIES: dict[str, Strategy] = {"greedy": fuse.Beam(1), "beam": fuse.Beam(3), "uniform_cost": fuse.UniformCost()}
SECONDARIES = ("clip", "mood")
SMALL = {"search_width": 12, "texts": ("A red house in the snow.",)}


def method_of(name: str, **options: object) -> Method:
    """A method, small enough for tests."""
    fields = {field.name for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    return METHODS[name](**{key: value for key, value in {**SMALL, **options}.items() if key in fields})


def goes_together(method: str, strategy: str) -> bool:
    return STRATEGIES[strategy] == fuse.Beam(1) or not METHODS[method].greedy_only


PAIRS = [pair for pair in product(METHODS, STRATEGIES) if goes_together(*pair)]
# Each pair once, with the numbers of secondaries and the adapters in turn: both of them for every method
SLICE = [(m, s, (1, 2, 0)[i % 3], list(ADAPTERS)[i % len(ADAPTERS)]) for i, (m, s) in enumerate(PAIRS)]
SLICE += [(m, "greedy", 1, a) for m, a in product(METHODS, ADAPTERS) if (m, "greedy", 1, a) not in SLICE]
WHOLE = [(m, s, n, a) for (m, s), n, a in product(PAIRS, (0, 1, 2), ADAPTERS) if n or a == next(iter(ADAPTERS))]
GRID = SLICE + [pytest.param(*cell, marks=pytest.mark.full) for cell in WHOLE if cell not in SLICE]


@pytest.fixture(scope="module")
def adapters(lm: fuse.CausalLM, clip: fuse.CLIP, mood: fuse.Classifier) -> dict[tuple[str, str], Adapter]:
    words = "a red blue green house boat cup tree by the sea in snow at night turquoise umbrella mushroom sad".split()  # noqa: SIM905
    targets = {"clip": clip, "mood": mood}
    return {(name, key): kind.fit(lm.vocabulary, targets[key], words) for name, kind in ADAPTERS.items() for key in SECONDARIES}


@pytest.fixture
def objective(
    secondaries: int, adapter_name: str, adapters: dict, lm: fuse.CausalLM, clip: fuse.CLIP, mood: fuse.Classifier, house: torch.Tensor
) -> fuse.Objective:
    terms = {
        "clip": fuse.Term(clip, fuse.CosineDistance(house), weight=10, prefix="a picture:", adapter=adapters[adapter_name, "clip"]),
        "mood": fuse.Term(mood, fuse.ClassNLL(1), adapter=adapters[adapter_name, "mood"]),
    }
    chosen = {key: terms[key] for key in SECONDARIES[:secondaries]}
    return fuse.Objective(fuse.Term(lm, fuse.NLL(), prefix="Look:"), chosen)


@pytest.fixture
def secondaries() -> int:
    return 1


@pytest.fixture
def adapter_name() -> str:
    return "semantic"


def run(objective: fuse.Objective, method: str, strategy: str, seed: int = 0, **options: object) -> Result:
    generator = torch.Generator().manual_seed(seed)
    return fuse.search(objective, method_of(method, **options), STRATEGIES[strategy], steps=STEPS, generator=generator)


def told(result: Result) -> list[tuple]:
    """The trace without its clock and without its count of evaluations, which a memo makes smaller."""
    return [(s.step, s.method, s.free_ids, s.prompt, s.loss, s.best_loss, tuple(s.terms.items())) for s in result.trace]


@pytest.mark.parametrize(("method", "strategy", "secondaries", "adapter_name"), GRID)
def test_contracts(objective: fuse.Objective, method: str, strategy: str, secondaries: int) -> None:
    result = run(objective, method, strategy)
    trace = result.trace
    assert 1 <= len(trace) == result.steps <= STEPS
    assert {step.method for step in trace} == {method}

    # the same seed gives the same trace
    assert told(run(objective, method, strategy)) == told(result)

    # the best loss never rises, and the result is the best of the trace and the start
    bests = [step.best_loss for step in trace]
    assert bests == sorted(bests, reverse=True)
    assert all(step.best_loss <= step.loss for step in trace)
    assert result.loss == pytest.approx(bests[-1], abs=1e-4)
    assert result.loss <= result.initial_loss + 1e-4
    assert math.isfinite(result.initial_loss)

    # the loss is that of exactly the text, re-tokenised by every model, and the sum of its terms
    again, terms = objective.evaluate_text(result.prompt)
    assert again == result.loss == sum(t.weight * t.loss for t in result.terms.values())
    assert terms == result.terms
    assert len(terms) == 1 + secondaries
    if secondaries:
        assert result.terms["clip"].text.removeprefix("a picture:").strip() == result.prompt
    assert objective.vocabulary.decode([result.free_ids]) == [result.prompt]

    # no candidate that counts holds a forbidden token, and each spells itself
    for step in trace:
        assert all(objective.allowed[token] for token in step.free_ids)
        assert objective.valid([step.free_ids]) == [True]


@pytest.mark.parametrize(("method", "strategy"), [pair for pair in product(METHODS, STRATEGIES) if pair not in PAIRS])
def test_what_means_nothing_together_is_refused(objective: fuse.Objective, method: str, strategy: str) -> None:
    with pytest.raises(fuse.FuseError, match=f"method={method}.*strategy=greedy"):
        run(objective, method, strategy)
    check_combination(method_of(method), STRATEGIES["greedy"])


def test_the_readmes_table_of_combinations_is_this_one() -> None:
    lines = [
        f"| `{method}` | " + " | ".join("yes" if goes_together(method, strategy) else "-" for strategy in STRATEGIES) + " |"
        for method in METHODS
    ]
    assert "\n".join(lines) in (ROOT / "README.md").read_text()


def test_another_seed_gives_another_trace_where_chance_plays(objective: fuse.Objective) -> None:
    for method in ("gcg", "random", "embedding"):
        assert told(run(objective, method, "greedy", seed=1)) != told(run(objective, method, "greedy", seed=2))


def test_evaluate_in_a_batch_equals_one_by_one(objective: fuse.Objective) -> None:
    rows = [ids for ids, _ in objective.vocabulary.encode([" a red house", " Anna", " two boats by the sea, and a kite"])]
    together = objective.evaluate(rows)
    for i, row in enumerate(rows):
        objective._scored.clear()
        alone = objective.evaluate([row])
        torch.testing.assert_close(together.loss[i : i + 1], alone.loss, atol=1e-4, rtol=0)


def test_what_was_scored_is_not_scored_again(objective: fuse.Objective) -> None:
    rows = [ids for ids, _ in objective.vocabulary.encode([" a red house", " Anna", " a red house"])]
    first = objective.evaluate(rows)
    again = objective.evaluate(rows[::-1])
    assert objective.evaluations == 2
    assert torch.equal(first.loss, again.loss.flip(0))


def test_rows_that_do_not_spell_themselves_are_refused(objective: fuse.Objective) -> None:
    vocabulary = objective.vocabulary
    row = vocabulary.encode([" a red house"])[0][0]
    split = tuple(i for letter in "house" for i in vocabulary.encode([letter])[0][0])
    losses = objective.evaluate([row, row + split, row * 60]).loss
    assert losses.isfinite().tolist() == [True, False, False]


def test_without_an_adapter_a_foreign_secondary_is_refused(lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": fuse.Term(clip, fuse.CosineDistance(house))})
    with pytest.raises(fuse.FuseError, match=r"secondary\.clip\.adapter"):
        fuse.search(objective, fuse.GCG(), fuse.Beam())


def test_search_from_a_text(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    result = fuse.search(objective, fuse.AutoDAN(search_width=8), fuse.Beam(1), steps=3, init="A red house")
    assert all(step.prompt.startswith("A red house") for step in result.trace)
    assert result.initial_loss == pytest.approx(objective.evaluate_text("A red house")[0], abs=1e-5)
    with pytest.raises(fuse.FuseError, match="init="):
        fuse.search(objective, fuse.AutoDAN(), fuse.Beam(1), init="a house " * 200)


def test_elicitation_beats_its_start(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the snow.")))
    result = fuse.search(objective, fuse.GCG(search_width=32, prompt_length=4), fuse.Beam(2), steps=8)
    assert result.loss < result.initial_loss
    assert result.terms["primary"].text.endswith(" in the snow.")
