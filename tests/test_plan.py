"""dry_run=true: what a run would load, need and do, without loading anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import command_line
import pytest
import torch
from conftest import ROOT

import fuse
from fuse.app.config import compose
from fuse.app.plan import plan_of

LM = ROOT / "fuse/demo/lm"


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_plan_tells_sizes_and_memory(lm: fuse.CausalLM, clip: fuse.CLIP) -> None:
    plan = plan_of(compose(["steps=7", "dtype=mixed_bfloat16"]))
    assert [model.key for model in plan.models] == ["primary", "secondary.demo_clip"]
    for model, network in zip(plan.models, (lm.network, clip.network), strict=True):
        count = sum(weight.numel() for weight in network.parameters())
        assert model.num_weights == pytest.approx(count, rel=0.01)
        assert model.memory_bytes == 6 * model.num_weights
        assert (model.where, model.fetched_bytes) == ("folder", 0)
    assert (plan.steps, plan.search_width, plan.method) == (7, 256, "autodan")
    assert plan.adapters["demo_clip"].startswith("semantic: kept in")


def test_a_plan_tells_what_is_missing_and_what_is_cached(tmp_path: Path) -> None:
    place = tmp_path / "hub/models--some--lm"
    shutil.copytree(LM, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)
    entry = ["primary=causal_lm", "primary.model_id=some/lm", "primary.quantization=int8"]
    plan = plan_of(compose([*entry, "secondary=[clip,open_clip,demo_open_clip]"]))
    where = {model.key.rpartition(".")[2]: model.where for model in plan.models}
    assert where == {
        "primary": "local cache",
        "clip": "missing",
        "open_clip": "missing",
        "demo_open_clip": "folder",
    }
    assert plan.models[0].memory_bytes == plan.models[0].num_weights
    assert plan.models[1].fetched_bytes is None
    assert plan.adapters["clip"] == "semantic: to be fitted"


def test_a_dry_run_is_a_table_and_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"hydra.run.dir={tmp_path}/run"
    done = command_line.find_prompt("dry_run=true", folder, "secondary=[clip]", "method=gcg")
    assert done.returncode == 0, done.stderr
    assert "gcg: 128 candidates a step" in done.stdout
    assert 'run "hf download openai/clip-vit-base-patch32"' in done.stdout
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.setattr(torch.nn.Module, "__init__", None)  # nothing is made
    plan_of(compose([]))


def test_a_model_that_is_not_here_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\nb\nc\n")
    model = "primary.model_id=nobody/nothing"
    several = [f"image={ROOT}/images"], ["experiment=sentence", f"targets={tmp_path}/texts.txt"]
    for items in several:
        given = [*items, "primary=causal_lm", model, "hydra.run.dir=run"]
        done = command_line.find_prompt(*given, folder=tmp_path)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith(f"error: {model}: it would be fetched")
