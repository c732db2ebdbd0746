"""Entries for models of the hub: each composes, and says what it needs without a network."""

from __future__ import annotations

import re
from pathlib import Path

import command_line
import pytest
import yaml
from conftest import ROOT

import fuse
from fuse import hub
from fuse.app.config import compose
from fuse.app.reach import reaching, wanted


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


ENTRIES = [f"primary={name}" for name in names("primary")]
ENTRIES += [f"secondary=[{name}]" for name in names("secondary")]
ENTRIES += [f"experiment={name}" for name in names("experiment")]


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a network nor anything in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("choice", ENTRIES)
def test_an_entry_says_what_it_needs(no_network: None, choice: str) -> None:
    """One line for each model of the hub, with the command that fetches it."""
    config = compose([choice, "target=two dogs"])
    asked = [model for model in wanted(config) if model.repository is not None]
    ids = {entry["model_id"] for entry in (config["primary"], *config["secondary"].values())}
    assert bool(asked) == any(hub.is_hub_id(model_id) for model_id in ids)
    if not asked:
        with reaching(config):
            return
    with pytest.raises(fuse.FuseError) as raised, reaching(config):
        pass
    lines = str(raised.value).splitlines()
    assert len(lines) == len(asked)
    for line, model in zip(lines, asked, strict=True):
        assert line.startswith(f"{model.key}.model_id={model.repository}")
        assert f'run "hf download {model.repository}' in line and "HF_HUB_OFFLINE=1" in line


def test_entries_name_repositories_of_the_hub() -> None:
    for group in ("primary", "secondary"):
        for name in names(group):
            entry = yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())
            model_id = entry.get("model_id", "gpt2")
            assert "${" in model_id or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model_id), name


@pytest.mark.parametrize("name", ["primary.revision", "secondary.demo_clip.revision"])
def test_a_folder_has_no_revisions(name: str) -> None:
    config = compose([f"{name}=other"])
    with pytest.raises(fuse.FuseError, match=f"^{name}=other: .* leave it out"), reaching(config):
        pass


def test_a_draft_and_a_captioner_are_asked_for_where_they_are_used(no_network: None) -> None:
    both = ["captioner.model_id=some/captioner", "scoring=probe", "scoring.draft.model_id=some/lm"]
    keys = [model.key for model in wanted(compose([*both, "init=caption"])) if not model.is_here]
    assert keys == ["captioner", "scoring.draft"]
    assert all(model.is_here for model in wanted(compose(both[:1])))


def test_the_command_line_ends_with_one_line(no_network: None, tmp_path: Path) -> None:
    folder = f"hydra.run.dir={tmp_path}/run"
    done = command_line.find_prompt("primary=gpt2", folder)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: primary.model_id=openai-community/gpt2: it would be fetched")
