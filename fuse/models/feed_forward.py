"""The feed-forward part of a network's last layer, computed for those tokens alone that somebody reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor


class LastFeedForward:
    """That of a transformer, if each of its `layers` layers has one under the name `mlp`, which maps each token's state to another."""

    def __init__(self, transformer: Any, layers: int) -> None:
        found = [module for name, module in transformer.named_modules() if name.split(".")[-1] == "mlp"]
        self._module = found[-1] if len(found) == layers and len(signature(found[-1].forward).parameters) == 1 else None

    @contextmanager
    def only(self, *index: Any) -> Iterator[None]:
        """Within this context it reads states [b t d] at `[index]`; to the others, which have no reader, it adds nothing."""
        if self._module is None:
            yield
            return
        shapes: list[torch.Size] = []

        def there(device: torch.device) -> tuple[Any, ...]:
            return tuple(part.to(device) if isinstance(part, Tensor) else part for part in index)

        def narrow(_: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
            (states,) = arguments
            shapes.append(states.shape)
            return (states[there(states.device)],)

        def widen(_: Any, __: Any, out: Any) -> Any:
            found, *others = out if isinstance(out, tuple) else (out,)
            whole = found.new_zeros(shapes.pop())
            whole[there(found.device)] = found
            return (whole, *others) if isinstance(out, tuple) else whole

        hooks = self._module.register_forward_pre_hook(narrow), self._module.register_forward_hook(widen)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
