"""Sketch: words first, then texts that hold them; and edits of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import fuse
from fuse.guide import Guide
from fuse.search.methods import word_moves
from fuse.search.methods.sketch import SketchState, missing
from fuse.search.strategies.beam import Beam
from fuse.types import Ids

WHOLE = fuse.Constraints(endings=["."])


@pytest.fixture
def objective(lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor) -> fuse.Objective:
    lexical = fuse.LexicalAdapter.fit(lm.vocabulary, clip)
    secondary = fuse.Term(clip, fuse.CosineDistance(house), weight=20, adapter=lexical)
    return fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": secondary}, WHOLE)


def row_of(objective: fuse.Objective, text: str) -> Ids:
    return objective.vocabulary.encode_ids([text])[0]


@pytest.mark.parametrize(
    ("words", "text", "left"),
    [
        (["dogs", "snow"], "Two dogs play in the snow.", []),
        (["dog", "playing"], "Two dogs played.", []),
        (["cart"], "A carpet.", ["cart"]),
        (["stylist", "sea"], "A stylistic search.", ["sea"]),
        ([], "A dog.", []),
    ],
)
def test_a_form_of_a_word_counts_as_the_word(words: list[str], text: str, left: list[str]) -> None:
    assert missing(words, text.split()) == left


def test_each_word_is_the_best_of_those_that_are_shortlisted(objective: fuse.Objective) -> None:
    guide, method, state = Guide(objective), fuse.Sketch(search_width=16), SketchState()
    asked: list[Sequence[str]] = []
    match = guide.match

    def watch(texts: Sequence[str]) -> torch.Tensor:
        asked.append(texts)
        return match(texts)

    guide.match = watch  # type: ignore[method-assign]
    for _ in range(3):
        found = method.propose(state, [()], guide, torch.Generator())
        assert found is not None and found.num_judged == len(asked[-1]) <= 8
        best = min(asked[-1], key=lambda text: float(objective.match([text])))
        assert " ".join(found.state.words) == best
        assert found.state.match < state.match
        assert objective.vocabulary.decode(found.ids) == [best]
        state = found.state


def test_each_word_gives_way_to_a_better_one_in_its_place(objective: fuse.Objective) -> None:
    guide, method = Guide(objective), fuse.Sketch(search_width=16, words=3, rounds=2)
    words = ("cup", "red", "sea")
    match = float(guide.match([" ".join(words)]))
    state = SketchState(words, match, revised=0)
    for at in (0, 1, 2, 0, 1, 2):
        assert not state.writing
        found = method.propose(state, [()], guide, torch.Generator())
        assert found is not None
        after = found.state
        assert [*after.words[:at], *after.words[at + 1 :]] == [
            *state.words[:at],
            *state.words[at + 1 :],
        ]
        assert bool(found.ids) == (after.words != state.words) == (after.match < state.match)
        assert after.match == pytest.approx(float(guide.match([" ".join(after.words)])), abs=1e-5)
        state = after
    assert state.writing and state.match < 0.8 * match


def test_a_beginning_is_judged_with_the_words_that_it_lacks(objective: fuse.Objective) -> None:
    """The loss is that of a text with these words, each of which costs tokens and nats."""
    guide, method = Guide(objective), fuse.Sketch(rows=4, word_cost=7, word_length=2)
    words = ("house", "red")
    state = SketchState(words, writing=True)
    for _ in range(3):
        found = method.propose(state, [()], guide, torch.Generator())
        assert found is not None
        state = found.state
    (row, *_), (nll, *_) = state.rows, state.nll
    text = objective.vocabulary.decode([row])[0]
    left = missing(words, text.split())
    own = objective.terms["primary"].score(objective.terms["primary"].encode([text]))
    assert nll / len(row) == pytest.approx(float(own), abs=1e-4)
    expected = (nll + 7 * len(left)) / (len(row) + 2 * len(left) + 1)
    expected += float(objective.match([" ".join([text, *left])]))
    assert state.estimate == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 0.5, 0.0])
def test_a_text_without_missing_words_is_expected_to_have_its_loss(
    objective: fuse.Objective, penalty: float
) -> None:
    primary = objective.primary
    term = fuse.Term(primary.model, fuse.NLL(length_penalty=penalty), weight=2.0)
    (row,) = term.encode(["A red house in the snow."])
    nll = float(fuse.Term(primary.model, fuse.NLL()).score([row])[0]) * len(row.free_ids)
    guide = Guide(fuse.Objective(term))
    own = 2.0 * float(term.score([row])[0])
    assert guide.primary_loss(nll, len(row.free_ids)) == pytest.approx(own, abs=1e-4)


def test_whole_texts_of_the_words_are_found(objective: fuse.Objective) -> None:
    judged = []
    match = objective.match
    objective.match = lambda texts: judged.append(len(texts)) or match(texts)  # type: ignore
    scored = []

    def note(step: fuse.Step) -> None:
        scored.append(step.prompt)

    result = fuse.search(
        objective, fuse.Sketch(), generator=torch.Generator().manual_seed(0), on_step=note
    )
    assert result.prompt.endswith(".") and "house" in result.prompt.lower()
    assert result.evaluations > sum(judged) > 0
    assert not scored[0].endswith(".") and scored[-1].endswith(".")


def test_without_endings_every_beginning_is_a_text(objective: fuse.Objective) -> None:
    free = fuse.Objective(objective.primary, objective.secondaries)
    rng = torch.Generator().manual_seed(0)
    result = fuse.search(free, fuse.Sketch(search_width=32), steps=12, generator=rng)
    assert "house" in result.prompt.lower()


def test_a_start_gives_the_words(objective: fuse.Objective) -> None:
    guide = Guide(objective)
    start = row_of(objective, "A red house, a house.")
    state, beam = fuse.Sketch().init(guide, start, torch.Generator())
    assert state.words == ("a", "red", "house") and state.writing and beam == [start]


# --- edits of words ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["A red house stands by the sea.", "house", "Red houses"])
def test_words_are_moved_cut_and_joined_whole(objective: fuse.Objective, text: str) -> None:
    begins = Guide(objective).begins_word.tolist()
    row, other = row_of(objective, text), row_of(objective, "Two boats in the harbor")
    rng, seen = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        moved = word_moves.moved(row, begins, rng)
        assert Counter(moved) == Counter(row)
        cut = word_moves.cut(row, begins, rng)
        assert len(cut) < len(row) and not Counter(cut) - Counter(row)
        joined = word_moves.joined(row, other, begins, rng)
        assert set(joined) & set(other) and not set(joined) - set(row) - set(other)
        seen |= {moved, cut, joined}
    assert len(word_moves.word_bounds(row, begins)) == 2 or len(seen) > 10


def test_the_model_writes_in_the_place_of_words(objective: fuse.Objective) -> None:
    """One token more in each round; a wanted token comes everywhere."""
    guide = Guide(objective)
    beam = [row_of(objective, "A red house stands by the sea."), row_of(objective, "A boat.")]
    (wanted,) = row_of(objective, "! boat")[1:]
    pull = torch.zeros(len(guide.vocabulary))
    pull[wanted] = 100.0

    def pulled(rows: Sequence[Ids], positions: Sequence[int]) -> torch.Tensor:
        assert all(row[at] == guide.filler for row, at in zip(rows, positions, strict=True))
        return pull.expand(len(rows), -1)

    found = word_moves.rewritten(beam, 10, guide, pulled, torch.Generator().manual_seed(0))
    for rows in found:
        assert len(rows) == 5 * word_moves.MAX_REWRITTEN_TOKENS
        for shorter, longer in zip(rows, rows[5:], strict=False):
            assert shorter in [longer[:i] + longer[i + 1 :] for i in range(len(longer))]
        assert all(wanted in row for row in rows)


def test_a_search_with_all_moves_keeps_the_laws_and_beats_edits_of_tokens(
    objective: fuse.Objective,
) -> None:
    moves = ("swap", "insert", "delete", "move", "cut", "join", "rewrite")
    method = fuse.GCG(
        search_width=24, moves=moves, sites=3, beam_width=4, distance=2, buffer_size=4
    )
    rng = torch.Generator().manual_seed(0)
    search = fuse.Search(objective, method, steps=4, init="A boat by the sea.", generator=rng)
    assert search.stages[0].strategy == Beam(4, 2)
    fuse.check_search(search)


def test_sites_bound_the_gradients_of_a_step(objective: fuse.Objective) -> None:
    guide, asked = Guide(objective), []
    gradient = guide.token_gradient

    def watch(rows: Sequence[Ids], *others: Any) -> torch.Tensor:
        asked.append(len(rows))
        return gradient(rows, *others)

    guide.token_gradient = watch  # type: ignore[method-assign]
    beam = [row_of(objective, "A red house stands by the sea.")] * 2
    for sites in (3, 0):
        fuse.GCG(sites=sites).propose(None, beam, guide, torch.Generator())
    assert asked[0] == 6 < asked[1]


def test_a_wide_second_method_goes_on_from_several_whole_texts(
    objective: fuse.Objective,
) -> None:
    refine = fuse.GCG(search_width=8, beam_width=3, distance=2, buffer_size=3, steps=2)
    rng = torch.Generator().manual_seed(0)
    first = fuse.Sketch(search_width=32, rows=4, steps=12)
    search = fuse.Search(objective, first, refine=refine, generator=rng)
    state = search.start()
    while state.stage == 0:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
    assert len(state.beam) == 3 and all(objective.finished(state.beam))
    losses = [float(objective.total(torch.tensor([state.scored[row]]))) for row in state.beam]
    assert losses == sorted(losses) and state.best is not None
    assert losses[0] == pytest.approx(state.best.loss)
    alone = replace(search, refine=replace(refine, beam_width=1, distance=0))
    assert alone.stages[1].strategy == Beam(1)
