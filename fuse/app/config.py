"""From a command line to a plain, checked configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fuse.app import places
from fuse.app.check import mistakes
from fuse.app.overrides import decoded, groups, prepared
from fuse.app.shard import folder_of_run
from fuse.errors import FuseError, one_of
from fuse.options import shown

_hydra = Lock()
"""Hydra composes one configuration at a time."""
COMPLAINTS = (HydraException, OmegaConfBaseException)
"""What Hydra and OmegaConf raise about a configuration."""


@cache
def register_resolvers() -> None:
    """Tell OmegaConf what `${here:...}` and the like stand for in the configuration."""
    resolvers: dict[str, Any] = {
        "here": places.here,
        "cache": places.cache,
        "minilm": places.minilm,
        "text": decoded,
        "new_folder": folder_of_run,
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the configuration of `python find_prompt.py OVERRIDES`.

    Raises:
        FuseError: with one line for each mistake.
    """
    register_resolvers()
    with _hydra, initialize_config_dir(str(places.CONF), version_base=None):
        return checked(hydra_compose("config", prepared(overrides)))


def checked(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values, if all of them are allowed.

    Raises:
        FuseError: with one line for each mistake.
    """
    unresolved: dict[str, str] = {}
    plain: Any = None
    while plain is None:
        try:
            plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            key = str(error.full_key or "")
            if not key or key in unresolved:
                raise
            unresolved[key] = explain(error)
            OmegaConf.update(config, key, None)  # so that the others are looked at, too
    lines = mistakes(plain)
    for key, line in unresolved.items():
        lines = [other for other in lines if not other.startswith(f"{key}=")]
        handed_on = "." in key and key.rpartition(".")[2] in unresolved  # as ${device} is
        lines += [] if handed_on else [line]
    if lines:
        raise FuseError("\n".join(lines))
    return plain


def is_complaint(error: BaseException) -> bool:
    """Whether an error is Hydra's or OmegaConf's about a configuration, and no fault of ours."""
    return isinstance(error, COMPLAINTS) or "Config group override" in str(error)


def explain(error: BaseException) -> str:
    """Return one line about what Hydra or OmegaConf complain of."""
    text = " ".join(str(error).split())
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        reason = text.partition(" full_key: ")[0]
        return f"{error.full_key}: cannot be resolved ({reason}); give {error.full_key}=VALUE"
    merged = re.fullmatch(r"Error merging override (?:\+\+)?(.*)", text)
    if merged:
        key, _, value = merged[1].partition("=")
        kind = "no such value stands there"
        return f"{key}={shown(value)}: {kind}; see python find_prompt.py --help"
    missing = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if missing:
        group, name = missing.groups()
        if group.startswith("hydra/"):
            return f"{group}={name}: not installed; pip install -e '.[sweep]', or check its name"
        return f"{group}={name}: {one_of(name, groups().get(group, []))}"
    return text
