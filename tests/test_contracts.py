"""Laws that hold for every method x strategy x adapter; a new name in their lists is enrolled by that alone."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

import fuse
from fuse.adapter import ADAPTERS, Adapter
from fuse.methods import METHODS
from fuse.strategies import STRATEGIES
from fuse.types import Result

STEPS = 4
GRID = list(product(METHODS, STRATEGIES, ADAPTERS))


@pytest.fixture(scope="module")
def adapters(lm: fuse.CausalLM, clip: fuse.CLIP) -> dict[str, Adapter]:
    words = "a red blue green house boat cup tree by the sea in snow at night turquoise umbrella mushroom".split()  # noqa: SIM905
    return {name: kind.fit(lm.vocabulary, clip.vocabulary, words) for name, kind in ADAPTERS.items()}


@pytest.fixture
def objective(adapter_name: str, adapters: dict, lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor) -> fuse.Objective:
    look = fuse.Term(clip, fuse.CosineDistance(house), weight=10, prefix="a picture:", adapter=adapters[adapter_name])
    return fuse.Objective(fuse.Term(lm, fuse.NLL(), prefix="Look:"), {"clip": look})


@pytest.fixture
def adapter_name(request: pytest.FixtureRequest) -> str:
    return request.param


def run(objective: fuse.Objective, method: str, strategy: str, seed: int = 0) -> Result:
    return fuse.search(
        objective,
        METHODS[method](search_width=12),
        STRATEGIES[strategy](),
        steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
    )


def told(result: Result) -> list[tuple]:
    """The trace without its clock."""
    return [(s.step, s.free_ids, s.prompt, s.loss, s.best_loss, s.evaluations, tuple(s.terms.items())) for s in result.trace]


@pytest.mark.parametrize(("method", "strategy", "adapter_name"), GRID, indirect=["adapter_name"])
def test_contracts(objective: fuse.Objective, method: str, strategy: str) -> None:
    result = run(objective, method, strategy)
    trace = result.trace
    assert 1 <= len(trace) == result.steps <= STEPS

    # the same seed gives the same trace
    assert told(run(objective, method, strategy)) == told(result)

    # the best loss never rises, and the result is the best of the trace
    bests = [step.best_loss for step in trace]
    assert bests == sorted(bests, reverse=True)
    assert all(step.best_loss <= step.loss for step in trace)
    assert result.loss == pytest.approx(bests[-1], abs=1e-4)
    assert result.loss <= result.initial_loss
    assert math.isfinite(result.initial_loss)

    # the loss is that of exactly the text, re-tokenised by every model, and the sum of its terms
    again, terms = objective.evaluate_text(result.prompt)
    assert again == result.loss == sum(t.weight * t.loss for t in result.terms.values())
    assert terms == result.terms
    assert result.terms["clip"].text == f"a picture: {result.prompt}"
    assert objective.vocabulary.decode([result.free_ids]) == [result.prompt]

    # no candidate that counts holds a forbidden token, and each spells itself
    allowed = objective.vocabulary.allowed
    for step in trace:
        assert all(allowed[token] for token in step.free_ids)
        assert objective.valid([step.free_ids]) == [True]


@pytest.mark.parametrize("adapter_name", ["lexical"], indirect=True)
def test_another_seed_gives_another_trace_where_chance_plays(objective: fuse.Objective, adapter_name: str) -> None:
    assert told(run(objective, "gcg", "beam", seed=1)) != told(run(objective, "gcg", "beam", seed=2))


@pytest.mark.parametrize("adapter_name", ["lexical"], indirect=True)
def test_evaluate_in_a_batch_equals_one_by_one(objective: fuse.Objective, adapter_name: str) -> None:
    rows = [ids for ids, _ in objective.vocabulary.encode([" a red house", " Anna", " two boats by the sea, and a kite"])]
    together = objective.evaluate(rows)
    for i, row in enumerate(rows):
        alone = objective.evaluate([row])
        torch.testing.assert_close(together.loss[i : i + 1], alone.loss, atol=1e-4, rtol=0)
    assert objective.evaluations == 2 * len(rows)


@pytest.mark.parametrize("adapter_name", ["lexical"], indirect=True)
def test_rows_that_do_not_spell_themselves_are_refused(objective: fuse.Objective, adapter_name: str) -> None:
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
