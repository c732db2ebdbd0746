"""Products with fixed matrices: CPUs take half the time if oneDNN has prepacked these.

A prepacked weight holds a matrix in the order in which oneDNN's kernels read it. It is made at the
first product, and anew where the matrix has changed; torch does not notice numbers that were
written through `.data`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_PREPACKED_WEIGHT = 1 << 22
"""Up to how many numbers a layer's weight is prepacked for its products: a matter of memory."""
MAX_PREPACKED_FOR_GRADIENT = 1 << 20
"""Up to how many numbers it is prepacked once more, for gradients."""
MAX_SIZES = 8
"""With how many numbers of points a matrix is multiplied as they come. oneDNN keeps a program for
each of the last thousand sizes, hundreds of kilobytes each: others are rounded up.
"""
SIZES_PER_DOUBLING = 8
"""To how many numbers of points between a power of two and the next others are rounded up."""


@cache
def _onednn_works() -> bool:
    """Whether torch has the products with prepacked weights of its compiler, and they work here."""
    points = torch.ones(2, 3, dtype=torch.float32, device="cpu").cumsum(0)
    matrix = torch.ones(4, 3, dtype=torch.float32, device="cpu").cumsum(0)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix)
        product = torch.ops.mkldnn._linear_pointwise(points, packed, None, "none", [], "")
        return torch.equal(product, points @ matrix.T)
    except (AttributeError, RuntimeError):
        return False


def _product(
    points: Float[Tensor, "*n i"], packed: Tensor, bias: Tensor | None, size: int
) -> Float[Tensor, "*n o"]:
    """Return points @ matrix.T + bias, computed with `size` points."""
    shape = points.shape[:-1]
    missing = size - shape.numel()
    if missing:
        points = torch.nn.functional.pad(points.flatten(0, -2), (0, 0, 0, missing))
    product = torch.ops.mkldnn._linear_pointwise(points, packed, bias, "none", [], "")
    return product[: shape.numel()].unflatten(0, shape) if missing else product


@cache
def _padding_changes_nothing() -> bool:
    """Whether points have the same product, to the last bit, beside points that are zero."""
    points = torch.linspace(-1, 1, 37 * 96, dtype=torch.float32, device="cpu").sin().view(37, 96)
    packed = torch.ops.mkldnn._reorder_linear_weight(points)
    alone = _product(points, packed, None, len(points))
    return torch.equal(alone, _product(points, packed, None, 40))


class Prepacked:
    """What oneDNN has prepacked of one matrix, or of some of its rows."""

    def __init__(self) -> None:
        self._source: tuple[Tensor, int] | None = None
        """The matrix that was prepacked, and how often it had been written to."""
        self._packed: dict[tuple[int, int, bool], Tensor] = {}
        self._sizes: set[int] = set()
        """The numbers of points that are multiplied as they come."""

    def __reduce__(self) -> tuple[type[Prepacked], tuple[()]]:
        """A network that is copied or saved prepacks its own weights."""
        return Prepacked, ()

    def serves(self, points: Tensor, matrix: Tensor, max_numbers: int) -> bool:
        """Whether products of such points with such a matrix can be prepacked.

        The matrix has to be fixed, in float32 on the CPU, and have at most so many numbers.
        """
        fixed = type(matrix) in (Tensor, torch.nn.Parameter)
        fixed = fixed and not (matrix.requires_grad or matrix.is_inference())
        float32 = points.dtype == matrix.dtype == torch.float32 and points.device.type == "cpu"
        return fixed and float32 and matrix.numel() <= max_numbers and _onednn_works()

    def linear(
        self,
        points: Float[Tensor, "*n i"],
        matrix: Tensor,
        bias: Tensor | None,
        transposed: bool,
        rows: slice,
    ) -> Float[Tensor, "*n o"]:
        """Return points @ matrix[rows].T + bias; points @ matrix[rows] + bias if `transposed`."""
        if not self._is_source(matrix):
            self._source, self._packed = (matrix.detach(), matrix._version), {}
        key = rows.start, rows.stop, transposed
        if key not in self._packed:
            part = matrix.detach()[rows]
            packed = torch.ops.mkldnn._reorder_linear_weight(part.T if transposed else part)
            self._packed[key] = packed
        size = self._size(points.shape[:-1].numel())
        return _product(points, self._packed[key], bias, size)

    def _size(self, count: int) -> int:
        """Return with how many points so many are multiplied: the others are zero."""
        if len(self._sizes) < MAX_SIZES:
            self._sizes.add(count)
        if not count or count in self._sizes or not _padding_changes_nothing():
            return count
        step = max(1, (1 << count.bit_length() - 1) // SIZES_PER_DOUBLING)
        return -(-count // step) * step

    def _is_source(self, matrix: Tensor) -> bool:
        """Whether this matrix, as it is, was prepacked."""
        if self._source is None:
            return False
        old, version = self._source
        same_memory = matrix.data_ptr() == old.data_ptr() and matrix.stride() == old.stride()
        return version == matrix._version and same_memory and matrix.size() == old.size()


class _PrepackedLinear(torch.autograd.Function):
    """A layer's product, with a gradient by the points."""

    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        prepacked: Prepacked,
        matrix: Tensor,
        bias: Tensor | None,
        transposed: bool,
    ) -> Tensor:
        ctx.layer = prepacked, matrix, transposed
        return prepacked.linear(points, matrix, bias, transposed, slice(0, len(matrix)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        prepacked, matrix, transposed = ctx.layer
        if prepacked.serves(gradient, matrix, MAX_PREPACKED_FOR_GRADIENT):
            rows = slice(0, len(matrix))
            by_points = prepacked.linear(gradient, matrix, None, not transposed, rows)
        else:
            by_points = gradient @ (matrix.T if transposed else matrix)
        return by_points, None, None, None, None


def linear(
    points: Float[Tensor, "*n i"],
    weight: Tensor,
    bias: Float[Tensor, " o"] | None,
    transposed: bool,
    prepacked: Prepacked,
) -> Float[Tensor, "*n o"]:
    """Return a layer's points @ weight.T + bias, or points @ weight + bias if `transposed`."""
    if not prepacked.serves(points, weight, MAX_PREPACKED_WEIGHT):
        return torch.nn.functional.linear(points, weight.T if transposed else weight, bias)
    if points.requires_grad and torch.is_grad_enabled():
        return _PrepackedLinear.apply(points, prepacked, weight, bias, transposed)
    return prepacked.linear(points, weight, bias, transposed, slice(0, len(weight)))
