"""Constraints: which tokens and texts a search may use, and that every method obeys."""

from __future__ import annotations

import dataclasses
import re
import string
from itertools import pairwise

import pytest
import torch
from sampling import sampled_pairs

import fuse
from fuse.registry import METHODS
from fuse.search.methods.base import Method
from fuse.text.vocabulary import Vocabulary
from fuse.types import Ids

START = "there is my big red boat"


def small(name: str) -> Method:
    """A method, small enough for tests."""
    options = {
        "search_width": 16,
        "prompt_length": 4,
        "texts": ("A red house in the snow.", "my big blue boat", "naïve", "cup"),
    }
    fields = {field.name for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    return METHODS[name](**{key: value for key, value in options.items() if key in fields})


def fluent(lm: fuse.CausalLM, **constraints: object) -> fuse.Objective:
    return fuse.Objective(
        fuse.Term(lm, fuse.NLL(), prefix="Look:"), constraints=fuse.Constraints(**constraints)
    )  # type: ignore[arg-type]


def texts(vocabulary: Vocabulary, allowed: torch.Tensor) -> list[str]:
    return [vocabulary.token_texts[i] for i in allowed.nonzero().flatten().tolist()]


def test_special_tokens_are_never_allowed(
    lm: fuse.CausalLM, clip: fuse.CLIP, minilm: fuse.SentenceEncoder
) -> None:
    loose = fuse.Constraints(ascii=False)
    for model in (lm, clip, minilm):
        vocabulary = model.vocabulary
        allowed = loose.allowed(vocabulary)
        special = {*vocabulary.tokenizer.all_special_ids, *vocabulary.head, *vocabulary.tail}
        assert special
        assert not any(allowed[i] for i in special if i < len(allowed))
        assert allowed.sum() > 0.3 * len(vocabulary)


def test_ascii_leaves_ascii_tokens_alone(minilm: fuse.SentenceEncoder) -> None:
    vocabulary = minilm.vocabulary
    strict, loose = (
        texts(vocabulary, fuse.Constraints(ascii=ascii).allowed(vocabulary))
        for ascii in (True, False)
    )
    assert all(text.isascii() for text in strict)
    assert strict == [text for text in loose if text.isascii()]
    assert len(strict) < len(loose)


def test_words_leaves_words_alone(lm: fuse.CausalLM) -> None:
    objective = fluent(lm, words=True)
    kept = texts(lm.vocabulary, objective.allowed)
    assert all(re.fullmatch(r"\s*[A-Za-z]+", text) for text in kept)
    assert "." not in kept
    # Each token is a word of its own, not a part of one
    for text, ok in (
        ("A red house", True),
        ("A red house.", False),
        ("turquoiseday", False),
        ("red  house", False),
    ):
        row = objective.primary.encode([text])[0].free_ids
        assert objective.valid([row]) == [ok]


SPLIT = ["turquoise", "Turquoise", "TURQUOISE", "tuRquoise"]


@pytest.mark.parametrize("word", SPLIT)
def test_a_blocked_word_is_refused_in_any_case_and_however_it_is_split(
    lm: fuse.CausalLM, word: str
) -> None:
    """Without a prefix the first word has no space before it, and is spelled by several tokens."""
    free = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    blocked = fuse.Objective(
        fuse.Term(lm, fuse.NLL()), constraints=fuse.Constraints(block=("turQuoise", "cup"))
    )
    for text in (word, f"{word}, and a boat", f"A big ({word}) boat"):
        row = free.primary.encode([text])[0].free_ids
        assert free.valid([row]) == [True]
        assert blocked.valid([row]) == [False]
        assert blocked.evaluate([row]).loss.tolist() == [float("inf")]
    assert len(free.primary.encode([word])[0].free_ids) > 1
    for text in (f"{word}ish boats", "A red boat", "cupboards"):
        row = free.primary.encode([text])[0].free_ids
        assert blocked.valid([row]) == free.valid([row]) == [True]


def test_tokens_that_spell_a_blocked_word_are_not_allowed(lm: fuse.CausalLM) -> None:
    everything = fuse.Constraints().allowed(lm.vocabulary)
    without = fuse.Constraints(block=("The", "house")).allowed(lm.vocabulary)
    gone = {
        lm.vocabulary.token_texts[i].strip()
        for i in (everything & ~without).nonzero().flatten().tolist()
    }
    assert gone == {"the", "The", "house"}


@pytest.mark.parametrize(
    "text",
    [
        "it's red",
        "it's, red",
        "red, it's",
        "(it's)",
        "It's.",
        "A t-shirt",
        "A T-shirt.",
        "T-shirts and a t-shirt!",
    ],
)
def test_blocked_words_with_signs_within_are_found_beside_other_signs(
    lm: fuse.CausalLM, text: str
) -> None:
    constraints = fuse.Constraints(block=("it's", "t-shirt"))
    row = lm.vocabulary.encode([text])[0][0]
    assert not constraints.accept(lm.vocabulary, row, text)
    assert constraints.accept(lm.vocabulary, row, "it is a shirt")


def test_allow_leaves_the_listed_words_and_signs_alone(lm: fuse.CausalLM) -> None:
    listed = ("a", "red", "blue", "house", "and", ".")
    objective = fluent(lm, allow=listed)
    assert {text.strip().lower() for text in texts(lm.vocabulary, objective.allowed)} >= set(listed)
    for text, ok in (
        ("a red house.", True),
        ("a red and a blue house", True),
        ("a red cup", False),
        ("a redhouse", False),
    ):
        row = objective.primary.encode([text])[0].free_ids
        assert objective.valid([row]) == [ok]
    assert not fluent(lm, allow=("red", "house")).allowed[
        objective.primary.encode(["a"])[0].free_ids[0]
    ]


@pytest.mark.parametrize("options", [{"allow": ("☃",)}, {"words": True, "allow": (".", "!")}])
def test_where_no_token_is_left_the_error_says_so(lm: fuse.CausalLM, options: dict) -> None:
    with pytest.raises(fuse.FuseError, match="constraints="):
        fluent(lm, **options)


def test_where_no_text_can_begin_the_error_names_the_constraints(lm: fuse.CausalLM) -> None:
    """These words are one token each only after a space; a prompt begins without one."""
    objective = fuse.Objective(
        fuse.Term(lm, fuse.NLL()), constraints=fuse.Constraints(allow=("turquoise", "umbrella"))
    )
    try:
        result = fuse.search(objective, fuse.AutoDAN(search_width=8), fuse.Beam(1), steps=3)
    except fuse.FuseError as error:
        assert "constraints" in str(error) or "allow" in str(error)
    else:
        assert set(result.prompt.split()) <= {"turquoise", "umbrella"}


@pytest.mark.parametrize(
    ("constraints", "init", "named"),
    [
        ({}, "a naïve house", "ï"),
        ({"words": True}, "a red house.", "'.'"),
        ({"block": ("house",)}, "a red house", "'house'"),
        ({"allow": ("a", "red")}, "a red cup", "'cup'"),
    ],
)
def test_a_start_against_the_constraints_is_refused_naming_the_token(
    lm: fuse.CausalLM, constraints: dict, init: str, named: str
) -> None:
    objective = fluent(lm, **constraints)
    with pytest.raises(fuse.FuseError, match=r"init=.*not allowed") as caught:
        fuse.search(objective, fuse.AutoDAN(search_width=8), fuse.Beam(1), steps=1, init=init)
    assert named in str(caught.value) or named == "ï"


@pytest.mark.parametrize(
    ("constraints", "init"),
    [
        ({"block": ("turquoise",)}, "turquoise boats"),
        ({"capital": True}, "a red house"),
        ({"no_repeat_ngram_size": 2}, "A red house, a red house"),
    ],
)
def test_a_start_that_breaks_a_rule_as_a_whole_is_refused(
    lm: fuse.CausalLM, constraints: dict, init: str
) -> None:
    objective = fuse.Objective(
        fuse.Term(lm, fuse.NLL()), constraints=fuse.Constraints(**constraints)
    )
    with pytest.raises(fuse.FuseError, match=rf"init='{init}'.*constraints"):
        fuse.search(objective, fuse.GCG(), fuse.Beam(1), steps=1, init=init)


KINDS = {
    "ascii": {"ascii": True},
    "words": {"words": True},
    "capital": {"capital": True},
    "ngrams": {"no_repeat_ngram_size": 2},
    "block": {"block": ("the", "House", "a", "in", "turquoise", ".")},
    "allow": {
        "allow": (
            "there",
            "is",
            "a",
            "red",
            "big",
            "blue",
            "house",
            "boat",
            "my",
            "cup",
            "in",
            "the",
            "snow",
            ".",
        )
    },
}


def obeys(kind: str, text: str, row: Ids, vocabulary: Vocabulary) -> bool:
    """The law of each kind, read off the text alone."""
    if kind == "ascii":
        return text.isascii()
    if kind == "words":
        return all(word.isalpha() for word in text.split()) and len(text.split()) == len(row)
    if kind == "capital":
        return text.strip() == "" or text.strip()[0] in string.ascii_uppercase + string.digits
    if kind == "ngrams":
        pairs = [*pairwise(row)]
        return all(pairs.count(pair) == 1 for pair in pairs)
    found = {part.lower() for part in re.findall(r"\w+|[^\w\s]", text)}
    if kind == "block":
        blocked: tuple[str, ...] = KINDS["block"]["block"]  # type: ignore[assignment]
        return not found & {word.lower() for word in blocked}
    return found <= set(KINDS["allow"]["allow"])  # type: ignore[call-overload]


@pytest.mark.parametrize(("method", "kind"), sampled_pairs(METHODS, KINDS))
def test_every_method_obeys(lm: fuse.CausalLM, method: str, kind: str) -> None:
    objective = fluent(lm, **KINDS[kind])
    strategy = fuse.Beam(1) if METHODS[method].greedy_only else fuse.Beam(2)
    counted: list[Ids] = []
    for init in ("", START.capitalize() if kind == "capital" else START):
        steps = 6 if METHODS[method].greedy_only else 3
        search = fuse.Search(objective, small(method), strategy, steps=steps, init=init)
        state = search.start()
        while not state.ended:
            evaluated = search.evaluate(state, search.propose(state))
            state = search.accept(state, evaluated)
        result = search.result(state)
        for row, losses in state.scored.items():
            if all(loss < float("inf") for loss in losses):
                counted.append(row)
        assert result.free_ids in counted
        if method in ("gcg", "random") or (method == "autodan" and not init):
            assert result.loss < result.initial_loss
    assert len(counted) >= 2
    for row, text in zip(counted, lm.vocabulary.decode(counted), strict=True):
        assert obeys(kind, text, row, lm.vocabulary), text
        assert all(objective.allowed[token] for token in row)
