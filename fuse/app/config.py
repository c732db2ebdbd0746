"""From a command line to a plain, checked configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fuse.app import places
from fuse.app.check import check
from fuse.app.overrides import decoded, groups, prepared
from fuse.app.run_folder import claim
from fuse.errors import one_of

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
        "new_folder": cache(claim),
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the configuration of `python find_prompt.py OVERRIDES`.

    Raises:
        FuseError: with one line for each mistake.
    """
    register_resolvers()
    with initialize_config_dir(str(places.CONF), version_base=None):
        return checked(hydra_compose("config", prepared(overrides)))


def checked(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values, if all of them are allowed.

    Raises:
        FuseError: with one line for each mistake.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check(plain)
    return plain


def is_complaint(error: BaseException) -> bool:
    """Whether an error is Hydra's or OmegaConf's about a configuration, and no fault of ours."""
    return isinstance(error, COMPLAINTS) or "Config group override" in str(error)


def explain(error: BaseException) -> str:
    """Return one line about what Hydra or OmegaConf complain of."""
    text = " ".join(str(error).split())
    missing = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if missing:
        group, name = missing.groups()
        return f"{group}={name}: {one_of(name, groups().get(group, []))}"
    return text
