"""Text to tokens and back."""

from __future__ import annotations

import pytest
import torch
from conftest import REALBED
from transformers import AutoTokenizer

import fuse
from fuse.nn.batch import pad
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.text.template import Template

TEXTS = [
    "A red house in the snow.",
    "Isn't it  a big\nturquoise umbrella?",
    "caf\u00e9 \u2603 walking",
    "unbelievably-long, words!",
]


def real_vocabulary(name: str) -> EmbeddedVocabulary:
    if not (REALBED / "tokenizers" / name).is_dir():
        pytest.skip(f"{REALBED}/tokenizers/{name} is absent")
    tokenizer = AutoTokenizer.from_pretrained(REALBED / "tokenizers" / name)
    return EmbeddedVocabulary(tokenizer, torch.zeros(len(tokenizer), 1), 77)


@pytest.fixture(params=["demo-lm", "demo-clip", "minilm", "gpt2", "clip", "llama"])
def vocab(request: pytest.FixtureRequest) -> EmbeddedVocabulary:
    if request.param in ("gpt2", "clip", "llama"):
        return real_vocabulary(request.param)
    return request.getfixturevalue(request.param.removeprefix("demo-")).vocabulary


def test_special_tokens_are_what_the_tokenizer_adds(clip: fuse.CLIP, lm: fuse.CausalLM) -> None:
    tokenizer = clip.vocabulary.tokenizer
    assert [*clip.vocabulary.head, *clip.vocabulary.tail] == tokenizer("").input_ids
    assert lm.vocabulary.head == (lm.vocabulary.tokenizer.bos_token_id,)
    assert lm.vocabulary.tail == ()


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_is_found_at_the_characters_that_it_spells(
    vocab: EmbeddedVocabulary, text: str
) -> None:
    ids, _ = vocab.encode([text])[0]
    spelled, spans = vocab.decode([ids])[0], vocab.token_spans(ids)
    assert len(spans) == len(ids)
    assert spans == sorted(spans)
    assert all(a <= b for a, b in spans)
    # in order, without overlap, and nothing but white space is left out
    assert "".join(spelled[a:b] for a, b in spans).replace(" ", "") == "".join(spelled.split())
    for token, (a, b) in zip(ids, spans, strict=True):
        alone = vocab.decode([(token,)])[0]
        if alone.isalnum() and alone.isascii():
            assert spelled[a:b] == alone


@pytest.mark.parametrize("text", TEXTS)
def test_prompt_and_label_are_found_among_the_tokens(vocab: EmbeddedVocabulary, text: str) -> None:
    template = Template("The text says:", "which is so.", "a blue kite")
    encoded = template.encode(vocab, [text])[0]
    whole = template.render(text)[0]
    assert whole.startswith("The text says: ")
    assert encoded.ids == vocab.head + vocab.encode([whole])[0][0] + vocab.tail
    inputs = pad([encoded], torch.device("cpu"))
    for mask, expected in ((inputs.free, text), (inputs.label, "a blue kite")):
        got = vocab.decode([tuple(inputs.ids[mask].tolist())])[0]
        assert got.split() == vocab.decode([vocab.encode([expected])[0][0]])[0].split()


def test_joins_words_by_one_space() -> None:
    assert Template("a", ".", "b").render("x y")[0] == "a x y. b"
    assert Template("", "", "").render("x")[0] == "x"
    assert Template("a ", " z").render("x")[0] == "a x z"
    text, prompt, label = Template("pre", "post", "say").render("mid dle")
    assert (text[slice(*prompt)], text[slice(*label)]) == ("mid dle", "say")


def test_allowed_tokens_spell_printable_text(vocab: EmbeddedVocabulary) -> None:
    allowed = vocab.allowed.nonzero().flatten().tolist()
    assert len(allowed) > 0.3 * len(vocab)
    assert not set(allowed) & set(vocab.tokenizer.all_special_ids)
    texts = [vocab.token_texts[i] for i in allowed]
    assert all(text.strip() and text.isprintable() for text in texts)


def test_token_texts_spell_a_text_when_joined(vocab: EmbeddedVocabulary) -> None:
    if vocab.tokenizer.convert_ids_to_tokens(vocab.encode(["a"])[0][0])[0].endswith("</w>"):
        pytest.skip(
            "this vocabulary marks the ends of words: a token alone does not show where one begins"
        )
    ids, _ = vocab.encode(["a red house by the sea"])[0]
    assert "".join(vocab.token_texts[i] for i in ids).split() == vocab.decode([ids])[0].split()


def test_collapsing_and_replacing_tokens(lm: fuse.CausalLM) -> None:
    encoded = Template("Here is", "today", "yes").encode(lm.vocabulary, ["a turquoise umbrella"])[0]
    word = encoded.word((2, 11))
    assert lm.vocabulary.decode([encoded.ids[slice(*word)]]) == ["turquoise"]
    collapsed = encoded.collapsed(word)
    assert len(collapsed.ids) == len(encoded.ids) - (word[1] - word[0] - 1)
    assert collapsed.ids[slice(*collapsed.label)] == encoded.ids[slice(*encoded.label)]
    replaced = encoded.with_free_ids((5,))
    assert replaced.free_ids == (5,)
    assert replaced.ids[slice(*replaced.label)] == encoded.ids[slice(*encoded.label)]


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(fuse.FuseError, match="fast tokenizer"):
        EmbeddedVocabulary(object(), torch.zeros(3, 2), 8)
