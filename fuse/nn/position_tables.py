"""How many positions a network knows, by the tables in which it looks them up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

MIN_POSITIONS = 3
"""From how many consecutive indices on these are taken for positions."""


@contextmanager
def watching_positions(network: Any, tokens: Any) -> Iterator[list[int]]:
    """Note how many tokens the position tables have room for, while the network reads one row.

    Some tables begin with entries of other use: RoBERTa's positions are counted from 2 on.

    Args:
        tokens: the layers that look token ids up.

    Yields:
        A list that gets the limit of each table.
    """
    limits: list[int] = []

    def note(module: Any, given: tuple[Any, ...]) -> None:
        index = given[0].flatten() if given and isinstance(given[0], Tensor) else torch.zeros(0)
        if len(index) < MIN_POSITIONS or index.is_floating_point() or index.dtype == torch.bool:
            return
        if bool((index.diff() == 1).all()):
            limits.append(module.num_embeddings - int(index[0]))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, torch.nn.Embedding) and module not in tokens:
                hooks.enter_context(module.register_forward_pre_hook(note))
        yield limits
