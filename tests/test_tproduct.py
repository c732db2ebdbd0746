"""The laws of the t-product, as properties over random tensors."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.adapters.tproduct import NormalEquations, tidentity, tpinv, tproduct, ttranspose

sizes = st.integers(1, 5)
tubes = st.integers(1, 6)
seeds = st.integers(0, 2**31)
laws = settings(max_examples=50, deadline=None)


def tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@laws
@given(sizes, sizes, sizes, tubes, seeds)
def test_is_circular_convolution(n: int, d: int, p: int, m: int, seed: int) -> None:
    a, b = tensor(seed, n, d, m), tensor(seed + 1, d, p, m)
    plain = torch.stack(
        [sum(a[..., j] @ b[..., (i - j) % m] for j in range(m)) for i in range(m)], -1
    )
    torch.testing.assert_close(tproduct(a, b), plain)


@laws
@given(sizes, sizes, sizes, sizes, tubes, seeds)
def test_associativity(n: int, d: int, p: int, q: int, m: int, seed: int) -> None:
    a, b, c = tensor(seed, n, d, m), tensor(seed + 1, d, p, m), tensor(seed + 2, p, q, m)
    torch.testing.assert_close(tproduct(tproduct(a, b), c), tproduct(a, tproduct(b, c)))


@laws
@given(sizes, sizes, sizes, tubes, seeds)
def test_transpose(n: int, d: int, p: int, m: int, seed: int) -> None:
    a, b = tensor(seed, n, d, m), tensor(seed + 1, d, p, m)
    torch.testing.assert_close(ttranspose(tproduct(a, b)), tproduct(ttranspose(b), ttranspose(a)))
    torch.testing.assert_close(ttranspose(ttranspose(a)), a)
    y = tensor(seed + 3, n, p, m)
    torch.testing.assert_close(
        (tproduct(a, b) * y).sum(), (a * tproduct(y, ttranspose(b))).sum()
    )  # the adjoint


@laws
@given(sizes, sizes, tubes, seeds)
def test_identity_and_pseudo_inverse(n: int, d: int, m: int, seed: int) -> None:
    a = tensor(seed, n, d, m)
    torch.testing.assert_close(tproduct(tidentity(n, m, a), a), a)
    g = tpinv(a)
    ag, ga = tproduct(a, g), tproduct(g, a)
    torch.testing.assert_close(tproduct(ag, a), a)
    torch.testing.assert_close(tproduct(ga, g), g)
    torch.testing.assert_close(ttranspose(ag), ag)
    torch.testing.assert_close(ttranspose(ga), ga)


@laws
@given(tubes, seeds)
def test_normal_equations_find_the_least_squares_map(m: int, seed: int) -> None:
    x, y = tensor(seed, 12, 4, m), tensor(seed + 1, 12, 3, m)
    equations = NormalEquations(4, 3, m)
    for rows in (slice(0, 5), slice(5, 12)):  # a stream gives what one batch gives
        equations.add(x[rows], y[rows])
    torch.testing.assert_close(equations.solve(0.0), tproduct(tpinv(x), y), rtol=1e-6, atol=1e-8)
