"""Numbers of a run's texts agree with the libraries' own to 1e-6."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import torch
from conftest import ROOT
from evaluation import overlap
from evaluation.records import Record, read_results, with_references
from evaluation.summary import estimate, front, mean_of

import fuse

TEXTS = ["a red house in the snow", "two cats on a boat .", "the sea"]
REFERENCES = [["a red house stands in the snow", "a house"], ["two cats sit in a boat"], ["a lake"]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows, right = [], []
    for name, text, references in zip("abc", TEXTS, REFERENCES, strict=True):
        rows.append({"file_name": f"{name}.png", "text": text})
        right.append({"file_name": f"{name}.png", "references": references})
    for name, lines in (("metadata.jsonl", rows), ("right.jsonl", right)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def records(run: Path) -> list[Record]:
    return with_references(read_results(run), run / "right.jsonl")


def test_bleu_is_that_of_sacrebleus_command(run: Path) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu comes with the extra `evaluate`")
    (run / "texts").write_text("\n".join(TEXTS))
    padded = [one + [one[0]] * (2 - len(one)) for one in REFERENCES]
    for index in (0, 1):
        (run / f"right{index}").write_text("\n".join(one[index] for one in padded))
    command = [sys.executable, "-m", "sacrebleu", "right0", "right1", "-i", "texts", "-w", "10"]
    done = subprocess.run([*command, "-b"], cwd=run, capture_output=True, text=True, check=True)
    both = [Record("", t, tuple(r)) for t, r in zip(TEXTS, padded, strict=True)]
    assert overlap.bleu(both) == pytest.approx(float(done.stdout), abs=1e-6)
    assert overlap.bleu(records(run)) == pytest.approx(float(done.stdout), abs=1e-6)


def test_rouge_is_that_of_its_library(run: Path) -> None:
    scoring = pytest.importorskip("rouge_score.rouge_scorer", reason="of the extra `evaluate`")
    for name, values in overlap.rouge(records(run)).items():
        scorer = scoring.RougeScorer([name])
        expected = []
        for text, references in zip(TEXTS, REFERENCES, strict=True):
            expected.append(max(scorer.score(r, text)[name].fmeasure for r in references))
        assert values == pytest.approx(expected, abs=1e-6)


def test_cider_is_that_of_its_library(run: Path) -> None:
    module = pytest.importorskip("pycocoevalcap.cider.cider", reason="of the extra `evaluate`")
    right = dict(enumerate(REFERENCES))
    texts = {i: [text.removesuffix(" .")] for i, text in enumerate(TEXTS)}
    score, each = module.Cider().compute_score(right, texts)
    found = overlap.cider(records(run))
    assert found == pytest.approx(list(each), abs=1e-6)
    assert sum(found) / 3 == pytest.approx(float(score), abs=1e-6)


@pytest.mark.full
def test_meteor_is_that_of_its_own_command(run: Path) -> None:
    module = pytest.importorskip("pycocoevalcap.meteor.meteor", reason="of the extra `evaluate`")
    if shutil.which("java") is None:
        pytest.skip("METEOR is a program in Java, and there is no java here")
    # It takes references of all texts in turn, as many of each
    padded = [one + [one[0]] * (2 - len(one)) for one in REFERENCES]
    (run / "texts").write_text("\n".join(text.removesuffix(" .") for text in TEXTS))
    (run / "right").write_text("\n".join(one for both in padded for one in both))
    jar = Path(module.__file__).parent / module.METEOR_JAR
    command = ["java", "-Xmx2G", "-jar", str(jar), "texts", "right", "-r", "2", "-l", "en", "-norm"]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, check=True)
    expected = [float(line.split()[-1]) for line in done.stdout.splitlines() if "Segment" in line]
    assert overlap.meteor(records(run)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("program", [None, "#!/bin/sh\nexit 1\n"])
def test_a_metric_that_cannot_be_had_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    pytest.importorskip("pycocoevalcap.meteor.meteor", reason="of the extra `evaluate`")
    monkeypatch.setenv("PATH", str(run))
    if program is not None:
        (run / "java").write_text(program)
        (run / "java").chmod(0o755)
    arguments = [str(run), "--references", str(run / "right.jsonl"), "--resamples", "2"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    evaluate.main()
    printed = capsys.readouterr()
    assert "CIDEr" in printed.out and "METEOR" not in printed.out
    told = {line.split(": ")[1]: line for line in printed.err.splitlines()}
    assert "pip install -e '.[evaluate]'" in told["BLEU"]
    assert "Java" in told["METEOR"]


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"}', "a.png has no text"),
        ("metadata.jsonl", '{"text": "a house"}', "a row without `file_name` and `row`"),
        ("metadata.jsonl", "{", "line 1 is no JSON object"),
        ("right.jsonl", "[1]", "line 1 is no JSON object"),
        ("right.jsonl", '{"file_name": "a.png"}', "a.png has no references"),
        ("right.jsonl", '{"file_name": "a.png", "references": [1]}', "a.png has no references"),
        ("right.jsonl", '{"file_name": "z.png", "text": "x"}', "has none for a.png"),
        ("right.jsonl", "\udcff", "it is no UTF-8"),
        ("right.jsonl", None, "No such file"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str | None, reason: str
) -> None:
    if line is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(line.encode(errors="surrogateescape"))
    arguments = [str(run), "--references", str(run / "right.jsonl")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit, match=f"^error: .*{reason}"):
        evaluate.main()


def test_texts_without_references_are_told(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "right.jsonl").write_text('{"file_name": "a.png", "text": "a house"}\n')
    arguments = [str(run), "--references", str(run / "right.jsonl"), "--resamples", "2"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    monkeypatch.setattr(overlap, "PER_TEXT", {})
    evaluate.main()
    assert f"2 of 3 texts of {run}: no reference is given" in capsys.readouterr().err


def test_judges_are_the_models_own_numbers(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole script; perplexity and CLIPScore by transformers' own forward passes."""
    for name, picture in zip("abc", ("house", "cat", "boat"), strict=True):
        (run / f"{name}.png").write_bytes((ROOT / f"images/{picture}.png").read_bytes())
    lm, clip = str(ROOT / "fuse/demo/lm"), str(ROOT / "fuse/demo/clip")
    arguments = [str(run), "--lm", lm, "--clip", clip, "--json", str(run / "out.json")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--resamples", "20"])
    evaluate.main()
    (found,) = json.loads((run / "out.json").read_text()).values()
    model = fuse.CausalLM.load(lm)
    expected = []
    for text in TEXTS:
        term = fuse.Term(model, fuse.NLL())
        ids = torch.tensor([term.encode([text])[0].ids])
        with torch.no_grad():
            expected.append(float(model.network(ids, labels=ids).loss))
    assert found["nll"]["value"] == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(sum(expected) / 3), rel=1e-5)
    assert 0 < found["CLIPScore"]["low"] <= found["CLIPScore"]["value"] <= 2.5
    assert "perplexity" in capsys.readouterr().out


def test_an_interval_holds_the_mean_and_shrinks() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    few, many = (estimate(mean_of(values[:n]), n, 500) for n in (20, 400))
    for one in (few, many):
        assert one.low < one.value < one.high
    assert many.high - many.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert many.high - many.low < few.high - few.low


def test_the_front_holds_what_nothing_is_better_than() -> None:
    assert front([(1, 3), (2, 2), (3, 1), (3, 3), (2, 2)]) == [True, True, True, False, True]
