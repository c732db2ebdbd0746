"""Change what one module of a network reads or returns.

What the functions return is a context: the change ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def changing_input(module: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the first argument that a module is given."""
    return module.register_forward_pre_hook(lambda _, given: (change(given[0]), *given[1:]))


def changing_output(module: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensor that a module returns, alone or as the first of several."""

    def changed(_: Any, __: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return module.register_forward_hook(changed)
