"""The one exception that speaks to users, and how it speaks."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FuseError(Exception):
    """A mistake that the user can mend.

    Its message names the key, the value, what was expected and what to do. It can always be
    printed: a lone surrogate is written as an escape.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(str(message).encode(errors="backslashreplace").decode())


def did_you_mean(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "did you mean NAME? " for the known name nearest to `name`, case aside; "" if none is
    near.
    """
    by_lower = {one.lower(): one for one in known}
    near = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return f"did you mean {by_lower[near[0]]}? " if near else ""


def one_of(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return what to say of a name that is not known: the nearest of the known ones, and all."""
    known = list(known)
    return f"{did_you_mean(name, known, cutoff)}expected one of {', '.join(known)}"


def one_line(value: object) -> str:
    """Return a value as text for a message, with escapes for what is not to be printed: ends of
    lines, terminal codes, bytes of file names that are no text.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
