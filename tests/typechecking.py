"""Shapes are checked while the tests run: jaxtyping's annotations, in every function of `fuse` that
has some, at each of its first calls and at some of the later ones. What other annotations say is
checked by mypy. All at every call would double the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from itertools import count
from types import FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

SHAPE = re.compile(r"\b(Float|Int|Bool|UInt8)\[")
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Whole numbers may stand for floats, as PEP 484 says."""
everywhere = jaxtyping.jaxtyped
FIRST, EVERY = 50, 16
"""How many calls of a function are checked before one in so many is."""


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """Do what jaxtyping's own decorator does, where annotations have shapes."""

    def decorate(part: Any) -> Any:
        function = getattr(part, "fget", None) or getattr(part, "__func__", part)
        annotations = " ".join(map(str, getattr(function, "__annotations__", {}).values()))
        if not SHAPE.search(annotations):
            return part
        always = everywhere(part, typechecker=typechecker)
        return now_and_then(part, always) if isinstance(part, FunctionType) else always

    return decorate


def now_and_then(plain: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is checked at its first calls, and at some of the later ones."""
    calls = count()

    @wraps(plain)
    def function(*arguments: Any, **options: Any) -> Any:
        number = next(calls)
        chosen = checked if number < FIRST or number % EVERY == 0 else plain
        return chosen(*arguments, **options)

    return function


def install() -> None:
    """Check the shapes of `fuse` from now on; to be called before it is imported."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook("fuse", "typechecking.checked")
