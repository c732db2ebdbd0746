"""Random weights that are spread enough for faults to show, and equal in every run."""

from __future__ import annotations

from typing import Any

import torch

SPREAD = 0.25


@torch.no_grad()
def randomise(network: Any, seed: int = 0) -> None:
    """Draw every weight of a network anew: matrices from N(0, 0.25), others near their start."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        if not weight.is_floating_point():
            continue
        noise = torch.randn(weight.shape, generator=generator) * SPREAD
        if weight.ndim < 2:
            noise = noise + weight.nan_to_num().clamp(-2, 2)
        weight.copy_(noise)
    tie = getattr(network, "tie_weights", None)
    if tie is not None:
        tie()
