"""Families of models: tiny checkpoints give the families' own results; the whole matrix in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.family import Family, Findings, NoReference
from families import ROLES, check

import fuse

NUM_RIGHT = {
    "causal": 185,
    "masked": 36,
    "sentence": 58,
    "classifier": 108,
    "dual": 16,
    "open_clip": 6,
    "captioner": 6,
    "diffusion": 4,
}
"""How many checkpoints of each role are right at least; the others are refused, or have no
reference.
"""
SAMPLE = (
    ("causal", "llama"),
    ("causal", "mamba"),
    ("causal", "nemotron"),
    ("masked", "bert"),
    ("sentence", "bert, default prompt"),
    ("sentence", "t5"),
    ("classifier", "gpt2"),
    ("classifier", "bert, several at once"),
    ("classifier", "bart, one output"),
    ("dual", "clip"),
    ("open_clip", "clip"),
    ("captioner", "blip"),
    ("diffusion", "stable diffusion, epsilon"),
)
"""Checkpoints of all roles, which are tried with the oldest packages, too."""
PARTS = {"captioner": {"text"}}
"""What is compared at least where it is not the following."""
USUAL_PARTS = {"ids", "loss", "gradient", "search"}


def family(role: str, name: str) -> Family:
    return next(one for one in ROLES[role].families() if one.name == name)


def findings(one: Family, folder: Path) -> dict[str, Any]:
    """Make a checkpoint, and compare it."""
    one.build(folder)
    found = Findings()
    one.check(folder, found)
    return found.row()


@pytest.mark.parametrize(("role", "name"), SAMPLE)
def test_a_family_gives_its_own_results(role: str, name: str, tmp_path: Path) -> None:
    found = findings(family(role, name), tmp_path)
    assert found["verdict"] == "right", found["note"]
    assert PARTS.get(role, USUAL_PARTS) <= set(found["errors"])


@pytest.mark.parametrize("seed", range(1, 3))
def test_padding_that_reaches_its_neighbours_is_noticed(seed: int, tmp_path: Path) -> None:
    """MobileBERT's tokens read the embeddings beside them: rows are read one by one."""
    torch.manual_seed(seed)
    family("classifier", "mobilebert").build(tmp_path)
    term = fuse.Term(fuse.Classifier.load(str(tmp_path)), fuse.ClassNLL(1))
    rows = term.encode(["a red house", "two boats", "a book about the old man and the sea"])
    alone = [fuse.Term(term.model, term.loss).score([row]) for row in rows]
    torch.testing.assert_close(term.score(rows), torch.cat(alone), atol=1e-4, rtol=0)


def test_the_sample_holds_all_roles() -> None:
    assert {role for role, _ in SAMPLE} == set(ROLES)


def test_a_network_that_is_not_its_reference_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    one = family("classifier", "gpt2")
    loss = ROLES["classifier"].ClassifierReference.loss

    def scaled(*given: Any) -> Any:
        return 1.001 * loss(*given)

    monkeypatch.setattr(ROLES["classifier"].ClassifierReference, "loss", scaled)
    found = findings(one, tmp_path)
    assert found["verdict"] == "wrong" and "loss" in found["note"]


def test_what_a_family_cannot_read_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(NoReference):
        family("causal", "llama").check(tmp_path, Findings())


@pytest.mark.full
@pytest.mark.parametrize("role", NUM_RIGHT)
def test_all_families_are_right_or_refused(role: str, tmp_path: Path, record_property: Any) -> None:
    rows = [check(one, tmp_path) for one in ROLES[role].families()]
    faults = [row for row in rows if row["verdict"] in ("wrong", "traceback")]
    assert not faults, "\n".join(f"{row['family']}: {row['note']}" for row in faults)
    num_right = sum(row["verdict"] == "right" for row in rows)
    record_property(role, f"{num_right} of {len(rows)} are right")
    assert num_right >= NUM_RIGHT[role]
