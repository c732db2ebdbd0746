"""Several threads that score the candidates of one search: the same trace, and nothing that a pass
changes is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import torch

import fuse
from fuse.engine.workers import Workers
from fuse.models import Model
from fuse.search.methods.base import Method

TEXTS = ["A red house", "There is a blue boat by the sea", "A cup", "Two dogs", "A cat in the snow"]
METHODS: dict[str, Method] = {
    "autodan": fuse.AutoDAN(search_width=24, steps=3),
    "gcg": fuse.GCG(search_width=24, prompt_length=4, steps=2),
    "gibbs": fuse.Gibbs(search_width=24, prompt_length=4, steps=2),
    "pez": fuse.PEZ(steps=2, prompt_length=4),
}
LOSSES: dict[str, fuse.Loss[Any]] = {
    "nll": fuse.NLL(),
    "kl_div": fuse.KLDiv(),
    "cross_entropy": fuse.CrossEntropy("in the snow"),
    "activation": fuse.Activation(layer=1, neuron=3),
}


@pytest.fixture(scope="module")
def copies(lm: fuse.CausalLM, clip: fuse.CLIP) -> dict[int, list[Model]]:
    """Two replicas of each model."""
    return {id(model): [fuse.replica(model), fuse.replica(model)] for model in (lm, clip)}


Search = Callable[..., fuse.Result]


@pytest.fixture
def search(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor, copies: dict[int, list[Model]]
) -> Search:
    """A function that searches with some workers, in batches so small that there are several."""
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, clip)

    def found(method: Method, workers: int, probe: fuse.Probe | None = None) -> fuse.Result:
        def term(model: Model, loss: fuse.Loss[Any], **options: Any) -> fuse.Term:
            own = copies[id(model)][: workers - 1]
            return fuse.Term(model, loss, batch_size=8, replicas=own, **options)

        secondary = term(clip, fuse.CosineDistance(house), weight=10, adapter=adapter)
        objective = fuse.Objective(term(lm, fuse.NLL()), {"clip": secondary})
        return fuse.Search(objective, method, probe=probe).run()

    return found


def same_traces(one: fuse.Result, other: fuse.Result) -> None:
    """Check that two searches went the same way, but for rounding and the clock."""
    assert one.prompt == other.prompt
    aside = {"seconds": 0.0, "loss": 0.0, "best_loss": 0.0, "terms": {}, "operations": 0}
    for left, right in zip(one.trace, other.trace, strict=True):
        assert replace(left, **aside) == replace(right, **aside)
        assert left.loss == pytest.approx(right.loss, abs=1e-5)
        assert left.terms == pytest.approx(right.terms, abs=1e-5)
        assert left.operations == pytest.approx(right.operations, rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_the_trace_is_that_of_one_worker(search: Search, name: str) -> None:
    same_traces(search(METHODS[name], 1), search(METHODS[name], 2))


def test_three_workers_and_a_guess_first(search: Search) -> None:
    method, probe = fuse.GCG(search_width=48, prompt_length=4, steps=2), fuse.Probe()
    same_traces(search(method, 1, probe), search(method, 3, probe))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_one_worker(
    lm: fuse.CausalLM, copies: dict[int, list[Model]], name: str
) -> None:
    found = []
    for replicas in ([], copies[id(lm)]):
        term = fuse.Term(lm, LOSSES[name], batch_size=2, replicas=replicas)
        rows = term.encode(TEXTS)
        before = lm.operations.total
        term.engine.prefill(rows[:2])
        found.append((term.score(rows), term.engine.estimate(rows), lm.operations.total - before))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    assert found[0][2] == pytest.approx(found[1][2], rel=0.1)


def test_a_replica_shares_the_weights_and_no_module(
    lm: fuse.CausalLM, mood: fuse.Classifier
) -> None:
    for model in (lm, mood):
        own = fuse.replica(model)
        weights = {one.data_ptr() for one in model.network.parameters()}
        assert {one.data_ptr() for one in own.network.parameters()} == weights
        assert own.vocabulary.embedding.data_ptr() == model.vocabulary.embedding.data_ptr()
        assert own.vocabulary.tokenizer is model.vocabulary.tokenizer
        assert {*own.network.modules()}.isdisjoint(model.network.modules())
        assert own.operations is not model.operations


def test_workers_work_at_the_same_time(lm: fuse.CausalLM) -> None:
    meeting = Barrier(2, timeout=60)
    workers = Workers([lm, fuse.replica(lm)])

    def met(number: int, batch: int) -> tuple[int, int]:
        meeting.wait()
        return number, batch

    assert list(workers.read([5, 6, 7, 8], met)) == [(0, 5), (1, 6), (0, 7), (1, 8)]


def test_an_error_in_a_worker_is_told(lm: fuse.CausalLM) -> None:
    def broken(number: int, _: int) -> int:
        raise ValueError(str(number))

    with pytest.raises(ValueError, match="0"):
        list(Workers([lm, fuse.replica(lm)]).read([1, 2], broken))


def test_batches_that_do_not_fit_are_halved(
    lm: fuse.CausalLM, copies: dict[int, list[Model]], monkeypatch: pytest.MonkeyPatch
) -> None:
    term = fuse.Term(lm, fuse.NLL(), batch_size=4, replicas=copies[id(lm)][:1], packing=False)
    rows = term.encode(TEXTS * 3)
    rows = [replace(row, ids=row.ids + (5,) * i) for i, row in enumerate(rows)]
    expected = fuse.Term(lm, fuse.NLL()).score(rows)
    call = fuse.NLL.__call__

    def call_where_it_fits(loss: fuse.NLL, model: Any, inputs: Any) -> torch.Tensor:
        if len(inputs.ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return call(loss, model, inputs)

    monkeypatch.setattr(fuse.NLL, "__call__", call_where_it_fits)
    assert torch.allclose(term.score(rows), expected, atol=1e-5)
    assert term.engine.runner.batch_size == 2


def test_a_copy_with_another_loss_is_refused(lm: fuse.CausalLM) -> None:
    other = fuse.replica(lm)
    layer = other.network.transformer.h[0].mlp.c_proj
    layer.weight = torch.nn.Parameter(layer.weight * 2, requires_grad=False)
    with pytest.raises(fuse.FuseError, match=r"a copy of it has another loss.*scoring.workers=1"):
        fuse.Term(lm, fuse.NLL(), replicas=[other])


def test_layers_that_are_brought_for_each_pass_have_no_replica(lm: fuse.CausalLM) -> None:
    spread = fuse.replica(lm)
    spread.network.transformer.h[0]._hf_hook = object()
    with pytest.raises(fuse.FuseError, match=r"spread over devices.*scoring.workers=1"):
        fuse.replica(spread)
