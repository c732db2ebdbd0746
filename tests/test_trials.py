"""What a run chooses for itself before it begins: the weights of its terms, and the threads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import find_prompt

import fuse
from fuse.app import threads
from fuse.app.build import build
from fuse.app.config import compose
from fuse.app.terms import Models
from fuse.app.threads import quickest
from fuse.search.balance import NUM_FIRST, balanced_weights

QUICK = ("method=random", "method.search_width=80", "prompt_length=4")


@pytest.fixture(scope="module")
def models() -> Models:
    return {}


@pytest.fixture
def own_threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def trace(folder: Path) -> list[dict]:
    steps = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    for step in steps:
        del step["seconds"]
    return steps


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_models_and_adapters_are_loaded_once(models: Models) -> None:
    """Searches over many pictures hold one copy of each."""

    def term(*overrides: str) -> fuse.Term:
        search = build(compose([*QUICK, *overrides]), models=models)
        return search.objective.secondaries["demo_clip"]

    first, second = term(), term("image=images/cat.png")
    assert first is not second and first.model is second.model
    assert first.adapter is second.adapter is not None
    assert term("adapter=lexical").adapter is not first.adapter


def test_terms_are_weighed_by_the_spread_of_their_first_losses(models: Models) -> None:
    search = build(compose(QUICK), models=models)
    weights = balanced_weights(search)
    state = search.start()
    state = search.accept(state, search.evaluate(state, search.propose(state)))
    losses = torch.tensor(list(state.scored.values()), dtype=torch.float64)
    assert len(losses) >= NUM_FIRST
    spread = (losses - losses.mean(0)).square().mean(0).sqrt()
    assert weights["primary"] == 1
    assert weights["demo_clip"] == pytest.approx(float(spread[0] / spread[1]), rel=1e-4)


def test_of_the_weights_given_the_signs_count_and_the_primarys(models: Models) -> None:
    def weights(primary: float, secondary: float) -> dict[str, float]:
        given = [f"primary.weight={primary}", f"secondary.demo_clip.weight={secondary}"]
        return balanced_weights(build(compose([*QUICK, *given]), models=models))

    plain = weights(1, 10)
    assert weights(1, 1000) == plain
    assert weights(1, -10) == {"primary": 1, "demo_clip": -plain["demo_clip"]}
    assert weights(3, 10)["demo_clip"] == pytest.approx(3 * plain["demo_clip"])
    assert weights(1, 0) == {"primary": 1, "demo_clip": 0}
    alone = weights(0, 10)
    assert alone["primary"] == 0 and alone["demo_clip"] > 0


@pytest.mark.parametrize(
    "method", [pytest.param("pez", marks=pytest.mark.full), "autodan", "caption"]
)
def test_methods_of_few_candidates_are_weighed_too(method: str, models: Models) -> None:
    search = build(compose([f"method={method}"]), models=models)
    weights = balanced_weights(search)
    assert weights["primary"] == 1 and weights["demo_clip"] > 0
    assert search.operations >= 0 and search.start().evaluations <= 1


def test_chosen_weights_are_told_and_kept_in_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*QUICK, "weights=auto", "checkpoint_every=2", "report=false"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder, steps in ((whole, 6), (broken, 3)):
        done = find_prompt(*given, f"steps={steps}", f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    weights = result(whole)["weights"]
    assert weights == result(broken)["weights"] and weights["demo_clip"] != 10
    assert result(whole)["terms"]["demo_clip"]["weight"] == weights["demo_clip"]
    told = f"weights=auto: primary 1, demo_clip {weights['demo_clip']:g}, by the losses of"
    assert told in (whole / "find_prompt.log").read_text()
    monkeypatch.setattr("fuse.app.build.balanced_weights", None)  # nothing is chosen once more
    done = find_prompt(f"resume={broken}", "steps=6")
    assert done.returncode == 0, done.stderr
    assert trace(broken) == trace(whole) and result(broken)["weights"] == weights


def test_more_threads_are_taken_where_they_are_quicker() -> None:
    assert quickest([1, 2, 4], {1: 1.0, 2: 0.5, 4: 0.49}.__getitem__) == 2
    assert quickest([1, 2, 4], {1: 1.0, 2: 0.5, 4: 0.3}.__getitem__) == 4
    assert quickest([1, 2], {1: 1.0, 2: 3.0}.__getitem__) == 1
    assert quickest([1], {}.__getitem__) == 1


@pytest.mark.usefixtures("own_threads")
def test_threads_are_as_asked_for_and_kept_in_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*QUICK, "report=false"]
    monkeypatch.setattr(threads, "_counts", lambda: [1, 2])
    monkeypatch.setattr(threads, "quickest", lambda counts, measure: min(counts, key=measure))
    for value in ("3", "null", "auto"):
        folder = tmp_path / value
        done = find_prompt(*given, f"threads={value}", "steps=2", f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    assert result(tmp_path / "3")["threads"] == 3
    assert result(tmp_path / "null")["threads"] == threads._torchs_own()
    chosen = result(tmp_path / "auto")["threads"]
    assert chosen in (1, 2)
    if chosen == threads._torchs_own():  # the trial has changed nothing
        assert trace(tmp_path / "auto") == trace(tmp_path / "null")
    monkeypatch.setattr(threads, "quickest", None)
    done = find_prompt(f"resume={tmp_path / 'auto'}", "steps=3")
    assert done.returncode == 0 and result(tmp_path / "auto")["threads"] == chosen


@pytest.mark.parametrize("wrong", ["threads=0", "threads=many", "weights=given"])
def test_other_values_are_refused_in_one_line(wrong: str) -> None:
    done = find_prompt(wrong)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {wrong}: ")
