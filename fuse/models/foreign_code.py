"""Code that comes with a model is never run, whatever the model's files ask for.

`trust_remote_code=False` is not enough: parts of transformers, and libraries that call it, do not
pass it on, and then ask on standard input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

WHAT_TO_DO = (
    "code that comes with a model is never run; choose a model that transformers knows itself, "
    "or make the network yourself and hand it over"
)
_lock = RLock()


class ForeignCode(ValueError):
    """A model asks for code of its own."""


@contextmanager
def without_foreign_code() -> Iterator[None]:
    """Let transformers run no code of a model, fetch none, and ask nobody, within a context.

    What needs such code raises ValueError there. One thread at a time.
    """
    from transformers import dynamic_module_utils as library

    replaced = {
        # Every import of a model's code begins by copying its file
        "get_cached_module_file": _refuse,
        "get_class_in_module": _refuse,
        "TIME_OUT_REMOTE_CODE": 0,  # seconds to wait for an answer: the question is an error
    }
    with _lock:
        before = {name: getattr(library, name) for name in replaced}
        vars(library).update(replaced)
        try:
            yield
        finally:
            vars(library).update(before)


def asks_for_code(error: BaseException) -> bool:
    """Whether an error says that a model has code of its own."""
    return isinstance(error, ForeignCode) or "trust_remote_code" in str(error)


def _refuse(*_: Any, **__: Any) -> Any:
    raise ForeignCode(WHAT_TO_DO)
