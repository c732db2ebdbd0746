"""The configuration files and the code tell the same defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import fuse
from fuse.adapter import ADAPTERS
from fuse.methods import METHODS
from fuse.strategies import STRATEGIES
from fuse.terms import KINDS


def entries(group: str) -> dict[str, dict]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / group).glob("*.yaml")}


@pytest.mark.parametrize(("group", "known"), [("method", METHODS), ("strategy", STRATEGIES), ("adapter", ADAPTERS)])
def test_every_part_has_its_configuration(group: str, known: dict) -> None:
    assert {entry["name"] for entry in entries(group).values()} - {"auto"} == set(known)


@pytest.mark.parametrize("name", METHODS)
def test_methods_defaults_are_the_configurations(name: str) -> None:
    entry, fields = entries("method")[name], dataclasses.fields(METHODS[name])
    defaults = {field.name: field.default for field in fields if field.name != "texts"}
    if name == "caption":  # its texts are written when the run is built
        assert entry.pop("search_width") == 1
    assert set(entry) - {"name", "defaults"} == set(defaults)
    for option, default in defaults.items():
        assert entry[option] == (
            "${prompt_length}" if option == "prompt_length" else list(default) if isinstance(default, tuple) else default
        )


def test_every_kind_of_model_is_known() -> None:
    kinds = {entry.get("kind", "causal_lm") for group in ("primary", "secondary") for entry in entries(group).values()}
    assert kinds <= set(KINDS)


def test_public_names_can_be_imported() -> None:
    for name in fuse.__all__:
        assert getattr(fuse, name) is not None
    with pytest.raises(AttributeError):
        _ = fuse.nothing


def test_demo_models_are_small() -> None:
    size = sum(path.stat().st_size for path in Path(ROOT / "fuse/demo").rglob("*") if path.is_file())
    assert size < 30e6


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_defaults_are_the_configurations(name: str) -> None:
    entry = entries("adapter")[name]
    assert {key: value for key, value in entry.items() if key not in ("name", "cache_dir", "corpus")} == ADAPTERS[name].defaults
