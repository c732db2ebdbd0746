"""Shapes are checked while the tests run: jaxtyping's annotations, in every function of `fuse` that
has some. What other annotations say is checked by mypy: at run time it would double the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

SHAPE = re.compile(r"\b(Float|Int|Bool|UInt8)\[")
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Whole numbers may stand for floats, as PEP 484 says."""
everywhere = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """Do what jaxtyping's own decorator does, where annotations have shapes."""

    def decorate(part: Any) -> Any:
        function = getattr(part, "fget", None) or getattr(part, "__func__", part)
        annotations = " ".join(map(str, getattr(function, "__annotations__", {}).values()))
        return everywhere(part, typechecker=typechecker) if SHAPE.search(annotations) else part

    return decorate


def install() -> None:
    """Check the shapes of `fuse` from now on; to be called before it is imported."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook("fuse", "typechecking.checked")
