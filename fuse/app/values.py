"""Values of a configuration, checked; every complaint names the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fuse.errors import FuseError, one_of

Config = Mapping[str, Any]
T = TypeVar("T")


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Let errors within this context begin with the key of the entry."""
    try:
        yield
    except FuseError as error:
        raise FuseError(f"{key}.{error}") from error


def options_of(kinds: Mapping[str, Callable[..., T]], config: Config, key: str) -> T:
    """Make the dataclass that `config["name"]` names; null leaves an option at its default."""
    options = dict(config)
    kind = pick(kinds, options.pop("name"), key)
    types = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    checks = {"int": whole_number, "float": number, "Sequence[str]": list_of}
    checked = {}
    for name, value in options.items():
        if name not in types:
            known = ", ".join(types)
            raise FuseError(f"{key}.{name}={value}: no such option; expected one of {known}")
        if value is not None:
            check = checks.get(str(types[name]), _as_is)
            checked[name] = check(value, f"{key}.{name}")
    with naming(key):
        return kind(**checked)


def pick(known: Mapping[str, T], name: Any, key: str) -> T:
    """Return `known[name]`.

    Raises:
        FuseError: there is no such name; the message has the near match and all choices.
    """
    if name in known:
        return known[name]
    raise FuseError(f"{key}={name}: {one_of(name, known)}")


def whole_number(value: Any, key: str, at_least: int = 0) -> int:
    """Return a whole number from `at_least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value < 2**63:
        raise FuseError(f"{key}={value}: expected a whole number from {at_least} to 2**63 - 1")
    return value


def number(value: Any, key: str) -> float:
    """Return a finite number."""
    wrong = isinstance(value, bool) or not isinstance(value, int | float)
    if wrong or value != value or abs(value) == float("inf"):
        raise FuseError(f"{key}={value}: expected a number")
    return float(value)


def positive_number(value: Any, key: str) -> float:
    """Return a finite number above 0."""
    if not number(value, key) > 0:
        raise FuseError(f"{key}={value}: expected a number above 0")
    return float(value)


def truth(value: Any, key: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise FuseError(f"{key}={value}: expected true or false")
    return value


def list_of(value: Any, key: str) -> tuple[Any, ...]:
    """Return a list; one text counts as a list of one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        raise FuseError(f"{key}={value}: expected a list such as [a,b]")
    return tuple(value)


def setting(value: Any, key: str, default: float | None) -> float:
    """Return a setting of an adapter: of a default that is whole a whole number above 0, else any
    from 0 on.
    """
    checked = (
        whole_number(value, key, at_least=1) if isinstance(default, int) else number(value, key)
    )
    if checked < 0:
        raise FuseError(f"{key}={value}: expected 0 or more")
    return checked


def _as_is(value: Any, key: str) -> Any:
    return value
