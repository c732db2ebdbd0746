"""Random weights that are spread enough for faults to show, and equal in every run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from checkpoints.family import relative

SPREADS = (0.25, 0.12, 0.06, 0.03, 0.01)
"""Standard deviations that are tried: the first with which rounding errors stay small."""
NOISE, MAX_GROWTH = 1e-5, 10.0
"""Noise of this size in the embeddings may grow so many times on its way to the output."""
IDS = range(5, 17)


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
        if _growth(network) <= MAX_GROWTH:
            return


def _growth(network: Any) -> float:
    """Return how much larger a small error in the embeddings is in the output; 0 where the network
    does not read ids alone.
    """
    ids = torch.tensor([IDS])

    def noisy(_: Any, __: Any, out: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(out.shape, generator=generator)
        return out + NOISE * out.norm() / noise.norm() * noise

    try:
        layer = network.get_input_embeddings()
        plain = network(input_ids=ids)[0]
        with layer.register_forward_hook(noisy):
            changed = network(input_ids=ids)[0]
        return relative(changed, plain) / NOISE
    except Exception:  # the check says so, by the same pass
        return 0.0
