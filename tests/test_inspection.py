"""`python -m fuse.inspect`: numbers that are known from elsewhere, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REALBED, ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import fuse
from fuse.app.inspection.command import main
from fuse.app.inspection.continuing import Continuing, Shaping
from fuse.app.inspection.generate import GREEDY, continued
from fuse.app.inspection.named import load_model, load_vocabulary
from fuse.app.inspection.neighbours import nearest
from fuse.app.inspection.next_tokens import next_tokens
from fuse.app.inspection.tokens import tokens_of
from fuse.models import CausalLM

GPT2 = REALBED / "tokenizers" / "gpt2"
SMOLLM2 = REALBED / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PUBLISHED = {
    " rain": 6290,
    "rain": 3201,
    " rains": 29424,
    "Rain": 31443,
    "raining": 24674,
    "go": 2188,
    "went": 19963,
    "going": 5146,
}
"""Ids of GPT-2's tokens as they are found in print."""


def ask(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return what the command writes as JSON."""
    main([*arguments, "--json", str(tmp_path / "found.json")])
    return json.loads((tmp_path / "found.json").read_text())


@pytest.mark.skipif(not GPT2.is_dir(), reason=f"{GPT2} is absent")
def test_gpt2s_published_ids() -> None:
    vocabulary = load_vocabulary(str(GPT2))
    found = {text: [token.id for token in tokens_of(vocabulary, text)] for text in PUBLISHED}
    assert found == {text: [token] for text, token in PUBLISHED.items()}


def test_tokens_side_by_side(tmp_path: Path, lm: fuse.CausalLM, clip: fuse.CLIP) -> None:
    text = "two  dogs <b>play</b>, \u00fcberall"
    counts, by_word = ask(tmp_path, "tokens", text, "--model", "demo", "demo_clip")
    for name, model in (("demo", lm), ("demo_clip", clip)):
        own = counts["data"][name]
        assert own["ids"] == list(model.vocabulary.encode([text])[0][0])
        assert own["characters a token"] == pytest.approx(len(text) / len(own["ids"]))
        assert own["subtokens a word"] == pytest.approx(len(own["ids"]) / 4)
        listed = [token["id"] for token in own["tokens of the text"]]
        assert listed == own["ids"]
        spelled = "".join(token["text"] for token in own["tokens of the text"])
        assert spelled.startswith("two")
    assert [row["word"] for row in by_word["data"]] == text.split()


def test_nearest_is_what_all_distances_say(lm: fuse.CausalLM) -> None:
    vocabulary, (token,) = lm.vocabulary, lm.vocabulary.encode([" snow"])[0][0]
    table, allowed = vocabulary.embedding, vocabulary.allowed
    point = table[token]
    for measure, closeness in (
        ("cosine", torch.cosine_similarity(point[None], table)),
        ("euclidean", -(table - point).norm(dim=1)),
    ):
        closeness = closeness.masked_fill(~allowed, -torch.inf)
        closeness[token] = -torch.inf
        (found,) = nearest(vocabulary, point[None], 5, measure, [token])
        assert [one for one, _ in found] == closeness.topk(5).indices.tolist()
        values = [value for _, value in found]
        assert values == pytest.approx(closeness.topk(5).values.abs().tolist(), abs=1e-4)


def check_against_transformers(reader: Continuing, network: Any, tokenizer: Any, text: str) -> None:
    """Compare with a plain pass of transformers, and with its greedy decoding."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = network(ids).logits[0, -1].softmax(-1)
        greedy = network.generate(ids, do_sample=False, max_new_tokens=12, repetition_penalty=1.0)
    row = reader.ids(text)
    found = reader.log_probs(row).exp()
    torch.testing.assert_close(found, expected[: len(found)], atol=1e-5, rtol=0)
    first, steps = next_tokens(reader, text, 5, 4, {"t": Shaping(temperature=0.5)})
    best = expected.topk(5)
    assert [row["id"] for row in first.rows] == best.indices.tolist()
    assert [row["p"] for row in first.rows] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert first.rows[-1]["cumulative"] == pytest.approx(float(best.values.sum()), abs=1e-5)
    sharpened = (expected.double().log() / 0.5).softmax(-1)[best.indices]
    assert [row["t"] for row in first.rows] == pytest.approx(sharpened.tolist(), abs=1e-5)
    taken = [step[0]["id"] for step in steps.data["steps"]]
    new = greedy[0, ids.shape[1] :].tolist()
    assert taken == new[: len(taken)]
    whole, _ = continued(reader, row, 12, GREEDY, torch.Generator())
    ended = new.index(*reader.ends) if reader.ends & set(new) else len(new)
    assert list(whole[len(row) :]) == new[:ended]


def test_next_token_is_transformers_own() -> None:
    folder = ROOT / "fuse/demo/lm"
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, _ = load_model("demo", "causal_lm", CausalLM)
    check_against_transformers(Continuing(model), network, tokenizer, "A red house stands")


@pytest.mark.full
@pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"{SMOLLM2} is absent")
def test_next_token_of_a_real_model_is_transformers_own() -> None:
    model, entry = load_model(str(SMOLLM2), "causal_lm", CausalLM)
    network = AutoModelForCausalLM.from_pretrained(
        SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name)
    reader = Continuing(model, entry["start"])
    check_against_transformers(reader, network, tokenizer, "The capital of France is")


def test_shaping_is_by_its_formula() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05]).double()
    log_probs = probabilities.log()
    nucleus = Shaping(top_p=0.7).apply(log_probs, ())
    torch.testing.assert_close(nucleus, torch.tensor([0.625, 0.375, 0.0, 0.0]).double())
    penalised = Shaping(frequency_penalty=2.0).apply(log_probs, (1, 1, 2))
    expected = (log_probs - 2 * torch.tensor([0, 2, 1, 0])).softmax(-1)
    torch.testing.assert_close(penalised, expected)
    cold = Shaping(temperature=0.0).apply(log_probs, ())
    assert cold.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_every_question_has_a_table_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `views`")
    for number, arguments in enumerate(
        (
            ["tokens", "a $1 <b>house</b>"],
            ["neighbours", " snow"],
            ["next", "A red", "--steps", "2"],
            ["generate", "A red", "--samples", "1", "--length", "3"],
            ["similar", "a dog", "a $ cat", "--model", "demo_clip"],
            ["adapter", "snow", "--overrides", "adapter=fuse"],
        )
    ):
        picture = tmp_path / f"{number}.png"
        main([*arguments, "--png", str(picture)])
        assert fuse.open_image(picture).size[0] > 100
        assert len(capsys.readouterr().out.splitlines()) > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["next", "a", "--model", "demo_clip"], "of kind clip; expected one of causal_lm"),
        (["next", "a", "--model", "./nowhere"], "no such folder"),
        (["neighbours", ""], "nothing to look for"),
        (["similar", "alone", "--model", "demo_clip"], "two sentences or more"),
        (["generate", "--run", "./nowhere"], "holds no run"),
        (["neighbours", "--vector", "[1,2"], "could not be read"),
        (["adapter", "snow", "--overrides", "secondary=[]"], "there is no adapter"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line, line


def test_a_count_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["next", "a", "--top-k", "0"])
    assert "expected a number from 1 to 10000" in capsys.readouterr().err
