"""Products of points with fixed matrices, which CPUs do in half the time with the copies that oneDNN makes of these.

A copy holds a matrix in the order in which oneDNN's kernels read it. It is made at the first product, and anew where the
matrix has changed; torch cannot tell of numbers that were written through `.data`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

PIECE = 1024
"""How many lines of a table are taken at once, so that a CPU's cache holds what is made of them."""
BLOCK = 1 << 26
"""How many inner products are made at once on other devices."""
LAYER, SLOPE, TABLE = 1 << 22, 1 << 20, 1 << 26
"""Up to how many numbers a layer's weight is copied for its products, for gradients, and a table: a matter of memory."""


@cache
def _onednn() -> bool:
    """Whether torch has the products with reordered weights that its compiler uses, and they work here."""
    points, matrix = (torch.ones(lines, 3, dtype=torch.float32, device="cpu").cumsum(0) for lines in (2, 4))
    try:
        copy = torch.ops.mkldnn._reorder_linear_weight(matrix)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(points, copy, None, "none", [], ""), points @ matrix.T)
    except (AttributeError, RuntimeError):
        return False


class Copies:
    """What oneDNN makes of one matrix."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, int] | None = None
        """The matrix that the copies were made of, and how often it had been written to."""
        self._made: dict[tuple[int, int, bool], Tensor] = {}

    def __reduce__(self) -> tuple[type[Copies], tuple[()]]:
        """A network that is copied or saved makes its own."""
        return Copies, ()

    def serve(self, points: Tensor, matrix: Tensor, most: int) -> bool:
        """Whether there are copies for such points of such a matrix, if it has at most so many numbers."""
        fixed = type(matrix) in (Tensor, torch.nn.Parameter) and not (matrix.requires_grad or matrix.is_inference())
        kind = points.dtype == matrix.dtype == torch.float32 and points.device.type == "cpu"
        return fixed and kind and matrix.numel() <= most and _onednn()

    def times(
        self, points: Float[Tensor, "*n i"], matrix: Tensor, bias: Tensor | None, turned: bool, lines: slice
    ) -> Float[Tensor, "*n o"]:
        """points @ matrix[lines].T + bias, or points @ matrix[lines] + bias if the matrix is `turned`."""
        if not self._known(matrix):
            self._of, self._made = (matrix.detach(), matrix._version), {}
        key = lines.start, lines.stop, turned
        if key not in self._made:
            part = matrix.detach()[lines]
            self._made[key] = torch.ops.mkldnn._reorder_linear_weight(part.T if turned else part)
        return torch.ops.mkldnn._linear_pointwise(points, self._made[key], bias, "none", [], "")

    def _known(self, matrix: Tensor) -> bool:
        """Whether the copies are of this matrix as it is."""
        if self._of is None:
            return False
        old, version = self._of
        return version == matrix._version and all(of(old) == of(matrix) for of in (Tensor.data_ptr, Tensor.stride, Tensor.size))


class _Affine(torch.autograd.Function):
    """A layer's product, with a gradient by the points."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, copies: Copies, matrix: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
        ctx.of = copies, matrix, turned
        return copies.times(points, matrix, bias, turned, slice(0, len(matrix)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        copies, matrix, turned = ctx.of
        if not copies.serve(slope, matrix, SLOPE):
            return slope @ (matrix.T if turned else matrix), None, None, None, None
        return copies.times(slope, matrix, None, not turned, slice(0, len(matrix))), None, None, None, None


def affine(
    points: Float[Tensor, "*n i"], weight: Tensor, bias: Float[Tensor, " o"] | None, turned: bool, copies: Copies
) -> Float[Tensor, "*n o"]:
    """A layer's points @ weight.T + bias, or points @ weight + bias if its weight is `turned`."""
    if not copies.serve(points, weight, LAYER):
        return linear(points, weight.T if turned else weight, bias)
    if points.requires_grad and torch.is_grad_enabled():
        return _Affine.apply(points, copies, weight, bias, turned)
    return copies.times(points, weight, bias, turned, slice(0, len(weight)))


class Table:
    """Inner products with the lines of a table."""

    def __init__(self, lines: Float[Tensor, "v d"]) -> None:
        self.lines = lines
        self._copies = Copies()

    def inner_products(self, points: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """points @ lines.T. A gradient goes the plain way."""
        if points.requires_grad or not self._copies.serve(points, self.lines, TABLE):
            return points @ self.lines.T
        out = points.new_empty(*points.shape[:-1], len(self.lines))
        for part, found in self.pieces(points):
            out[..., part] = found
        return out

    def pieces(self, points: Float[Tensor, "*n d"]) -> Iterator[tuple[slice, Float[Tensor, "*n _"]]]:
        """points @ lines.T, some lines after others, which the slice tells. No gradient goes through them."""
        copied = self._copies.serve(points, self.lines, TABLE)
        count = points.shape[:-1].numel()
        width = PIECE if points.device.type == "cpu" else max(PIECE, BLOCK // max(1, count))
        for begin in range(0, len(self.lines), width):
            part = slice(begin, min(begin + width, len(self.lines)))
            yield part, self._copies.times(points, self.lines, None, False, part) if copied else points @ self.lines[part].T
