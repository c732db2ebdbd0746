"""init=retrieve: the texts of a corpus that a search starts from."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import command_line
import pytest
import torch
from conftest import ROOT

import fuse
from fuse import retrieval
from fuse.guide import Guide

CORPUS = ROOT / "fuse/demo/corpus.txt"
LINES = CORPUS.read_text().splitlines()[:80]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return str(path)


@pytest.fixture(scope="module")
def objective(lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor) -> fuse.Objective:
    return make(lm, clip, house)


def make(
    lm: fuse.CausalLM,
    clip: fuse.CLIP,
    house: torch.Tensor,
    constraints: fuse.Constraints | None = None,
) -> fuse.Objective:
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, clip, [])
    secondary = fuse.Term(clip, fuse.CosineDistance(house), weight=10, adapter=adapter)
    return fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": secondary}, constraints)


def nearest(objective: fuse.Objective, texts: list[str], count: int) -> list[str]:
    """Return the texts of the lowest loss of the CLIP, found one by one."""
    term = objective.secondaries["clip"]
    return sorted(dict.fromkeys(texts), key=lambda text: term.score(term.encode([text]))[0])[:count]


def test_the_nearest_texts_are_found(
    objective: fuse.Objective, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fuse.retrieve(objective, corpus, 5)
    assert found == nearest(objective, LINES, 5)
    assert any("house" in text for text in found)
    monkeypatch.setattr(retrieval, "BLOCK_TEXTS", 7)
    monkeypatch.setattr(retrieval, "PART_TEXTS", 3)
    assert fuse.retrieve(objective, corpus, 5) == found


def test_several_models_are_weighed(
    lm: fuse.CausalLM, clip: fuse.CLIP, mood: fuse.Classifier, house: torch.Tensor, corpus: str
) -> None:
    """A classifier makes a vector of a text, too: the log-probabilities of its classes."""
    look = fuse.Term(clip, fuse.CosineDistance(house), weight=10, prefix="a picture:")
    feel = fuse.Term(mood, fuse.ClassNLL(mood.class_index("gloomy")), weight=3)
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"look": look, "feel": feel})
    found = fuse.retrieve(objective, corpus, 4)

    def loss(text: str) -> float:
        return sum(float(t.weight * t.score(t.encode([text]))[0]) for t in (look, feel))

    assert found == sorted(dict.fromkeys(LINES), key=loss)[:4]


def test_json_lines_are_read(objective: fuse.Objective, corpus: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": 1, "text": f" {line}\n"}) + "\n" for line in LINES))
    assert fuse.retrieve(objective, str(path), 5) == fuse.retrieve(objective, corpus, 5)


def test_vectors_are_kept_by_the_content_of_texts_and_model(
    objective: fuse.Objective,
    clip: fuse.CLIP,
    corpus: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, passes = tmp_path / "kept", []
    with clip.network.register_forward_hook(lambda *_: passes.append(1)):
        clip.network.text_model.register_forward_hook(lambda *_: passes.append(1))
        first = fuse.retrieve(objective, corpus, 5, folder=folder)
        (path,) = folder.iterdir()
        passes.clear()
        assert fuse.retrieve(objective, corpus, 5, folder=folder) == first
        assert not passes
    content = path.read_bytes()
    for damaged in (b"", content[:-4], content.replace(b"fingerprint", b"fingerprinT")):
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert fuse.retrieve(objective, corpus, 5, folder=folder) == first
        assert len(caplog.records) == 1 and str(path) in caplog.text
        assert path.read_bytes() == content
    with Path(corpus).open("a") as file:
        file.write("A text more.\n")
    fuse.retrieve(objective, corpus, 5, folder=folder)
    assert len(list(folder.iterdir())) == 2


def test_a_text_against_the_constraints_is_left_out_and_a_long_one_cut(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor, corpus: str
) -> None:
    objective = make(lm, clip, house, fuse.Constraints(block=["house"]))
    found = fuse.retrieve(objective, corpus, 5)
    assert found == nearest(objective, [t for t in LINES if "house" not in t.lower()], 5)
    short = fuse.retrieve(objective, corpus, 5, max_tokens=4)
    for text in short:
        assert len(objective.spell(text)) <= 4
        assert any(line.startswith(text) for line in LINES)
    assert len(set(short)) == 5


def test_a_text_beyond_a_models_context_is_cut(objective: fuse.Objective, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(f"{'A red house in the snow, ' * 40}\n")
    (found,) = fuse.retrieve(objective, str(path))
    assert 20 < len(found.split()) < 240
    assert objective.valid([objective.spell(found)]) == [True]


def test_a_vector_model_as_primary(
    clip: fuse.CLIP, house: torch.Tensor, corpus: str, generator: torch.Generator
) -> None:
    objective = fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house)))
    texts = fuse.retrieve(objective, corpus, 3)
    result = fuse.search(objective, fuse.PEZ(steps=2), init=texts, generator=generator)
    assert result.initial_loss == pytest.approx(objective.evaluate_text(texts[0])[0], abs=1e-4)


def test_a_sentence_encoder(lm: fuse.CausalLM, minilm: fuse.SentenceEncoder, corpus: str) -> None:
    for target in (minilm.embed_texts([LINES[7]])[0], torch.ones(384)):
        term = fuse.Term(minilm, fuse.CosineDistance(target), weight=10)
        objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"sentence": term})
        found = fuse.retrieve(objective, corpus, 3)
        scores = term.score(term.encode(LINES))
        assert found[0] == LINES[int(scores.argmin())]


ERRORS = {
    "missing": (None, "no such file"),
    "empty": ("\n \n", "holds no text"),
    "no objects": ('["a"]\n', "line 1 is no JSON object"),
    "no JSON": ('{"text": "a"}\nA red house\n', "line 2 is no JSON object"),
    "no text": ('{"caption": "a"}\n', "keys caption"),
    "no spelling": ('{"text": "\\u4eba"}\n', "none can be a start"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_is_one_line(objective: fuse.Objective, name: str, tmp_path: Path) -> None:
    content, words = ERRORS[name]
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(fuse.FuseError, match=words) as caught:
        fuse.retrieve(objective, str(path))
    assert str(caught.value).startswith("corpus=") and "\n" not in str(caught.value)


def test_without_a_model_that_makes_vectors_nothing_is_near(lm: fuse.CausalLM, corpus: str) -> None:
    with pytest.raises(fuse.FuseError, match=r"init=retrieve.*secondary=\[clip\]"):
        fuse.retrieve(fuse.Objective(fuse.Term(lm, fuse.NLL())), corpus)


# ---- a search from several texts ----
TEXTS = ["A boat by the sea.", "A red house stands in the snow.", "Two cats at night."]


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        (fuse.GCG(search_width=12), fuse.Beam(2)),
        pytest.param(fuse.Random(search_width=12), fuse.UniformCost(), marks=pytest.mark.full),
        pytest.param(fuse.Gibbs(search_width=12), fuse.Pareto(3), marks=pytest.mark.full),
        (fuse.AutoDAN(search_width=12), fuse.Beam(2)),
        pytest.param(fuse.Langevin(search_width=3), fuse.Beam(1), marks=pytest.mark.full),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_search_from_several_texts_obeys_the_contracts(
    objective: fuse.Objective, method: fuse.Method, strategy: fuse.Strategy
) -> None:
    search = fuse.Search(objective, method, strategy, steps=3, init=TEXTS)
    result = fuse.check_search(search)
    best = min(objective.evaluate_text(text)[0] for text in TEXTS)
    assert result.initial_loss == pytest.approx(best, abs=1e-4)
    assert result.loss <= best + 1e-4


def test_the_strategy_chooses_the_first_beam(objective: fuse.Objective) -> None:
    search = fuse.Search(objective, fuse.GCG(), fuse.Beam(2), init=TEXTS)
    ranked = sorted(TEXTS, key=lambda text: objective.evaluate_text(text)[0])
    assert search.start().beam == tuple(objective.spell(text) for text in ranked[:2])
    alone = fuse.Search(objective, fuse.GCG(), fuse.Beam(2), init=TEXTS[:1])
    assert alone.start().beam == (objective.spell(TEXTS[0]),)


def test_the_words_of_the_texts_are_offered(objective: fuse.Objective) -> None:
    guide, row = Guide(objective, TEXTS), objective.spell("a blue cup")
    assert Guide(objective).word_proposals([row], [1]) == []
    ((offered,),) = guide.word_proposals([row], [1])
    texts = objective.vocabulary.decode(offered)
    assert {"a house cup", "a night cup", "a Two cup"} <= set(texts)
    assert not any("." in text for text in texts)
    ((offered,),) = guide.word_proposals([row], [0])
    assert "boat blue cup" in objective.vocabulary.decode(offered)


def test_forbidden_words_are_not_offered(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor
) -> None:
    objective = make(lm, clip, house, fuse.Constraints(block=["house"]))
    ((offered,),) = Guide(objective, TEXTS).word_proposals([objective.spell("a cup")], [1])
    texts = objective.vocabulary.decode(offered)
    assert "a snow" in texts and "a house" not in texts


# ---- the command line ----
@pytest.mark.full
def test_pictures_side_by_side_begin_with_texts_of_their_own(tmp_path: Path) -> None:
    out, pictures = tmp_path / "out", "[images/boat.png,images/cat.png]"
    arguments = [
        f"image={pictures}",
        "batch_images=2",
        "init=retrieve",
        "method=random",
        f"adapter.cache_dir={tmp_path / 'kept'}",
        f"hydra.run.dir={out}",
    ]
    done = command_line.find_prompt(*arguments, "steps=2")
    assert done.returncode == 0, done.stderr
    for name in ("boat", "cat"):
        result = json.loads(next(out.glob(f"{name}*/result.json")).read_text())
        assert name in result["prompt"]
    assert len(list((tmp_path / "kept").glob("vectors-*"))) == 1
    resumed = command_line.find_prompt(f"resume={out}", "steps=4")
    whole = [*arguments[:-1], f"hydra.run.dir={tmp_path / 'whole'}", "steps=4"]
    assert command_line.find_prompt(*whole).returncode == resumed.returncode == 0
    for path in out.glob("*/result.json"):
        other = tmp_path / "whole" / path.relative_to(out)
        ours, theirs = (json.loads(one.read_text()) for one in (path, other))
        assert (ours["prompt"], ours["loss"]) == (theirs["prompt"], theirs["loss"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["corpus=nowhere.txt"], "corpus=nowhere.txt: no such file"),
        (["corpus=null"], "corpus=null: expected a path"),
        (["secondary=[]"], "init=retrieve: no model"),
    ],
)
def test_a_mistake_on_the_command_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    folder = f"hydra.run.dir={tmp_path}"
    done = command_line.find_prompt("init=retrieve", *arguments, folder)
    assert done.returncode == 2 and words in done.stderr
