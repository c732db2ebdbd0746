"""Whatever a text holds: what is promised of its tokens, or one clear line.

Plain `pytest` tries some; `pytest -m full` tries 10,000 in one process.
"""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
from conftest import REALBED, ROOT
from transformers import AutoTokenizer

import fuse
from fuse.text.constraints import Constraints
from fuse.text.template import Template
from fuse.text.vocabulary import Vocabulary

DEMO = {name: ROOT / "fuse/demo" / name for name in ("lm", "clip", "mood")}
REAL = {name: REALBED / "tokenizers" / name for name in ("gpt2", "clip", "llama")}
ODD = [
    *("\u200d", "\ufe0f", "\u0301", "\u202e", "\ufeff", "\u00ad", "\u2028", "\x85", "\0"),
    *("\x1b[2J", "\t", "\n", "\r\n", " ", "   ", "\u3000", "\u00a0"),
    *("\ud800", "\udcff", "\U0010ffff", "\ue000"),  # two lone surrogates; no characters
    *("e\u0301", "I\u0307", "\u00df", "\ufb01", "\u0915\u094d\u0937\u093f", "\ufdfa"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea"),  # family, flag
    *("<|endoftext|>", "<s>", "</s>", "[CLS]", "[MASK]", "<unk>"),
    *("\u2581", "\u0120", "##a", "</w>", ".", "'", '"', "1", "A red house"),
]
"""What tokenizers treat in a way of their own."""


@cache
def vocabulary(folder: str) -> Vocabulary:
    return Vocabulary(AutoTokenizer.from_pretrained(folder), max_length=77)


def any_text(rng: Random) -> str:
    """Return a text of any scripts, mostly a short one."""
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(["", " ", "\t\n", "    "])
    if kind < 0.17:
        return rng.choice(["a", "\u00e9", "\U0001f600", " ", "a b "]) * 3000
    parts = []
    for _ in range(rng.randint(1, 12)):
        anywhere, low = chr(rng.randrange(0x110000)), chr(rng.randrange(0x3000))
        parts.append(rng.choice([rng.choice(ODD), rng.choice("aB 9.!-"), anywhere, low]))
    return "".join(parts)


def check_text(vocab: Vocabulary, rng: Random) -> bool:
    """Check what is promised of one prompt and the text around it; False where it is refused."""
    prompt = any_text(rng)
    around = [any_text(rng) if rng.random() < 0.7 else "" for _ in range(3)]
    start = rng.choice(["auto", "none", any_text(rng)])
    try:
        template = Template(*around, start=start, join=rng.choice(["space", "none"]))
        (encoded,) = template.encode(vocab, [prompt])
    except fuse.FuseError as error:
        assert len(str(error).splitlines()) == 1
        str(error).encode()
        return False
    whole, prompt_span, label_span = template.render(prompt)
    assert whole[slice(*prompt_span)] == prompt and whole[slice(*label_span)] == around[2]
    ids = tuple(vocab.tokenizer(whole, add_special_tokens=False, verbose=False).input_ids)
    assert encoded.ids in (template.head(vocab) + ids + vocab.tail, ids + vocab.tail)
    assert len(encoded.chars) == len(encoded.free_ids)
    assert all(0 <= start <= end <= len(whole) for start, end in encoded.chars)
    assert encoded.free_ids or not any(c.isascii() and c.isalnum() for c in prompt)
    check_spans(vocab, ids[:60], rng)
    return True


def check_spans(vocab: Vocabulary, row: tuple[int, ...], rng: Random) -> None:
    """Check that tokens are found at characters in order, and that nothing but blanks is left."""
    (text,) = vocab.decode([row])
    spans = vocab.token_spans(row)
    assert len(spans) == len(row) and spans == sorted(spans)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    spelled = "".join(text[start:end] for start, end in spans)
    assert "".join(spelled.split()) == "".join(text.split())
    for position in rng.sample(range(len(row)), min(3, len(row))):
        begin, end = vocab.word_around(row, position)
        assert begin <= position < end <= len(row)
    try:
        constraints = Constraints(block=[any_text(rng)], ascii=rng.random() < 0.5)
    except fuse.FuseError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert isinstance(constraints.accept(vocab, row, text), bool)


def fuzzed(folder: str, count: int) -> int:
    """Check random texts, and return how many were not refused."""
    rng = Random(0)
    return sum(check_text(vocabulary(folder), rng) for _ in range(count))


@pytest.mark.parametrize("name", DEMO)
def test_any_text_has_tokens_as_promised_or_one_line(name: str) -> None:
    assert fuzzed(str(DEMO[name]), 100) > 50


@pytest.mark.parametrize("name", DEMO)
def test_any_listed_words_leave_tokens_or_one_line(name: str) -> None:
    rng, vocab, refused = Random(1), vocabulary(str(DEMO[name])), 0
    for _ in range(20):
        try:
            constraints = Constraints(ascii=False, allow=[any_text(rng), any_text(rng)])
            allowed = constraints.allowed(vocab)
            constraints.long_words(vocab, constraints.usable(vocab, allowed))
            assert allowed.any()
        except fuse.FuseError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused < 20


@pytest.mark.full
def test_10_000_texts_have_tokens_as_promised_or_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [str(path) for path in (*DEMO.values(), *REAL.values()) if path.is_dir()]
    each = -(-10_000 // len(folders))
    kept = sum(fuzzed(folder, each) for folder in folders)
    with capsys.disabled():
        print(f"\n{each * len(folders)} texts, {kept} of them taken, {len(folders)} tokenizers")  # noqa: T201
    assert kept > 5000
