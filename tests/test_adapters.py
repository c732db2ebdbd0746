"""Adapters: the adjoint where the map is exact, every word its own slice, words of any length."""

from __future__ import annotations

import logging
import re
from itertools import product

import pytest
import torch
from conftest import ROOT
from worlds import LinearModel, SumLoss, greedy_tokenizer, letters, vocabulary

import fuse
from fuse.adapters import (
    ADAPTERS,
    Adapter,
    FuseAdapter,
    LexicalAdapter,
    PooledAdapter,
    SemanticAdapter,
)
from fuse.adapters.alignment import words_at
from fuse.adapters.corpus import corpus_words
from fuse.adapters.fidelity import compare, draw_trial
from fuse.adapters.tproduct import tproduct
from fuse.adapters.tproduct_fit import RIDGES
from fuse.guide import Guide
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.text.template import Template

LETTERS = 4


@pytest.fixture(scope="module")
def linear_world() -> tuple[FuseAdapter, fuse.Term]:
    """Two vocabularies over the same letters, and a target whose loss is linear.

    All words have j = k tokens.
    """
    words = ["".join(w) for n in (1, 2, 3) for w in product("abcd"[:LETTERS], repeat=n)]
    source = vocabulary(greedy_tokenizer(letters(LETTERS)), 4, seed=1)
    model = LinearModel(greedy_tokenizer(letters(LETTERS), "<s>", "</s>"), 5, seed=2)
    return FuseAdapter.fit(source, model, words, min_examples_per_case=1), fuse.Term(
        model, SumLoss()
    )


def test_backward_pass_equals_autograd_where_the_map_is_exact() -> None:
    """With target embeddings X * G, the adjoint is the gradient of the whole chain by X."""
    generator = torch.Generator().manual_seed(0)
    source = vocabulary(greedy_tokenizer([*"abcdefgh", *("##" + c for c in "abcdefgh")]), 6, seed=1)
    target = vocabulary(greedy_tokenizer([*"abcdefgh", *("##" + c for c in "abcdefgh")]), 5, seed=2)
    for j, k in product((1, 2, 3, 4), repeat=2):
        m = max(j, k)
        exact = torch.randn(6, 5, m, generator=generator, dtype=torch.float64)
        adapter = FuseAdapter(source, target, {(j, k): exact})
        adapter.jacobians = {(j, k): exact}
        x = torch.randn(j, 6, generator=generator, dtype=torch.float64, requires_grad=True)
        tube = torch.cat([x.T, torch.zeros(6, m - j, dtype=torch.float64)], 1)[None]
        y = tproduct(tube, exact)[0].T[:k]
        upstream = torch.randn(k, 5, generator=generator, dtype=torch.float64)
        ((y * upstream).sum() + 0).backward()
        got = adapter.pull_back([upstream], [j])[0]
        assert (got - x.grad).norm() / x.grad.norm() < 1e-5


def test_fit_finds_the_exact_map() -> None:
    tokenizer = greedy_tokenizer(letters(20))
    source, target = vocabulary(tokenizer, 6, seed=1), LinearModel(tokenizer, 3, seed=2)
    exact = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target.vocabulary.embedding = (
        source.embedding @ exact
    )  # one linear map for every token, so also for words of any length
    words = ["".join(w) for n in (1, 2, 3) for w in product("abcdefghij", repeat=n)]
    adapter = FuseAdapter.fit(source, target, words, ridge=1e-9, min_examples_per_case=1)
    assert set(adapter.jacobians) == {(1, 1), (2, 2), (3, 3)}
    for jacobian in adapter.jacobians.values():
        torch.testing.assert_close(jacobian[..., 0].double(), exact, atol=1e-4, rtol=1e-4)
        assert jacobian[..., 1:].abs().max() < 1e-4 if jacobian.shape[-1] > 1 else True


