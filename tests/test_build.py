"""The configuration files and the code tell the same defaults."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import torch
import write_conf
import yaml
from conftest import ROOT

import fuse
from fuse import registry
from fuse.app.build import build
from fuse.app.command import into_another_folder, resumed
from fuse.app.config import compose
from fuse.app.goals import GOALS
from fuse.app.run_folder import differences
from fuse.app.terms import Models
from fuse.registry import ADAPTERS, METHODS, MODELS, STRATEGIES


def composed(*overrides: str) -> dict:
    return compose(overrides)


def entries(group: str) -> dict[str, dict]:
    return {
        path.stem: yaml.safe_load(path.read_text())
        for path in (ROOT / "conf" / group).glob("*.yaml")
    }


@pytest.mark.parametrize(
    ("group", "known"), [("method", METHODS), ("strategy", STRATEGIES), ("adapter", ADAPTERS)]
)
def test_every_part_has_its_configuration(group: str, known: dict) -> None:
    assert {entry["name"] for entry in entries(group).values()} - {"auto"} == set(known)


def test_the_configuration_files_are_those_that_the_code_describes() -> None:
    """`python scripts/write_conf.py` has been run."""
    for path, text in write_conf.files().items():
        assert path.read_text() == text, path


def test_every_kind_of_model_is_known() -> None:
    kinds = {
        entry.get("kind", "causal_lm")
        for group in ("primary", "secondary")
        for entry in entries(group).values()
    }
    assert kinds == set(MODELS)
    assert {MODELS[name].goal for name in MODELS} == set(GOALS)


def test_every_part_of_the_registry_is_a_public_name() -> None:
    for table in (
        METHODS,
        STRATEGIES,
        ADAPTERS,
        MODELS,
        registry.LM_LOSSES,
        registry.VECTOR_LOSSES,
    ):
        for name, kind in table.items():
            assert getattr(fuse, kind.__name__) is kind
            assert table.name_of(object.__new__(kind)) == name


def test_a_part_that_is_registered_nowhere_is_named_by_its_class() -> None:
    class Mine(fuse.GCG):
        pass

    assert METHODS.name_of(Mine()) == "Mine"
    assert "mine" not in METHODS


def test_fuse_search_is_called_and_holds_its_parts(lm: fuse.CausalLM) -> None:
    import fuse.search.loop

    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    result = fuse.search(objective, fuse.Random(search_width=4), steps=1)
    assert result.steps == 1


def test_public_names_can_be_imported() -> None:
    for name in fuse.__all__:
        assert getattr(fuse, name) is not None
    with pytest.raises(AttributeError):
        _ = fuse.nothing


def test_demo_models_are_small() -> None:
    size = sum(
        path.stat().st_size for path in Path(ROOT / "fuse/demo").rglob("*") if path.is_file()
    )
    assert size < 30e6


def test_an_adapter_that_ranks_by_chance_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="fuse"):
        build(composed("adapter=fuse", f"adapter.cache_dir={tmp_path}"))
        build(composed(f"adapter.cache_dir={tmp_path}"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "adapter=fuse" in line and "near chance" in line and "adapter=semantic" in line


def test_a_mixed_type_loads_a_coarse_and_a_precise_model() -> None:
    search = build(
        composed("dtype=mixed_bfloat16", "steps=1", "method=random", "method.search_width=4")
    )
    for term in search.objective.terms.values():
        assert term.model.vocabulary.embedding.dtype == torch.bfloat16
        assert term.precise.model.vocabulary.embedding.dtype == torch.float32
    exact = build(composed())
    result = search.run()
    assert result.loss == pytest.approx(exact.objective.evaluate_text(result.prompt)[0], abs=1e-5)


def test_the_draft_is_the_primary_with_another_model() -> None:
    small = f"scoring.draft.model_id={ROOT}/fuse/demo/lm_small"
    search = build(
        composed(
            "scoring=probe",
            small,
            "primary.prefix=Look:",
            "scoring.reduction=4",
        )
    )
    assert search.probe is not None
    assert search.probe.draft is not None
    assert search.probe.reduction == 4
    assert search.probe.draft.template == search.objective.primary.template
    assert search.probe.draft.loss == search.objective.primary.loss
    assert search.probe.draft.model.size < search.objective.primary.model.size / 4


def test_workers_have_copies_of_every_model_which_are_made_once(tmp_path: Path) -> None:
    models: Models = {}
    found = []
    for seed in (0, 1):
        config = composed("scoring.workers=3", f"seed={seed}", f"adapter.cache_dir={tmp_path}")
        terms = build(config, models=models).objective.terms.values()
        found.append([term.engine.runner.workers.models for term in terms])
    assert [len(one) for one in found[0]] == [3, 3]
    assert found[0] == found[1]


def test_a_run_goes_on_with_other_workers(tmp_path: Path) -> None:
    """Also one of a version that knew of none."""
    saved = composed()
    del saved["scoring"]["workers"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert differences(saved, composed("scoring.workers=2")) == []
    for given, expected in (([], 1), (["scoring.workers=2"], 2)):
        config = {**composed(*given), "resume": str(tmp_path)}
        assert resumed(config, tmp_path, given)["scoring"]["workers"] == expected


def test_a_run_folder_without_room_is_named() -> None:
    problems: list[str] = []
    into_another_folder(OSError(errno.ENOSPC, "No space left on device"), problems)
    assert problems[0].startswith("the run folder: could not be written (No space left")


def test_without_a_draft_the_primary_guesses_if_it_can() -> None:
    search = build(composed("scoring=probe"))
    assert search.probe == fuse.Probe()
    with pytest.raises(fuse.FuseError, match=r"scoring.draft.model_id=null.*OpenCLIP"):
        build(
            composed(
                "scoring=probe",
                "primary=demo_open_clip",
                "secondary=[]",
                "method=random",
            )
        )
