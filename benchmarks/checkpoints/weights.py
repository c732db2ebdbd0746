"""Random weights that are spread enough for faults to show, and equal in every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from checkpoints.family import relative

SPREADS = (0.25, 0.12, 0.06, 0.03, 0.01)
"""Standard deviations that are tried: the first with which rounding errors stay small."""
NOISE, MAX_GROWTH, MAX_GRADIENT_GROWTH = 1e-5, 10.0, 50.0
"""Noise of this size in the embeddings may grow so many times on its way to the output, and to the
gradient: that depends on second derivatives, too.
"""
NUM_NOISES = 3
ROWS = (range(5, 17), [5 + 7 * i % 13 for i in range(24)], [17 - i % 12 for i in range(24)])
"""The ids that are read with it."""


@torch.no_grad()
def randomise(network: Any, seed: int = 0, spreads: tuple[float, ...] = SPREADS) -> None:
    """Draw every weight of a network anew: matrices around 0, others around where they start."""
    network.eval()
    starts = {}
    for name, weight in network.named_parameters():
        starts[name] = weight.nan_to_num().clamp(-2, 2) if weight.ndim < 2 else torch.zeros(())
    for spread in spreads:
        generator = torch.Generator().manual_seed(seed)
        for name, weight in network.named_parameters():
            weight.copy_(starts[name] + spread * torch.randn(weight.shape, generator=generator))
        if hasattr(network, "tie_weights"):
            network.tie_weights()
        if _is_steady(network):
            return


def _is_steady(network: Any) -> bool:
    """Whether small errors in the embeddings stay small in the output and in the gradient; so it is
    where the network does not read ids alone.
    """
    try:
        for row in ROWS:
            plain, gradient = _output_and_gradient(network, row, None)
            for noise_seed in range(1, 1 + NUM_NOISES):
                output, changed = _output_and_gradient(network, row, noise_seed)
                if not relative(output, plain) <= MAX_GROWTH * NOISE:
                    return False
                if not relative(changed, gradient) <= MAX_GRADIENT_GROWTH * NOISE:
                    return False
    except Exception:  # the check says so, by the same pass
        return True
    return True


def _output_and_gradient(
    network: Any, row: Sequence[int], noise_seed: int | None
) -> tuple[Tensor, Tensor]:
    """Return what a network makes of a row of ids, and the gradient of a fixed sum of it by their
    embeddings, to which noise is added if there is a seed.
    """
    read: list[Tensor] = []

    def noisy(_: Any, __: Any, out: Tensor) -> Tensor:
        embeddings = out.detach()
        if noise_seed is not None:
            generator = torch.Generator().manual_seed(noise_seed)
            noise = torch.randn(out.shape, generator=generator)
            embeddings = embeddings + NOISE * out.norm() / noise.norm() * noise
        read.append(embeddings.requires_grad_())
        return read[-1].clone()  # some networks write to what they have looked up

    layer = network.get_input_embeddings()
    with torch.enable_grad(), layer.register_forward_hook(noisy):
        output = network(input_ids=torch.tensor([list(row)]))[0]
        factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((output * factors).sum(), read[0])
    return output.detach(), gradient
