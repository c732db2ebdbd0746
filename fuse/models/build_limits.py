"""How much a network may hold, by its weights' files: a config alone claims anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import Tensor
from torch.nn.modules import module as torch_modules

from fuse.errors import FuseError

SPARE_NUMBERS = 2**26
"""What masks and position tables may take, which stand in no file."""
SPARE_MODULES = 10_000
NUMBERS_PER_STORED = 4
"""Tied weights are stored once, and used twice."""
NUMBERS_PER_PACKED = 32
"""Quantised weights share bytes."""
MODULES_PER_TENSOR = 16


@dataclass(frozen=True)
class StoredSize:
    """What the headers of a model's safetensors files tell."""

    num_tensors: int
    num_numbers: int
    quantised: bool = False

    @property
    def max_numbers(self) -> int:
        """How many numbers a network with these weights may hold."""
        factor = NUMBERS_PER_PACKED if self.quantised else NUMBERS_PER_STORED
        return factor * self.num_numbers + SPARE_NUMBERS

    @property
    def max_modules(self) -> int:
        """How many modules it may have."""
        return MODULES_PER_TENSOR * self.num_tensors + SPARE_MODULES


@contextmanager
def limited_build(model_id: str, stored: StoredSize) -> Iterator[None]:
    """Break off the making of a network that is far larger than its weights, within a context.

    Raises:
        FuseError: more parts or numbers were made than the weights' files can fill.
    """
    count = _Count(model_id, stored, get_ident())
    with ExitStack() as hooks:
        for register, hook in (
            (torch_modules.register_module_module_registration_hook, count.module),
            (torch_modules.register_module_parameter_registration_hook, count.tensor),
            (torch_modules.register_module_buffer_registration_hook, count.tensor),
        ):
            hooks.callback(register(hook).remove)
        yield


class _Count:
    """What one thread has made so far."""

    def __init__(self, model_id: str, stored: StoredSize, thread: int) -> None:
        self._model_id, self._stored, self._thread = model_id, stored, thread
        self._modules = 0
        self._numbers = 0
        self._sizes: dict[tuple[int, str], int] = {}

    def module(self, parent: Any, name: str, child: Any) -> None:
        """Count a module."""
        if get_ident() == self._thread:
            self._modules += 1
            if self._modules > self._stored.max_modules:
                self._refuse("parts")

    def tensor(self, parent: Any, name: str, value: Tensor | None) -> None:
        """Count a weight or a buffer, once where it is set again."""
        if get_ident() == self._thread and value is not None:
            place = id(parent), name
            self._numbers += value.numel() - self._sizes.get(place, 0)
            self._sizes[place] = value.numel()
            if self._numbers > self._stored.max_numbers:
                self._refuse("numbers")

    def _refuse(self, what: str) -> None:
        raise FuseError(
            f"model_id={self._model_id}: its config describes a network with far more {what} than "
            f"the {self._stored.num_numbers} numbers of its weights; repair its config or choose "
            "another model"
        )
