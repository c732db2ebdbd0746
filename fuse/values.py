"""Values of a configuration, checked; every complaint names the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeVar

from fuse.errors import FuseError

Config = Mapping[str, Any]
T = TypeVar("T")


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors within this context begin with the key of the entry."""
    try:
        yield
    except FuseError as error:
        raise FuseError(f"{key}.{error}") from error


def options_of(kinds: Mapping[str, Callable[..., T]], config: Config, key: str) -> T:
    """The dataclass that `config["name"]` names, made from the other options; null leaves an option at its default."""
    options = dict(config)
    kind = pick(kinds, options.pop("name"), key)
    types = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in options:
        if name not in types:
            raise FuseError(f"{key}.{name}={options[name]}: no such option; expected one of {', '.join(types)}")
    checks = {"int": whole_number, "float": number, "Sequence[str]": list_of}
    checked = {
        name: checks.get(str(types.get(name)), _as_is)(value, f"{key}.{name}") for name, value in options.items() if value is not None
    }
    return kind(**checked)


def pick(known: Mapping[str, T], name: Any, key: str) -> T:
    """`known[name]`, or an error that tells the near match and all choices."""
    if name in known:
        return known[name]
    near = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise FuseError(f"{key}={name}: {hint}expected one of {', '.join(known)}")


def whole_number(value: Any, key: str, at_least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value < 2**63:
        raise FuseError(f"{key}={value}: expected a whole number from {at_least} to 2**63 - 1")
    return value


def number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise FuseError(f"{key}={value}: expected a number")
    return float(value)


def truth(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise FuseError(f"{key}={value}: expected true or false")
    return value


def list_of(value: Any, key: str) -> tuple[Any, ...]:
    """A list, or one value as a list of one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        raise FuseError(f"{key}={value}: expected a list such as [a,b]")
    return tuple(value)


def setting(value: Any, key: str, default: float | None) -> float:
    """A setting of an adapter, of the type of its default: a whole number above 0, or any number that is not below."""
    checked = whole_number(value, key, at_least=1) if isinstance(default, int) else number(value, key)
    if checked < 0:
        raise FuseError(f"{key}={value}: expected 0 or more")
    return checked


def _as_is(value: Any, key: str) -> Any:
    return value
