"""Products by copies equal plain ones, in forward passes and in gradients."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from fuse import products
from fuse.models.layers import FIXED, quickened
from fuse.models.output import LINES, Contexts, OutputLayer
from fuse.products import PIECE, Table


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 5, 3), (0, 3)])
@pytest.mark.parametrize("size", [1, PIECE, 2 * PIECE + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_equal_the_plain_product(shape: tuple[int, ...], size: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    points, lines = torch.randn(shape, generator=generator, dtype=dtype), torch.randn(size, 3, generator=generator, dtype=dtype)
    table = Table(lines)
    torch.testing.assert_close(table.inner_products(points), points @ lines.T)
    assert table.inner_products(points.requires_grad_()).requires_grad


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("slopes", [True, False])
def test_a_layer_is_what_it_was(turned: bool, slopes: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SLOPE", products.SLOPE if slopes else 0)
    layer: Any = Conv1D(6, 4) if turned else torch.nn.Linear(4, 6)
    quick = quickened(torch.nn.Sequential(deepcopy(layer.requires_grad_(False))))[0]
    assert type(quick) is FIXED[type(layer)]

    def check() -> None:
        points = torch.randn(2, 3, 4, generator=generator).to(layer.weight).requires_grad_()
        up = torch.randn(2, 3, 6, generator=generator).to(layer.weight)
        torch.testing.assert_close(quick(points.detach()), layer(points))
        (found,), (wanted,) = (torch.autograd.grad(of(points), points, up) for of in (quick, layer))
        torch.testing.assert_close(found, wanted)

    check()
    for one in (quick, layer):
        one.weight.mul_(2)
    check()
    other = torch.randn(layer.weight.shape, generator=generator)
    for one in (quick, layer):
        one.weight.data = other.clone()
    check()
    for one in (quick, layer):
        one.double()
    check()
    for one in (quick, layer):
        one.float()
    check()
    quick = deepcopy(quick)
    check()
    quick.weight.mul_(2)
    layer.weight.mul_(2)
    check()


def test_copies_are_made_where_torch_can(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """Without them the same products come out the plain way."""
    points, lines = torch.randn(5, 8, generator=generator), torch.randn(40, 8, generator=generator)
    table = Table(lines)
    table.inner_products(points)
    assert torch.backends.mkldnn.is_available() is bool(table._copies._made)
    monkeypatch.setattr(products, "_onednn", lambda: False)
    torch.testing.assert_close(table.inner_products(points), points @ lines.T)


@pytest.mark.parametrize("count", [1, LINES + 3])
@pytest.mark.parametrize("biased", [False, True])
def test_normalisers_are_those_of_the_whole_layer(count: int, biased: bool, generator: torch.Generator) -> None:
    layer = torch.nn.Linear(8, 3000, bias=biased).requires_grad_(False)
    hidden = torch.randn(count, 8, generator=generator)
    torch.testing.assert_close(OutputLayer(layer, Table(layer.weight)).normaliser(hidden), layer(hidden).logsumexp(-1))


@pytest.mark.parametrize("biased", [False, True])
def test_what_follows_from_contexts_is_computed_once(biased: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(8, 3000, bias=biased).requires_grad_(False)
    hidden = torch.randn(6, 8, generator=generator)
    wanted = layer(hidden).log_softmax(-1)
    states: list[int] = []
    for name in ("logits", "normaliser"):
        made = getattr(OutputLayer, name)
        monkeypatch.setattr(OutputLayer, name, lambda self, of, made=made: [states.append(len(of)), made(self, of)][1])
    contexts, asked = Contexts(OutputLayer(layer, Table(layer.weight)), hidden), torch.tensor([4, 1])
    torch.testing.assert_close(contexts.all_log_probs(asked), wanted[asked])
    torch.testing.assert_close(contexts.all_log_probs(asked.clone()), wanted[asked])
    assert states == [2]
    at, tokens = torch.tensor([4, 4, 0, 1, 4]), torch.tensor([7, 2999, 7, 0, 7])
    torch.testing.assert_close(contexts.log_probs(at, tokens), wanted[at, tokens])
    assert states == [2, 1], "the normalisers of those asked for are known"
    assert contexts.normaliser.isnan().tolist() == [False, False, True, True, False, True]
    torch.testing.assert_close(contexts.log_probs(torch.arange(6), torch.arange(6)), wanted.diagonal())


def test_a_gradient_goes_through_what_follows_from_contexts(generator: torch.Generator) -> None:
    layer = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(3, 8, generator=generator, requires_grad=True)
    at, tokens = torch.tensor([0, 2, 2]), torch.tensor([5, 6, 7])
    (wanted,) = torch.autograd.grad(layer(hidden).log_softmax(-1)[at, tokens].sum(), hidden)
    (found,) = torch.autograd.grad(Contexts(OutputLayer(layer, Table(layer.weight)), hidden).log_probs(at, tokens).sum(), hidden)
    torch.testing.assert_close(found, wanted)
