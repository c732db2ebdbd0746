"""The t-product algebra of third-order tensors, computed through the FFT along the last axis.

A tensor [n, d, m] is a matrix [n, d] whose entries are tubes of length m; tubes multiply by
circular convolution. The FFT along m turns a t-product into m independent matrix products (Kilmer
and Martin, "Factorization strategies for third-order tensors", 2011).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def tproduct(a: Float[Tensor, "n d m"], b: Float[Tensor, "d p m"]) -> Float[Tensor, "n p m"]:
    """Multiply: result[..., i] = sum over j of a[..., j] @ b[..., (i - j) mod m]."""
    if a.device.type == "mps":
        # Its real FFTs have been wrong, and its complex products missing, in versions of torch that
        # we allow (pytorch issues 124096, 126649 and 127178)
        return tproduct(a.cpu(), b.cpu()).to(a.device)
    product = torch.einsum("ndf,dpf->npf", torch.fft.rfft(a), torch.fft.rfft(b))
    return torch.fft.irfft(product, n=a.shape[-1])


def ttranspose(a: Float[Tensor, "n d m"]) -> Float[Tensor, "d n m"]:
    """Return the adjoint: every slice transposed, and slices 1..m-1 in reverse order."""
    return a.transpose(0, 1).flip(-1).roll(1, -1)


def tidentity(n: int, m: int, like: Tensor) -> Float[Tensor, "n n m"]:
    """Return the neutral element: the identity matrix in slice 0, zeros elsewhere.

    It has the dtype and device of `like`.
    """
    identity = like.new_zeros(n, n, m)
    identity[..., 0] = torch.eye(n, dtype=like.dtype, device=like.device)
    return identity


def tpinv(a: Float[Tensor, "n d m"]) -> Float[Tensor, "d n m"]:
    """Return the pseudo-inverse.

    It is the one tensor that meets the four Moore-Penrose conditions under the t-product.
    """
    inverse = torch.linalg.pinv(torch.fft.rfft(a).movedim(-1, 0)).movedim(0, -1)
    return torch.fft.irfft(inverse, n=a.shape[-1])


class NormalEquations:
    """Ridge least squares X * G ~ Y under the t-product, summed over a stream of examples.

    Sums are in double precision on the CPU. Memory is that of G's normal equations, whatever the
    number of examples n.
    """

    def __init__(self, d_source: int, d_target: int, m: int) -> None:
        frequencies = m // 2 + 1
        self.m = m
        self.num_examples = 0
        self.xx = torch.zeros(frequencies, d_source, d_source, dtype=torch.complex128)
        self.xy = torch.zeros(frequencies, d_source, d_target, dtype=torch.complex128)

    def add(self, x: Float[Tensor, "n d m"], y: Float[Tensor, "n p m"]) -> None:
        """Add n examples, in the precision of X and Y; only their sums have to be in double.

        X and Y are on the CPU.
        """
        fx, fy = torch.fft.rfft(x).movedim(-1, 0), torch.fft.rfft(y).movedim(-1, 0)
        self.xx += fx.mH @ fx
        self.xy += fx.mH @ fy
        self.num_examples += x.shape[0]

    def solve(self, ridge: float) -> Float[Tensor, "d p m"]:
        """Return G, the minimiser of |X * G - Y|^2 + r |G|^2.

        Here r is `ridge` x the mean diagonal of X^T * X.
        """
        mean_diagonal = self.xx.diagonal(dim1=-2, dim2=-1).real.mean()
        mean_diagonal = mean_diagonal.clamp_min(torch.finfo(torch.float64).tiny)
        eye = torch.eye(self.xx.shape[-1], dtype=self.xx.dtype)
        factor = torch.linalg.cholesky(self.xx + ridge * mean_diagonal * eye)
        solution = torch.cholesky_solve(self.xy, factor)
        return torch.fft.irfft(solution.movedim(0, -1), n=self.m)
