"""Products with prepacked weights equal plain ones, in forward passes and in gradients."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from fuse.nn import prepacked
from fuse.nn.embedding_table import BLOCK_ROWS, EmbeddingTable
from fuse.nn.fixed_layers import FIXED, Acceleration
from fuse.nn.lm_head import MAX_CPU_STATES, LazyLogits, LMHead


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 5, 3), (0, 3)])
@pytest.mark.parametrize("size", [1, BLOCK_ROWS, 2 * BLOCK_ROWS + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_equal_the_plain_product(
    shape: tuple[int, ...], size: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    points = torch.randn(shape, generator=generator, dtype=dtype)
    weight = torch.randn(size, 3, generator=generator, dtype=dtype)
    table = EmbeddingTable(weight)
    torch.testing.assert_close(table.inner_products(points), points @ weight.T)
    assert table.inner_products(points.requires_grad_()).requires_grad


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("for_gradient", [True, False])
def test_a_layer_is_what_it_was(
    transposed: bool,
    for_gradient: bool,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not for_gradient:
        monkeypatch.setattr(prepacked, "MAX_PREPACKED_FOR_GRADIENT", 0)
    layer: Any = Conv1D(6, 4) if transposed else torch.nn.Linear(4, 6)
    network = torch.nn.Sequential(deepcopy(layer.requires_grad_(False)))
    acceleration, quick = Acceleration(network), network[0]
    assert type(quick) is FIXED[type(layer)]

    def check() -> None:
        points = torch.randn(2, 3, 4, generator=generator).to(layer.weight).requires_grad_()
        up = torch.randn(2, 3, 6, generator=generator).to(layer.weight)
        torch.testing.assert_close(quick(points.detach()), layer(points))
        (found,) = torch.autograd.grad(quick(points), points, up)
        (expected,) = torch.autograd.grad(layer(points), points, up)
        torch.testing.assert_close(found, expected)

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
    acceleration.turn(False)
    assert type(network[0]) is type(layer)
    assert vars(network[0]).keys() == vars(layer).keys()


def test_weights_are_prepacked_where_torch_can(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Elsewhere the same products are computed the plain way."""
    points = torch.randn(5, 8, generator=generator)
    weight = torch.randn(40, 8, generator=generator)
    table = EmbeddingTable(weight)
    table.inner_products(points)
    assert torch.backends.mkldnn.is_available() is bool(table._prepacked._packed)
    monkeypatch.setattr(prepacked, "_onednn_works", lambda: False)
    torch.testing.assert_close(table.inner_products(points), points @ weight.T)


def test_no_more_than_some_numbers_of_points_are_multiplied_as_they_come(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Of each number oneDNN keeps a program; the others are rounded up, with equal results."""
    weight = torch.randn(40, 8, generator=generator)
    table, sizes, product = EmbeddingTable(weight), set(), prepacked._product

    def watch(points: torch.Tensor, packed: Any, bias: Any, size: int) -> torch.Tensor:
        sizes.add(size)
        return product(points, packed, bias, size)

    monkeypatch.setattr(prepacked, "_product", watch)
    for count in range(1, 1000):
        points = torch.randn(count, 8, generator=generator)
        assert torch.equal(table.inner_products(points), product(
            points, torch.ops.mkldnn._reorder_linear_weight(weight), None, count
        ))  # fmt: skip
    assert len(sizes) < prepacked.MAX_SIZES + 8 * prepacked.SIZES_PER_DOUBLING
    assert prepacked.MAX_SIZES in sizes and 999 not in sizes


@pytest.mark.parametrize("count", [1, MAX_CPU_STATES + 3])
@pytest.mark.parametrize("biased", [False, True])
def test_log_normalisers_are_those_of_the_whole_layer(
    count: int, biased: bool, generator: torch.Generator
) -> None:
    layer = torch.nn.Linear(8, 3000, bias=biased).requires_grad_(False)
    hidden = torch.randn(count, 8, generator=generator)
    head = LMHead(layer, EmbeddingTable(layer.weight))
    torch.testing.assert_close(head.log_normaliser(hidden), layer(hidden).logsumexp(-1))


@pytest.mark.parametrize("biased", [False, True])
def test_logits_are_computed_once(
    biased: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = torch.nn.Linear(8, 3000, bias=biased).requires_grad_(False)
    hidden = torch.randn(6, 8, generator=generator)
    expected = layer(hidden).log_softmax(-1)
    num_states: list[int] = []
    for name in ("logits", "log_normaliser"):
        method = getattr(LMHead, name)

        def counted(self: LMHead, states: torch.Tensor, method: Any = method) -> torch.Tensor:
            num_states.append(len(states))
            return method(self, states)

        monkeypatch.setattr(LMHead, name, counted)
    lazy, index = (
        LazyLogits(LMHead(layer, EmbeddingTable(layer.weight)), hidden),
        torch.tensor([4, 1]),
    )
    torch.testing.assert_close(lazy.all_log_probs(index), expected[index])
    torch.testing.assert_close(lazy.all_log_probs(index.clone()), expected[index])
    assert num_states == [2]
    index, tokens = torch.tensor([4, 4, 0, 1, 4]), torch.tensor([7, 2999, 7, 0, 7])
    torch.testing.assert_close(lazy.log_probs(index, tokens), expected[index, tokens])
    assert num_states == [2, 1], "the log-normalisers of those asked for are known"
    assert lazy.log_normaliser.isnan().tolist() == [False, False, True, True, False, True]
    torch.testing.assert_close(
        lazy.log_probs(torch.arange(6), torch.arange(6)), expected.diagonal()
    )


def test_a_gradient_goes_through_lazy_logits(generator: torch.Generator) -> None:
    layer = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(3, 8, generator=generator, requires_grad=True)
    index, tokens = torch.tensor([0, 2, 2]), torch.tensor([5, 6, 7])
    (expected,) = torch.autograd.grad(layer(hidden).log_softmax(-1)[index, tokens].sum(), hidden)
    lazy = LazyLogits(LMHead(layer, EmbeddingTable(layer.weight)), hidden)
    (found,) = torch.autograd.grad(lazy.log_probs(index, tokens).sum(), hidden)
    torch.testing.assert_close(found, expected)
