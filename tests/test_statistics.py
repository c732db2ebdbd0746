"""Standardised scores and rank correlation, against plain formulas and at their edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.statistics import rank_correlation, standardised

numbers = st.integers(-5, 5).map(float)
lists = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20)


def average_ranks(values: list[float]) -> list[float]:
    """The mean of the ranks that equal values share, from 1 on."""
    ranks = []
    for value in values:
        below = sum(other < value for other in values)
        ranks.append(below + (values.count(value) + 1) / 2)
    return ranks


@given(lists)
def test_rank_correlation_is_pearsons_of_average_ranks(pairs: list[tuple[float, float]]) -> None:
    x, y = (list(side) for side in zip(*pairs, strict=True))
    got = rank_correlation(torch.tensor(x), torch.tensor(y))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert got == 0
        return
    ranks = torch.tensor([average_ranks(x), average_ranks(y)], dtype=torch.float64)
    assert got == pytest.approx(float(torch.corrcoef(ranks)[0, 1]), abs=1e-12)
    assert got == rank_correlation(torch.tensor(y), torch.tensor(x))
    assert -1 <= got <= 1


def test_rank_correlation_at_its_edges() -> None:
    up = torch.arange(50.0)
    assert rank_correlation(up, up.exp()) == pytest.approx(1, abs=1e-12)
    assert rank_correlation(up, -up) == pytest.approx(-1, abs=1e-12)
    for n in (0, 1):
        assert rank_correlation(torch.zeros(n), torch.zeros(n)) == 0
    assert rank_correlation(torch.ones(5), torch.arange(5.0)) == 0
    assert rank_correlation(torch.ones(5), torch.ones(5)) == 0
    with_inf = torch.tensor([0.0, 1.0, torch.inf])
    assert rank_correlation(with_inf, torch.arange(3.0)) == pytest.approx(1, abs=1e-12)
    half = rank_correlation(up.half(), up.half())
    assert math.isfinite(half) and half == pytest.approx(1, abs=1e-12)


def test_standardised_rows_have_mean_0_and_deviation_1_over_the_allowed() -> None:
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)) * 5 + 2
    allowed = torch.arange(20) % 3 != 0
    kept = standardised(scores, allowed)[:, allowed]
    torch.testing.assert_close(kept.mean(-1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.std(-1), torch.ones(3))
    assert torch.equal(standardised(scores), standardised(scores, torch.ones(20, dtype=torch.bool)))
    order = scores.argsort(-1)
    assert torch.equal(standardised(scores, allowed).argsort(-1), order)


@pytest.mark.parametrize("number", [0.0, 0.1, -1e30, 1e-30, 3e38])
def test_equal_scores_become_0(number: float) -> None:
    scores = torch.full((2, 7), number)
    scores[1] = torch.arange(7)
    found = standardised(scores)
    assert torch.equal(found[0], torch.zeros(7))
    assert found[1].isfinite().all() and found[1].any()
    allowed = torch.tensor([True, True, False, False, False, False, False])
    scores[0, 2:] = 5
    assert torch.equal(standardised(scores, allowed)[0], torch.zeros(7))


def test_fewer_than_two_allowed_scores_become_0() -> None:
    scores = torch.arange(4.0)[None]
    for count in (0, 1):
        assert torch.equal(standardised(scores, torch.arange(4) < count), torch.zeros(1, 4))
