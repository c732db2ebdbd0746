"""Scoring in batches equals scoring one by one; equal rows are scored once."""

from __future__ import annotations

import pytest
import torch

import fuse
from fuse import scoring
from fuse.vocabulary import Template

PROMPTS = ["A red house", "a cup", "A red house", "Two big umbrellas stand by the sea in heavy rain, and nobody knows why.", "A red cup"]


@pytest.fixture(params=["lm", "clip", "minilm"])
def term(request: pytest.FixtureRequest) -> fuse.Term:
    model = request.getfixturevalue(request.param)
    loss = fuse.NLL() if request.param == "lm" else fuse.CosineDistance(model.embed_texts(["A blue boat on the sea."])[0])
    return fuse.Term(model, loss, prefix="See", suffix=".")


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_batched_equals_single(term: fuse.Term, batch_size: int) -> None:
    rows = term.encode(PROMPTS)
    alone = torch.cat([scoring.score(term.model, term.loss, [row], 1) for row in rows])
    together = scoring.score(term.model, term.loss, rows, batch_size)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    assert together[0] == together[2]
    places = [range(*row.free) for row in rows]
    single = [scoring.gradient(term.model, term.loss, [row], 1, [place]) for row, place in zip(rows, places, strict=True)]
    batched = scoring.gradient(term.model, term.loss, rows, batch_size, places)
    for i, place in enumerate(places):
        torch.testing.assert_close(batched.embedding[i, : len(place)], single[i].embedding[0], atol=1e-5, rtol=1e-3)
        assert not batched.embedding[i, len(place) :].any()
        if batched.labels is not None:
            torch.testing.assert_close(batched.labels[i, : len(place)], single[i].labels[0], atol=1e-5, rtol=1e-3)
            assert not batched.labels[i, len(place) :].any()


def test_equal_rows_are_scored_once(term: fuse.Term, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loss = type(term.loss)
    original = loss.__call__
    monkeypatch.setattr(loss, "__call__", lambda self, model, inputs: (seen.append(len(inputs.ids)), original(self, model, inputs))[1])
    scoring.score(term.model, term.loss, term.encode(PROMPTS), 128)
    assert sum(seen) == len(set(PROMPTS))


def test_padding_stays_small() -> None:
    lengths = [3, 3, 4, 4, 5, 9, 10, 60]
    batches = [list(b) for b in scoring._batches(range(8), lengths, 3)]
    assert [i for batch in batches for i in batch] == list(range(8))
    assert all(len(b) <= 3 and lengths[b[-1]] <= 1.25 * lengths[b[0]] + 1 for b in batches)


def test_a_neutral_point_hides_the_token(clip: fuse.CLIP, house: torch.Tensor) -> None:
    """At a neutral position the gradient does not depend on which token stands there."""
    loss = fuse.CosineDistance(house)
    (row,) = Template().encode(clip.vocabulary, ["a red house"])
    other = row.with_free_ids((row.free_ids[0], 7, *row.free_ids[2:]))
    place, read = [[row.free[0] + 1]], [clip.vocabulary.point("mean")[None]]
    got = [scoring.gradient(clip, loss, [r], 1, place, read).embedding for r in (row, other)]
    torch.testing.assert_close(got[0], got[1])
    plain = [scoring.gradient(clip, loss, [r], 1, place).embedding for r in (row, other)]
    assert not torch.allclose(plain[0], plain[1])
