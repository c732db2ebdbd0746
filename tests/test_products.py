"""Products in pieces equal plain ones."""

from __future__ import annotations

import pytest
import torch

from fuse.models.output import Contexts, OutputLayer
from fuse.products import FEW, PIECE, inner_products


@pytest.mark.parametrize("shape", [(3,), (1, 3), (FEW, 3), (FEW + 1, 3), (2, 5, 3), (0, 3)])
@pytest.mark.parametrize("size", [1, PIECE, 2 * PIECE + 7])
def test_inner_products_equal_the_plain_product(shape: tuple[int, ...], size: int, generator: torch.Generator) -> None:
    points, table = torch.randn(shape, generator=generator), torch.randn(size, 3, generator=generator)
    torch.testing.assert_close(inner_products(points, table), points @ table.T)
    assert inner_products(points.requires_grad_(), table).requires_grad


@pytest.mark.parametrize("biased", [False, True])
def test_what_follows_from_contexts_is_computed_once(biased: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(8, 3000, bias=biased).requires_grad_(False)
    hidden = torch.randn(6, 8, generator=generator)
    wanted = layer(hidden).log_softmax(-1)
    states: list[int] = []
    for name in ("logits", "normaliser"):
        made = getattr(OutputLayer, name)
        monkeypatch.setattr(OutputLayer, name, lambda self, of, made=made: [states.append(len(of)), made(self, of)][1])
    contexts, asked = Contexts(OutputLayer(layer), hidden), torch.tensor([4, 1])
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
    (found,) = torch.autograd.grad(Contexts(OutputLayer(layer), hidden).log_probs(at, tokens).sum(), hidden)
    torch.testing.assert_close(found, wanted)
