"""scripts/tune_prior.py: a low-rank adapter fitted to texts of one's own."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
import tune_prior
from conftest import ROOT
from transformers import AutoTokenizer

import fuse

pytest.importorskip("peft", reason="PEFT comes with the extra `test`")
STEPS = ("max_steps=12", "batch_texts=8", "rate=0.01", "rank=4")
COLOURS, THINGS = ("red", "blue", "green", "pink"), ("boat", "house", "cup", "tree", "kite")
TEXTS = [f"{colour} {thing} zzz {thing}!" for colour, thing in product(COLOURS, THINGS)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


def figures(lines: list[str]) -> tuple[float, float]:
    """Return the perplexity before and after."""
    before, after = re.findall(r"([\d.]+) (?:before|after)", lines[0])
    return float(before), float(after)


def test_the_adapter_makes_the_texts_likelier(corpus: Path, tmp_path: Path) -> None:
    arguments = [f"corpus={corpus}", f"out={tmp_path / 'prior'}", *STEPS]
    before, after = figures(tune_prior.tune(arguments))
    assert after < before / 3
    assert figures(tune_prior.tune(arguments)) == (before, after), "the same seed, the same fit"
    fitted = fuse.CausalLM.load(str(tmp_path / "prior"))
    plain = fuse.CausalLM.load(str(ROOT / "fuse/demo/lm"))
    losses = []
    for model in (fitted, plain):
        term = fuse.Term(model, fuse.NLL())
        losses.append(float(term.score(term.encode(["blue kite zzz kite!"]))[0]))
    assert losses[0] < losses[1] - 1


def test_records_are_put_into_a_template(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    records = [{"question": f"What is {text}", "answer": 7} for text in TEXTS]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    template = r"Q: {question}\nA: {answer} {x"
    assert tune_prior.filled(str(path), template)[0] == f"Q: What is {TEXTS[0]}\nA: 7 {{x"
    arguments = [f"corpus={path}", f"template={template}", f"out={tmp_path / 'out'}", *STEPS]
    before, after = figures(tune_prior.tune(arguments))
    assert after < before
    with pytest.raises(fuse.FuseError, match=r"template=.*has no text, it has question, answer"):
        tune_prior.tune([f"corpus={path}"])


def test_a_prefix_is_read_and_not_learned(tmp_path: Path) -> None:
    texts = ["a boat", "a house"]
    entry = tune_prior.compose(["primary.prefix=Look:"])["primary"]
    _, rows = tune_prior.load(entry, texts, 128)
    tokenizer = AutoTokenizer.from_pretrained(entry["model_id"])
    for text, (ids, labels) in zip(texts, rows, strict=True):
        assert tokenizer.decode(ids) == f"<|endoftext|>Look: {text}<|endoftext|>"
        assert tokenizer.decode([i for i in labels if i >= 0]) == f" {text}<|endoftext|>"
    _, short = tune_prior.load(entry, texts, 4)
    assert [len(ids) for ids, _ in short] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["max_steps=many"], "max_steps=many: expected a whole number"),
        (["rate=0"], "rate=0.0: expected a number above 0"),
        (["corpus=nowhere.txt"], "corpus=nowhere.txt: no such file"),
        (["max_step=3"], "max_step=3: no such option"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(fuse.FuseError, match=re.escape(words)):
        tune_prior.tune(arguments)


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("one text\n")
    with pytest.raises(fuse.FuseError, match="1 texts, expected ten or more"):
        tune_prior.tune([f"corpus={path}"])
