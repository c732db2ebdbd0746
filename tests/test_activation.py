"""Activation targets: the loss is what a forward hook sees, and its gradient is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fuse
from fuse.app.build import build
from fuse.app.config import compose
from fuse.engine import Engine
from fuse.nn.batch import pad

PROMPTS = ["A red house in the snow.", "There is", "A big turquoise umbrella by the sea."]
NEURONS = "transformer.h.1.mlp.act"


def seen(lm: fuse.CausalLM, text: str, name: str) -> tuple[torch.Tensor, int, int]:
    """What a module of the network returns for each token of a text, by its own pass, and where the
    prompt begins and ends.
    """
    (row,) = fuse.Term(lm, fuse.NLL(), prefix="Look:", suffix="Yes.").encode([text])
    found: list[torch.Tensor] = []

    def keep(_: object, __: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    with dict(lm.network.named_modules())[name].register_forward_hook(keep):
        lm.network(input_ids=torch.tensor([row.ids]))
    return found[0][0], *row.free


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("layer", ["0", 1, NEURONS])
def test_the_loss_is_what_a_forward_hook_sees(
    lm: fuse.CausalLM, layer: int | str, pooling: str
) -> None:
    """Of rows in one batch and alone; also of the last layer, which is cut short elsewhere."""
    name = layer if layer == NEURONS else f"transformer.h.{layer}"
    last = len(lm.layers()) - 1
    for part, module in ((layer, name), (last, f"transformer.h.{last}")):
        loss = fuse.Activation(part, neuron=3, pooling=pooling)
        term = fuse.Term(lm, loss, prefix="Look:", suffix="Yes.")
        term.engine.prefill(term.encode(PROMPTS[:1]))
        found = term.score(term.encode(PROMPTS)).tolist()
        for text, value in zip(PROMPTS, found, strict=True):
            states, start, end = seen(lm, text, str(module))
            numbers = states[start:end, 3]
            expected = {"last": numbers[-1], "mean": numbers.mean(), "max": numbers.max()}[pooling]
            assert value == pytest.approx(-float(expected), abs=1e-4)


def test_directions_and_probes(lm: fuse.CausalLM, generator: torch.Generator) -> None:
    width = lm.vocabulary.embedding.shape[1]
    probe = torch.randn(3, width, generator=generator)
    losses = fuse.Activation(1, direction=probe[0]), fuse.Activation(1, 2, probe)
    states, _, end = seen(lm, PROMPTS[0], "transformer.h.1")
    products = probe @ states[end - 1]
    for loss, expected in zip(losses, (products[0], products.log_softmax(0)[2]), strict=True):
        term = fuse.Term(lm, loss, prefix="Look:", suffix="Yes.")
        (found,) = term.score(term.encode(PROMPTS[:1])).tolist()
        assert found == pytest.approx(-float(expected), rel=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_gradient_equals_finite_differences(
    lm: fuse.CausalLM, generator: torch.Generator, pooling: str
) -> None:
    model = fuse.CausalLM(lm.network.double(), lm.vocabulary.tokenizer)
    try:
        loss = fuse.Activation(NEURONS, neuron=5, pooling=pooling)
        (row,) = fuse.Term(model, loss, prefix="Look:").encode([PROMPTS[0]])
        found = Engine(model, loss, row).gradient([row], [range(len(row.ids))])
        assert found.labels is None
        table, inputs = model.vocabulary.embedding, pad([row], model.device)

        def value(read: torch.Tensor) -> float:
            return float(loss(model, replace(inputs, embeddings=read)))

        for _ in range(6):
            position = int(torch.randint(row.free[0], row.free[1], (1,), generator=generator))
            token = int(torch.randint(len(table), (1,), generator=generator))
            step = torch.zeros_like(table[inputs.ids])
            step[0, position] = 1e-4 * table[token]
            base = table[inputs.ids]
            numeric = (value(base + step) - value(base - step)) / 2e-4
            exact = float(found.embedding[0, position].double() @ table[token])
            assert exact == pytest.approx(numeric, rel=1e-3, abs=1e-5)
    finally:
        lm.network.float()


def test_what_the_network_lacks_is_refused_by_name(lm: fuse.CausalLM) -> None:
    wrong = {
        r"layer=99: expected a number below": fuse.Activation(99, 0),
        r"layer=transformer.h.1.mlp.acts: did you mean transformer.h": fuse.Activation(
            f"{NEURONS}s", 0
        ),
        r"neuron=100000: expected a number below": fuse.Activation(0, 100_000),
        r"direction: a vector of 3 numbers": fuse.Activation(0, direction=torch.ones(3)),
    }
    for message, loss in wrong.items():
        term = fuse.Term(lm, loss)
        with pytest.raises(fuse.FuseError, match=message):
            term.score(term.encode(PROMPTS))
    for options in ({}, {"neuron": 1, "direction": torch.ones(3)}, {"direction": torch.ones(2, 3)}):
        with pytest.raises(fuse.FuseError, match="neuron="):
            fuse.Activation(0, **options)


def test_the_experiment_raises_the_activation(tmp_path: Path) -> None:
    """By the exact gradient, without an adapter; its front trades it for fluency."""
    entry = "secondary.causal_lm"
    given = ["experiment=activation", f"{entry}.layer={NEURONS}", f"{entry}.neuron=5"]
    search = build(compose([*given, "steps=4", "method.search_width=24"]))
    term = search.objective.secondaries["causal_lm"]
    assert term.model is search.objective.primary.model
    assert term.adapter is None
    result = search.run()
    first = search.start()
    assert first.best is not None
    assert result.terms["causal_lm"].loss < first.best.terms[1]
    assert len(result.front) > 1
    width = search.objective.vocabulary.embedding.shape[1]
    save_file({"probe": torch.eye(width)}, tmp_path / "probe.safetensors")
    probe = f"{entry}.direction={tmp_path / 'probe.safetensors'}"
    search = build(compose([*given[:1], f"{entry}.layer=0", f"{entry}.neuron=3", probe]))
    assert search.objective.secondaries["causal_lm"].loss.direction.shape == (width, width)
    with pytest.raises(fuse.FuseError, match=r"secondary.causal_lm.layer=nowhere"):
        build(compose([*given[:1], f"{entry}.layer=nowhere"]))
