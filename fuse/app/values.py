"""From checked values of a configuration to objects; every complaint names the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from fuse.app.hints import Config
from fuse.errors import FuseError

T = TypeVar("T")


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Let errors within this context begin with the key of the entry."""
    try:
        yield
    except FuseError as error:
        raise FuseError(f"{key}.{error}") from error


def make(kinds: Mapping[str, Callable[..., T]], config: Config, key: str) -> T:
    """Make the part that `config["name"]` names; null leaves an option at its default."""
    options = {}
    for name, value in config.items():
        if name != "name" and value is not None:
            options[name] = tuple(value) if isinstance(value, list) else value
    with naming(key):
        return kinds[config["name"]](**options)
