"""The layers of a network that look token ids up in one table.

An encoder and a decoder may share the table, each with a layer of its own.

Shape letters: b rows, t positions, d width, u different tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TokenLookups:
    """All layers that look ids up in the table of one of them.

    Args:
        network: the network that they are parts of.
        layer: one of them.
    """

    def __init__(self, network: Any, layer: Any) -> None:
        self.layers = [layer]
        for module in network.modules():
            if module is not layer and _shares_weight(module, layer):
                self.layers.append(module)

    def returning(self, embeddings: Float[Tensor, "b t d"]) -> Any:
        """Let the layers return these embeddings for the ids that are looked up first.

        A decoder that reads the same ids one position later gets the embeddings one position later.
        """
        own: list[Tensor] = []

        def change(ids: Tensor | None, out: Tensor) -> Tensor:
            # A copy: some networks write to what they have looked up
            given = embeddings.clone() if embeddings.requires_grad else embeddings
            if ids is None or not own or torch.equal(ids, own[0]):
                own.extend([] if ids is None else [ids])
                return given
            if ids.shape == own[0].shape and torch.equal(ids[:, 1:], own[0][:, :-1]):
                return torch.cat([out[:, :1], given[:, :-1].to(out)], 1)
            return out

        return self._changing(change)

    def shifted(self, ids: Int[Tensor, " u"], shift: Float[Tensor, "u d"]) -> Any:
        """Let the layers add a shift to the embeddings of some tokens, wherever these stand."""

        def change(given: Tensor | None, out: Tensor) -> Tensor:
            assert given is not None
            return out + (given[..., None] == ids).to(shift) @ shift

        return self._changing(change)

    @contextmanager
    def _changing(self, change: Callable[[Tensor | None, Tensor], Tensor]) -> Iterator[None]:
        """Change what the layers return, within a context."""

        def changed(_: Any, given: tuple[Any, ...], out: Tensor) -> Tensor:
            ids = given[0] if given else None
            if isinstance(ids, Tensor) and ids.is_floating_point():
                return out  # the output layer, which multiplies with the table
            return change(ids, out)

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_hook(changed))
            yield


def _shares_weight(module: Any, layer: Any) -> bool:
    """Whether two layers have one weight in the same memory."""
    left, right = getattr(module, "weight", None), getattr(layer, "weight", None)
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return False
    if left.is_meta or right.is_meta or left.shape != right.shape:
        return False
    return left.data_ptr() == right.data_ptr() != 0
