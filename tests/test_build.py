"""The configuration files and the code tell the same defaults."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from conftest import ROOT
from omegaconf import OmegaConf

import find_prompt  # noqa: F401  (registers the resolvers of the configuration)
import fuse
from fuse.adapter import ADAPTERS
from fuse.build import build
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
    assert {key: value for key, value in entry.items() if key not in ("name", "cache_dir", "corpus", "shared")} == ADAPTERS[name].defaults


def composed(*overrides: str) -> dict:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)  # type: ignore[return-value]


def test_an_adapter_that_ranks_by_chance_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fuse"):
        build(composed("adapter=fuse", f"adapter.cache_dir={tmp_path}"))
        build(composed(f"adapter.cache_dir={tmp_path}"))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "adapter=fuse" in told and "near chance" in told and "adapter=semantic" in told


def test_a_mixed_type_loads_a_coarse_and_a_precise_model(tmp_path: Path) -> None:
    task = build(composed("dtype=mixed_bfloat16", "steps=2", f"adapter.cache_dir={tmp_path}"))
    for term in task.objective.terms.values():
        assert term.model.vocabulary.embedding.dtype == torch.bfloat16
        assert term.precise.model.vocabulary.embedding.dtype == torch.float32
    exact = build(composed(f"adapter.cache_dir={tmp_path}"))
    result = task.search()
    assert result.loss == pytest.approx(exact.objective.evaluate_text(result.prompt)[0], abs=1e-5)


def test_the_draft_is_the_primary_with_another_model(tmp_path: Path) -> None:
    small = f"scoring.draft.model_id={ROOT}/fuse/demo/lm_small"
    task = build(composed("scoring=probe", small, "primary.prefix=Look:", "scoring.reduction=4", f"adapter.cache_dir={tmp_path}"))
    assert task.probe is not None
    assert task.probe.draft is not None
    assert task.probe.reduction == 4
    assert task.probe.draft.template == task.objective.primary.template
    assert task.probe.draft.loss == task.objective.primary.loss
    assert task.probe.draft.model.size < task.objective.primary.model.size / 4


def test_without_a_draft_the_primary_guesses_if_it_can(tmp_path: Path) -> None:
    task = build(composed("scoring=probe", f"adapter.cache_dir={tmp_path}"))
    assert task.probe == fuse.Probe()
    with pytest.raises(fuse.FuseError, match=r"scoring.draft.model_id=null.*OpenCLIP"):
        build(composed("scoring=probe", "primary=demo_open_clip", "secondary=[]", "method=random", f"adapter.cache_dir={tmp_path}"))
