"""What a proof found is kept: the next start reads in the same ways without its passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_proof import TEXTS, OwnMask, WrongBySDPA, gpt2, gradient, lm_tokenizer, with_attention

import fuse
from fuse.models import CausalLM, kept_proof
from fuse.models.causal_proof import CausalProof

NETWORKS: dict[str, Callable[[], Any]] = {
    "plain": gpt2,
    "fewer tokens": lambda: gpt2(vocab_size=40),
    "own mask": lambda: with_attention(OwnMask),
    "wrong by sdpa": lambda: with_attention(WrongBySDPA),
}


@pytest.fixture(autouse=True)
def _keeps_quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_proof, "LONG", 0.0)


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[CausalProof]:
    """Return a list of the proofs that are made from now on."""
    made: list[CausalProof] = []
    prove = CausalProof.prove
    monkeypatch.setattr(CausalProof, "prove", lambda self: made.append(self) or prove(self))
    return made


def model_of(network: Any, folder: Path | None) -> CausalLM:
    return CausalLM(network, lm_tokenizer(), proof_dir=folder)


def scores(model: CausalLM) -> list[float]:
    term = fuse.Term(model, fuse.NLL(), prefix="a picture")
    term.engine.prefill(term.encode(TEXTS[:2]))
    found: list[float] = term.engine.score(term.encode(TEXTS)).tolist()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_proved_once(name: str, tmp_path: Path, proved: list[CausalProof]) -> None:
    network = NETWORKS[name]()
    models = [model_of(network, folder) for folder in (None, tmp_path, tmp_path)]
    assert len(proved) == 2
    first, _, again = models
    for way in ("supports_prefix_cache", "supports_packing", "pads", "no_gradient", "fingerprint"):
        assert getattr(again, way) == getattr(first, way)
    assert len(again.vocabulary) == len(first.vocabulary)
    attention = [model.network.config._attn_implementation for model in models]
    assert attention[2] == attention[0]
    assert scores(again) == scores(first)
    assert torch.equal(gradient(again), gradient(first))


def test_what_changes_a_network_makes_it_prove_itself_again(
    tmp_path: Path, proved: list[CausalProof], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = gpt2()
    model_of(network, tmp_path)
    network.transformer.h[1].attn.c_attn.weight.data *= 1.01
    model_of(network, tmp_path)
    network.config.attn_pdrop = 0.25
    model_of(network, tmp_path)
    model_of(network.double(), tmp_path)
    network.float().transformer.h[0].attn.__class__ = OwnMask
    assert not model_of(network, tmp_path).supports_packing
    monkeypatch.setattr(kept_proof, "_code", lambda: "newer")
    model_of(network, tmp_path)
    assert len(proved) == len([*tmp_path.iterdir()]) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:20],
        lambda text: "[]",
        lambda text: text.replace('"has_eager": true', '"has_eager": 7.5'),
        lambda text: text.replace('"ways"', '"way"'),
        lambda text: text.replace('"key": "', '"key": "another '),
    ],
    ids=["cut", "a list", "a number", "a field less", "another key"],
)
def test_a_damaged_file_is_told_and_made_again(
    damage: Callable[[str], str],
    tmp_path: Path,
    proved: list[CausalProof],
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = gpt2()
    model_of(network, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    model_of(network, tmp_path)
    assert len(proved) == 2 and path.name in caplog.text
    assert json.loads(path.read_text()) == json.loads(whole)


def test_a_quick_proof_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_proof, "LONG", 1e9)
    model_of(gpt2(), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_written_costs_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert model_of(gpt2(), tmp_path / "file" / "folder").supports_packing
    assert "could not be written" in caplog.text