def test_ridge_is_chosen_by_words_left_out_and_rare_cases_have_no_map(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the target's table is noise, shrinking most is best; where it is a map, least."""
    tokenizer = greedy_tokenizer(letters(26))
    source, noise, exact = (
        vocabulary(tokenizer, 20, seed=1),
        LinearModel(tokenizer, 3, seed=2),
        LinearModel(tokenizer, 3, seed=2),
    )
    exact.vocabulary.embedding = source.embedding @ torch.randn(
        20, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    words = [
        *"abcdefghijklmnopqrstuvwxyz",
        *("".join(w) for w in product("abcdefgh", repeat=2)),
        "abc",
    ]
    chosen = {}
    for name, target in (("noise", noise), ("exact", exact)):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fuse"):
            adapter = FuseAdapter.fit(source, target, words, min_examples_per_case=20)
        assert set(adapter.jacobians) == {(1, 1), (2, 2)}
        chosen[name] = float(
            re.search(r"words of 1 and 1 tokens: 26, ridge (\S+),", caplog.text)[1]
        )
    assert chosen["exact"] == RIDGES[0] < chosen["noise"]
    assert set(FuseAdapter.fit(source, exact, words, min_examples_per_case=10_000).jacobians) == {
        (2, 2)
    }


def test_every_word_gets_its_own_slice(linear_world: tuple) -> None:
    adapter, term = linear_world
    ids, _ = adapter.source.encode(["ab c dab"])[0]
    encoded = term.encode(["ab c dab"])[0]
    gradient = term.gradient([encoded], [range(len(encoded.ids))]).embedding[0]
    words = words_at(adapter.source, [ids] * len(ids), range(len(ids)), [encoded] * len(ids))
    assert [w.source for w in words] == [(0, 2), (0, 2), (2, 3), (3, 6), (3, 6), (3, 6)]
    assert [w.target for w in words] == [(1, 3), (1, 3), (3, 4), (4, 7), (4, 7), (4, 7)]
    assert [(w.left, w.right) for w in words] == [
        ("", "b"),
        ("a", ""),
        ("", ""),
        ("", "ab"),
        ("d", "b"),
        ("da", ""),
    ]
    got = adapter.embedding_gradient([ids] * len(ids), range(len(ids)), term)
    spans = ((1, 3), (3, 4), (4, 7))
    expected = torch.cat(
        [adapter.pull_back([gradient[slice(*span)]], [span[1] - span[0]])[0] for span in spans]
    )
    together = adapter.pull_back(
        [gradient[slice(*span)] for span in spans], [span[1] - span[0] for span in spans]
    )
    torch.testing.assert_close(torch.cat(together), expected)
    torch.testing.assert_close(got, expected)
    assert len({tuple(g) for g in got.tolist()}) == len(ids)


def test_words_without_a_map_take_the_nearest_and_nothing_random(linear_world: tuple) -> None:
    adapter, _ = linear_world
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    (got,) = adapter.pull_back([gradient], [6])
    torch.testing.assert_close(got[:3], adapter.pull_back([gradient[:3]], [3])[0])
    torch.testing.assert_close(got[3:], got[2].expand(3, -1))


def test_lexical_reads_the_targets_own_gradient(linear_world: tuple) -> None:
    """In a linear world the scores of words of one target token are true changes of the loss."""
    _, term = linear_world
    source = vocabulary(greedy_tokenizer(letters(LETTERS)), 3, seed=4)
    adapter = LexicalAdapter.fit(source, term.model)
    row, _ = source.encode(["a b c"])[0]
    scores = adapter.token_scores([row], [1], term)[0]
    words = [source.encode([letter])[0][0][0] for letter in "abcd"]
    losses = term.score(term.encode([f"a {letter} c" for letter in "abcd"])).double()
    torch.testing.assert_close(
        scores[words].double() - scores[words[0]].double(), losses - losses[0], atol=1e-4, rtol=1e-4
    )


def test_lexical_judges_a_token_inside_a_word_by_the_word_it_would_spell(
    clip: fuse.CLIP, lm: fuse.CausalLM, house: torch.Tensor
) -> None:
    adapter = LexicalAdapter.fit(lm.vocabulary, clip)
    term = fuse.Term(clip, fuse.CosineDistance(house))
    rows = [lm.vocabulary.encode(["a firehouse"])[0][0]]
    position = len(rows[0]) - 1
    assert lm.vocabulary.token_spans(rows[0])[1][1] < len("a firehouse"), (
        "the word should have several tokens"
    )
    asked: list[str] = []
    original = adapter._matrix

    def watched(left: str, right: str) -> torch.Tensor:
        asked.append(left)
        return original(left, right)

    adapter._matrix = watched
    adapter.token_scores(rows, [position], term)
    assert asked == ["firehouse"[: -len(lm.vocabulary.token_texts[rows[0][-1]])]]
    own = adapter._build_matrix(asked[0], "").to_dense()[rows[0][-1]]
    subtokens = clip.vocabulary.encode(["firehouse"])[0][0]
    assert own.nonzero().flatten().tolist() == sorted(set(subtokens))


def test_signs_are_no_part_of_the_word_that_they_touch(lm: fuse.CausalLM, clip: fuse.CLIP) -> None:
    row = lm.vocabulary.encode(["a red house, a boat."])[0][0]
    encoded = Template().encode(clip.vocabulary, ["a red house, a boat."])[0]
    words = words_at(lm.vocabulary, [row] * len(row), range(len(row)), [encoded] * len(row))
    spelled = [clip.vocabulary.decode([encoded.ids[slice(*word.target)]])[0] for word in words]
    assert spelled == ["a", "red", "house", ",", "a", "boat", "."]
    assert not any(word.left or word.right for word in words)
    assert [word.source for word in words] == [(i, i + 1) for i in range(len(row))]


@pytest.mark.parametrize("name", ADAPTERS)
def test_batched_scores_equal_single_ones(
    name: str, lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor, demo_words: list[str]
) -> None:
    adapter = ADAPTERS[name].fit(lm.vocabulary, clip, demo_words[:2000])
    term = fuse.Term(clip, fuse.CosineDistance(house), batch_size=3)
    rows = [
        ids
        for ids, _ in lm.vocabulary.encode(["A red house", "a cup", "Two big umbrellas by the sea"])
    ] * 2
    positions = [0, 1, 3, 2, 0, 5]
    together = adapter.token_scores(rows, positions, term)
    assert together.shape == (6, len(lm.vocabulary))
    assert together.isfinite().all()
    alone = torch.cat(
        [adapter.token_scores([r], [p], term) for r, p in zip(rows, positions, strict=True)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def demo_words() -> list[str]:
    return corpus_words("fuse/demo/corpus.txt")


CAPTIONS = [
    "A gray pear in the rain.",
    "There is a drum in the city.",
    "Here is a big green bell by the sea",
    "A white hat above a purple chair at night.",
    "A picture of an orange snail in the forest.",
]


@pytest.fixture(scope="module")
def substitutions(lm: fuse.CausalLM, clip: fuse.CLIP) -> tuple[torch.Tensor, list]:
    """The tokens that begin a word, and true losses with each.

    One trial for every position in a caption and some of the example pictures.
    """
    allowed = lm.vocabulary.allowed.nonzero().flatten()
    tokens = allowed[
        torch.tensor([lm.vocabulary.token_texts[int(i)].startswith(" ") for i in allowed])
    ]
    pictures = [fuse.open_image(ROOT / f"images/{name}.png") for name in ("boat", "cat", "house")]
    images = clip.embed_images(pictures)
    terms = [fuse.Term(clip, fuse.CosineDistance(image)) for image in images]
    trials = []
    for row, _ in lm.vocabulary.encode([CAPTIONS[3]]):
        for place in (
            i
            for i, token in enumerate(row)
            if i and lm.vocabulary.token_texts[token].startswith(" ")
        ):
            texts = lm.vocabulary.decode(
                [(*row[:place], int(token), *row[place + 1 :]) for token in tokens]
            )
            vectors = torch.cat(
                [clip.embed_texts(texts[i : i + 200]) for i in range(0, len(texts), 200)]
            )
            trials += [
                (row, place, term, 1 - vectors @ image)
                for term, image in zip(terms, images, strict=True)
            ]
    return tokens, trials


RANKING = [name for name, kind in ADAPTERS.items() if kind.ranks]
SLOW = [pytest.param(name, marks=pytest.mark.full) for name in RANKING if name != "semantic"]


@pytest.mark.parametrize("name", ["semantic", *SLOW])
def test_adapter_earns_its_place(
    name: str, lm: fuse.CausalLM, clip: fuse.CLIP, demo_words: list[str], substitutions: tuple
) -> None:
    """The best tenth of the ranking holds more of the truly best 10 than a random map's."""
    adapter = ADAPTERS[name].fit(lm.vocabulary, clip, demo_words)
    generator = torch.Generator().manual_seed(0)
    tokens, trials = substitutions

    def recall(broken_map: bool) -> float:
        found = [
            compare(
                (broken(adapter, clip, generator) if broken_map else adapter).token_scores(
                    [row], [place], term
                )[0, tokens],
                losses,
            ).recall
            for row, place, term, losses in trials
        ]
        return sum(found) / len(found)

    needed = {"fuse": 0.13, "lexical": 0.4, "semantic": 0.7}[name]
    assert recall(broken_map=False) > needed
    assert recall(broken_map=True) < needed - 0.01


def broken(adapter: Adapter, model: fuse.Model, generator: torch.Generator) -> Adapter:
    """The adapter with its map replaced by a random one of the same size."""
    tensors = {}
    for name, value in adapter.tensors().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            tensors[name] = noise * value.norm() / noise.norm()
        else:
            tensors[name] = value[torch.randperm(len(value), generator=generator)]
    return type(adapter).from_tensors(adapter.source, model, tensors)


def test_a_token_stands_for_the_words_that_it_may_be_spelling() -> None:
    """Shares of 1 / rank, token for token.

    A token inside a word goes on with that word or begins another.
    """
    source = vocabulary(greedy_tokenizer(letters(4)), 3, seed=4)
    target = LinearModel(greedy_tokenizer(letters(4)), 5, seed=2)
    adapter = SemanticAdapter.fit(source, target, ["ab", "ac", "b"])
    a, b, c = (source.encode([letter])[0][0][0] for letter in "abc")
    inside_b, inside_c = source.encode(["ab"])[0][0][1], source.encode(["ac"])[0][0][1]
    at_start = adapter._build_spellings(())
    shares, known = at_start.shares, at_start.tokens
    assert adapter.words[:3] == [(a, inside_b), (a, inside_c), (b,)]
    torch.testing.assert_close(shares.to_dense()[a, :3], torch.tensor([2 / 3, 1 / 3, 0.0]))
    assert shares.to_dense()[b, 2] == 1
    assert known.tolist() == source.allowed.nonzero().flatten().tolist()
    inside = adapter._build_spellings((a,))
    after_a, known = inside.shares, inside.tokens
    begin = [
        i for i, text in enumerate(source.token_texts) if text.startswith(" ") and source.allowed[i]
    ]
    assert known.tolist() == sorted([*begin, inside_b, inside_c])
    assert after_a.to_dense()[inside_c, 1] == 1
    assert c in [word[0] for word in adapter.words[3:]], (
        "a token that begins no word of the corpus stands for itself"
    )


@pytest.mark.full
def test_semantic_adds_what_the_target_makes_of_words_alone(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor
) -> None:
    """A plain loop: both rankings standardised and summed, at the lexical scores' scale."""
    semantic, lexical = (
        SemanticAdapter.fit(lm.vocabulary, clip),
        LexicalAdapter.fit(lm.vocabulary, clip),
    )
    term = fuse.Term(clip, fuse.CosineDistance(house))
    row = lm.vocabulary.encode(["A red boat in the snow"])[0][0]
    got, plain = (adapter.token_scores([row], [1], term)[0] for adapter in (semantic, lexical))
    s = clip.embed_texts(["A red boat in the snow"])[0]
    gradient = (s @ house) * s - house
    tokens = lm.vocabulary.allowed.nonzero().flatten().tolist()
    output = torch.tensor(
        [
            float(clip.embed_texts([lm.vocabulary.token_texts[token].strip()])[0] @ gradient)
            for token in tokens
        ]
    )
    input_ = plain[tokens]
    mixed = sum((x - x.mean()) / x.std(unbiased=False) for x in (input_, output)) / 2**0.5
    torch.testing.assert_close(
        got[tokens], input_.mean() + input_.std(unbiased=False) * mixed, atol=1e-3, rtol=1e-3
    )


def test_semantic_is_lexical_where_a_model_makes_no_vector(lm: fuse.CausalLM) -> None:
    row = lm.vocabulary.encode(["A red boat"])[0][0]
    term = fuse.Term(lm, fuse.NLL())
    semantic, lexical = (
        kind.fit(lm.vocabulary, lm).token_scores([row], [1], term)
        for kind in (SemanticAdapter, LexicalAdapter)
    )
    assert torch.equal(semantic, lexical)


def test_pooled_proposes_the_targets_own_best_words(linear_world: tuple) -> None:
    """In a linear world the best of the target's own tokens is the one of the lowest loss."""
    _, term = linear_world
    source = vocabulary(greedy_tokenizer(letters(LETTERS)), 3, seed=4)
    adapter = PooledAdapter.fit(source, term.model)
    row = source.encode(["a b c"])[0][0]
    ((first, *_),) = adapter.proposals([row], [1], term, 8)
    losses = {
        text: float(term.score(term.encode([text]))[0])
        for text in (f"a {letter} c" for letter in "abcd")
    }
    assert losses[first] == min(losses.values())
    assert not adapter.token_scores([row], [1], term).any()
    assert adapter.measure(term, ["a b c"], torch.Generator()) is None


@pytest.mark.parametrize("method", [fuse.GCG(search_width=16), fuse.AutoDAN(search_width=16)])
def test_pooled_candidates_come_from_all_models(
    method: fuse.GCG, lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor
) -> None:
    adapter = PooledAdapter.fit(lm.vocabulary, clip)
    objective = fuse.Objective(
        fuse.Term(lm, fuse.NLL()),
        {"clip": fuse.Term(clip, fuse.CosineDistance(house), weight=10, adapter=adapter)},
    )
    guide = Guide(objective)
    row = lm.vocabulary.encode(["A small"])[0][0]
    state, _ = method.init(guide, row, torch.Generator())
    proposed = method.propose(state, [row], guide, torch.Generator().manual_seed(0))
    assert proposed is not None
    candidates = proposed.ids
    own = {ids for ids in candidates if abs(len(ids) - len(row)) <= 1}
    (pool,) = guide.proposals([row], [1], 64)
    assert pool[0] and all(objective.valid(pool[0]))
    assert 4 <= len(candidates) <= 16 and own
    assert len({len(ids) for ids in pool[0]}) > 1, (
        "a word of the secondary's may take several tokens"
    )


def test_report_has_coverage_and_errors(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor, demo_words: list[str]
) -> None:
    term = fuse.Term(clip, fuse.CosineDistance(house))
    fitted = FuseAdapter.fit(lm.vocabulary, clip, demo_words, max_subtokens=2)
    report = fitted.report(
        term, CAPTIONS[:2], demo_words, torch.Generator().manual_seed(0), candidates=64
    )
    assert report.fidelity is not None and -1 <= report.fidelity.cosine <= 1
    assert 0 < report.corpus < 1 and 0 < report.vocabulary <= 1
    assert set(report.fit_errors) == {f"{j}x{k}" for j, k in fitted.jacobians}
    assert all(0 < error < 1.5 for error in report.fit_errors.values())
    lexical = LexicalAdapter.fit(lm.vocabulary, clip).report(
        term, CAPTIONS[:2], demo_words, torch.Generator(), candidates=64
    )
    assert lexical.corpus == 1 and not lexical.fit_errors


LONG = "abcdabcdabcd"
"""One token of the source, and more tokens of the target than its context has room for."""


@pytest.fixture(scope="module")
def short_world() -> tuple[EmbeddedVocabulary, LinearModel]:
    """A target that reads six tokens beside its special ones, and none beyond."""
    source = vocabulary(greedy_tokenizer([*letters(LETTERS), LONG]), 4, seed=1)
    target_tokens = greedy_tokenizer(letters(LETTERS), "<s>", "</s>")
    return source, LinearModel(target_tokens, 5, seed=2, max_length=8)


@pytest.mark.parametrize("name", ADAPTERS)
def test_words_longer_than_the_secondarys_context_are_not_covered(
    name: str, short_world: tuple
) -> None:
    """Nothing crashes; such a word is scored like others, and left out of what is read."""
    source, model = short_world
    term = fuse.Term(model, SumLoss())
    adapter = ADAPTERS[name].fit(source, model, ["ab", LONG, "b", LONG + "a"], max_examples=1)
    assert adapter.covers([LONG, LONG + "a"]) == [False, False]
    texts = [f"a {LONG} b", LONG, "a b c d a b c d", "ab cd"]
    report = adapter.report(term, texts, ["ab", LONG], torch.Generator().manual_seed(0))
    if adapter.ranks:
        assert report.fidelity is not None and -1 <= report.fidelity.spearman <= 1
    assert report.corpus < 1 and report.vocabulary < 1
    row = source.encode(["a b"])[0][0]
    scores = adapter.token_scores([row, row], [0, 1], term)
    assert scores.isfinite().all()
    again = ADAPTERS[name].from_tensors(source, model, adapter.tensors())
    # Files hold vectors in half precision
    others = again.token_scores([row, row], [0, 1], term)
    torch.testing.assert_close(others, scores, atol=2e-3, rtol=1e-3)


def test_semantic_reads_the_words_that_fit_alone(short_world: tuple) -> None:
    source, model = short_world
    long, c = (source.encode([word])[0][0] for word in (LONG, "c"))
    adapter = SemanticAdapter.fit(source, model, ["ab", LONG, "b"])
    assert len(long) == 1 and long not in adapter.words and c in adapter.words
    row, term = source.encode(["a b"])[0][0], fuse.Term(model, SumLoss())
    lexical = LexicalAdapter.fit(source, model).token_scores([row], [1], term)
    # Without a vector, the lexical score stands alone
    scores = adapter.token_scores([row], [1], term)
    torch.testing.assert_close(scores[0, long], lexical[0, long])


def test_a_trial_keeps_what_the_secondary_can_read(short_world: tuple) -> None:
    source, model = short_world
    term = fuse.Term(model, SumLoss())
    long = source.encode([LONG])[0][0][0]
    generator = torch.Generator().manual_seed(0)
    trial = draw_trial(source, term, "a b c d a b c d", 100, generator)
    assert len(trial.row) == 6 and long not in trial.tokens.tolist()
    assert len(trial.tokens) == len(trial.losses) == LETTERS
    nothing = draw_trial(source, term, LONG, 100, generator)
    assert not nothing.row and not len(nothing.tokens)
    adapter = LexicalAdapter.fit(source, model)
    assert adapter.measure(term, [LONG], generator) is None
