"""Scoring in batches equals scoring one by one; equal rows are scored once."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from conftest import ROOT

import fuse
from fuse import roots
from fuse.adapter.fidelity import rank_correlation
from fuse.batches import batches, packs
from fuse.losses import VectorLoss
from fuse.models import output
from fuse.objective import FEW
from fuse.scoring import Scorer
from fuse.vocabulary import Encoded, Template

PROMPTS = ["A red house", "a cup", "A red house", "Two big umbrellas stand by the sea in heavy rain, and nobody knows why.", "A red cup"]


@pytest.fixture(params=["lm", "clip", "minilm"])
def term(request: pytest.FixtureRequest) -> fuse.Term:
    model = request.getfixturevalue(request.param)
    loss = fuse.NLL() if request.param == "lm" else fuse.CosineDistance(model.embed_texts(["A blue boat on the sea."])[0])
    return fuse.Term(model, loss, prefix="See", suffix=".")


def scorer(term: fuse.Term, batch_size: int = 128) -> Scorer:
    """A new one, which remembers nothing."""
    return Scorer(term.model, term.loss, term.surroundings, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_batched_equals_single(term: fuse.Term, batch_size: int) -> None:
    rows = term.encode(PROMPTS)
    alone = torch.cat([scorer(term, 1).score([row]) for row in rows])
    together = scorer(term, batch_size).score(rows)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    assert together[0] == together[2]
    places = [range(*row.free) for row in rows]
    single = [scorer(term, 1).gradient([row], [place]) for row, place in zip(rows, places, strict=True)]
    batched = scorer(term, batch_size).gradient(rows, places)
    for i, place in enumerate(places):
        torch.testing.assert_close(batched.embedding[i, : len(place)], single[i].embedding[0], atol=1e-5, rtol=1e-3)
        assert not batched.embedding[i, len(place) :].any()
        if batched.labels is not None:
            torch.testing.assert_close(batched.labels[i, : len(place)], single[i].labels[0], atol=1e-5, rtol=1e-3)
            assert not batched.labels[i, len(place) :].any()


def test_equal_rows_are_scored_once(term: fuse.Term, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loss, name = type(term.loss), "at" if isinstance(term.loss, VectorLoss) else "__call__"
    original = getattr(loss, name)

    def counting(*arguments: Any) -> torch.Tensor:
        found = original(*arguments)
        seen.append(len(found))
        return found

    monkeypatch.setattr(loss, name, counting)
    fresh = scorer(term)
    first = fresh.score(term.encode(PROMPTS))
    assert sum(seen) == len(set(PROMPTS))
    assert torch.equal(fresh.score(term.encode(PROMPTS[::-1])).flip(0), first)
    assert sum(seen) == len(set(PROMPTS))


@pytest.mark.parametrize("sizes", [[3, 5, 4, 4, 6, 9, 10, 60], [1, 5, 3, 1, 4, 1, 9, 20]])
@pytest.mark.parametrize("spare", [0, 20])
def test_little_is_read_in_vain(sizes: list[int], spare: int) -> None:
    found = batches(sizes, 3, spare)
    order = [i for batch in found for i in batch]
    assert sorted(order) == list(range(8))

    def cost(batch: list[int]) -> float:
        return spare + len(batch) * max(sizes[i] for i in batch) if len(batch) <= 3 else torch.inf

    unlike = [i for i in range(1, 8) if sizes[order[i]] != sizes[order[i - 1]]]
    every = [[0, *cuts, 8] for count in range(8) for cuts in combinations(unlike, count)]
    assert sum(map(cost, found)) == min(sum(cost(order[a:b]) for a, b in pairwise(cuts)) for cuts in every)


def test_equal_rows_fill_whole_batches() -> None:
    assert [len(batch) for batch in batches([3] * 10, 4, 0)] == [4, 4, 2]


@pytest.mark.parametrize("sizes", [[3, 5, 4, 4, 6, 9, 10, 60], [0, 0, 0], [2] * 100, []])
def test_packs_are_few_and_about_as_large(sizes: list[int]) -> None:
    found = packs(sizes, 30, 50)
    assert sorted(i for pack in found for i in pack) == list(range(len(sizes)))
    assert all(len(pack) <= 30 and sum(sizes[i] for i in pack) <= 50 + max(sizes) for pack in found)
    assert len(found) <= sum(sizes) / 50 + 1 + len(sizes) / 30


BEAM = ["See how a red house stands in the deep snow of winter", "A blue cup lies on the"]
CHILDREN = [
    "See how a red house stands in the deep snow of spring",
    "See how a red house stands in the",
    "See how a red house stands in the deep snow of winter",
    "See how a red house stands in deep deep snow of winter",
    "A blue cup lies on the table",
    "A blue cup lies near the",
    "Nothing that was ever read",
]


@pytest.mark.parametrize("prefix", ["", "This picture was drawn for you, and it shows:"])
@pytest.mark.parametrize("kind", [fuse.NLL, fuse.LogProb, fuse.KLDiv, "label", "label and prompt", "clip", "minilm"])
def test_with_reuse_equals_without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: Any, prefix: str) -> None:
    """What candidates share with the rows that they come from is read once, and so is the prefix; nothing changes by it."""
    if kind in ("clip", "minilm"):
        model = request.getfixturevalue(kind)
        loss: Any = fuse.CosineDistance(model.embed_texts(["A blue boat on the sea."])[0])
    else:
        model = request.getfixturevalue("lm")
        labels = {"label": fuse.CrossEntropy("by the sea."), "label and prompt": fuse.CrossEntropy("by the sea.", 0.5)}
        loss = labels[kind] if isinstance(kind, str) else kind()
    term = fuse.Term(model, loss, prefix=prefix, suffix="and so on")
    rows, beam = term.encode(CHILDREN), term.encode(BEAM)
    places = [[row.free[1] - 2, row.free[1] - 1] for row in rows]
    plain, reusing = scorer(term), scorer(term)
    monkeypatch.setattr(plain, "_reuse", lambda rows, limits=None: (None, [roots.Overlap(0, 0, 0, 0, 0)] * len(rows)))
    plain._spare = reusing._spare = 0  # reuse wherever it saves a token
    tokens_read: list[int] = []
    first = model.network.text_model.encoder.layers[0] if kind == "clip" else model.embedding_layer
    layer = first.register_forward_pre_hook(lambda _, given: tokens_read.append(given[0].shape[:2].numel()))
    try:
        wanted, slopes = plain.score(rows), plain.gradient(rows, places)
        without = sum(tokens_read)
        tokens_read.clear()
        for _ in range(2):  # the second beam goes on from the first one's
            reusing.expand(beam)
            torch.testing.assert_close(reusing.score(rows), wanted, atol=2e-5, rtol=0)
            found = reusing.gradient(rows, places)
            torch.testing.assert_close(found.embedding, slopes.embedding, atol=5e-5, rtol=1e-3)
            if slopes.labels is not None:
                torch.testing.assert_close(found.labels, slopes.labels, atol=5e-5, rtol=1e-3)
            beam, reusing._losses = [beam[1], rows[0], rows[4]], type(reusing._losses)()
        assert (sum(tokens_read) / 2 < without) == model.branches
    finally:
        layer.remove()


def test_the_next_token_after_rows_of_the_beam_costs_no_pass_of_its_own(lm: fuse.CausalLM) -> None:
    term = fuse.Term(lm, fuse.NLL())
    passes: list[int] = []
    hook = lm.network.register_forward_hook(lambda *_: passes.append(1))
    try:
        beam = term.encode(BEAM)
        term.scorer._spare = 0  # do not read in vain what would join two batches
        term.scorer.expand(beam)
        ids = [row.ids for row in beam]
        found = term.scorer.next_token_log_probs([ids[0], ids[1], ids[0][:4]])
        term.scorer.score(term.around([(*row.free_ids, row.free_ids[1]) for row in beam]))
        assert len(passes) == 1
        fresh = scorer(term)
        alone = torch.cat([fresh.next_token_log_probs([row]) for row in (ids[0], ids[1], ids[0][:4])])
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)
    finally:
        hook.remove()


def test_a_token_that_spells_the_prompt_and_what_stands_before_is_told_right(lm: fuse.CausalLM) -> None:
    """The trunk keeps no prediction before the prompt's usual first token."""
    term = fuse.Term(lm, fuse.NLL(), prefix="This picture was drawn for you, and it shows:")
    rows = [replace(row, free=(row.free[0] - 1, row.free[1])) for row in term.encode(BEAM)]
    term.scorer.expand(term.encode(BEAM))
    wanted = torch.cat([scorer(term).score([row]) for row in rows])
    plain = [-torch.cat([log_p[row.ids[t]][None] for t, log_p in told]).mean() for row in rows for told in [_told(lm, row)]]
    torch.testing.assert_close(wanted, torch.stack(plain), atol=1e-4, rtol=0)
    torch.testing.assert_close(term.score(rows), wanted, atol=2e-5, rtol=0)


def _told(lm: fuse.CausalLM, row: Encoded) -> list[tuple[int, torch.Tensor]]:
    log_probs = lm.network(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return [(t, log_probs[t - 1]) for t in range(*row.free)]


EDITED = [
    "See how a red house stands in the deep snow of winter",
    "See how a blue house stands in the deep snow of winter",
    "See how a red house stands in the snow of winter",
    "See how a red house stands all alone in the deep snow of winter",
    "See a red cup lies on the",
    "A blue cup lies on the green table",
    "A blue cup lies in the",
    "Nothing that was ever read",
]
LOSSES = {
    "nll": fuse.NLL(),
    "log_prob": fuse.LogProb(),
    "kl_div": fuse.KLDiv(),
    "label": fuse.CrossEntropy("by the sea."),
    "label and prompt": fuse.CrossEntropy("by the sea.", 0.5),
}


@pytest.mark.parametrize("prefix", ["", "This picture was drawn for you, and it shows:"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_estimate_that_reads_all_is_the_loss(lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, loss: str, prefix: str) -> None:
    term = fuse.Term(lm, LOSSES[loss], prefix=prefix, suffix="and so on")
    term.scorer.expand(term.encode(BEAM))
    rows = term.encode(EDITED)
    assert torch.equal(term.scorer.estimate([]), torch.zeros(0))
    monkeypatch.setattr(roots, "WINDOW", 99)
    torch.testing.assert_close(term.scorer.estimate(rows), scorer(term).score(rows), atol=2e-5, rtol=0)


@pytest.mark.parametrize("loss", ["nll", "label", "label and prompt"])
def test_an_estimate_reads_little_and_ranks_well(lm: fuse.CausalLM, loss: str) -> None:
    term = fuse.Term(lm, LOSSES[loss], prefix="Look:")
    prompt = "A red house stands alone in the deep snow, and a small black cat sleeps on the roof"
    begun = term.encode([prompt])[0].free_ids
    words = [row.free_ids[0] for row in term.encode(prompt.split() + "blue green boat tree under two train old".split())]  # noqa: SIM905
    rows = term.around([(*begun[:i], word, *begun[i + 1 :]) for i in range(len(begun)) for word in words])
    tokens_read: list[int] = []
    hook = lm.embedding_layer.register_forward_hook(lambda _, given, out: tokens_read.append(given[0].numel()))
    try:
        term.scorer.expand(term.encode([prompt]))
        guessed = term.scorer.estimate(rows)
        estimated = sum(tokens_read)
        tokens_read.clear()
        losses = term.scorer.score(rows)
    finally:
        hook.remove()
    assert estimated < 0.6 * sum(tokens_read)
    assert rank_correlation(guessed, losses) > 0.8
    assert int(losses.argmin()) in guessed.argsort()[:8]


@pytest.mark.parametrize("loss", ["label", "label and prompt"])
def test_an_estimate_sums_few_of_many_tokens_as_they_are(lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    term = fuse.Term(lm, LOSSES[loss], prefix="Look:", suffix="and")
    begun = term.encode(["A red house stands alone in the deep snow"])[0].free_ids
    rows = term.around([(*begun[:i], token, *begun[i + 1 :]) for i in range(len(begun)) for token in range(300, 310)])
    term.scorer.expand(term.around([begun]))
    whole = term.scorer.estimate(rows)
    widths: list[int] = []
    widened = output.widened  # every logit goes through it
    monkeypatch.setattr(output, "widened", lambda logits: [widths.append(logits.numel()), widened(logits)][1])
    term.scorer.estimate(rows)
    summed = sum(widths)
    widths.clear()
    monkeypatch.setattr(output, "SHORTLIST", 100)
    few = term.scorer.estimate(rows)
    assert sum(widths) < 0.7 * summed
    torch.testing.assert_close(few, whole, atol=0.02, rtol=0)
    assert not torch.equal(few, whole)
    assert rank_correlation(few, whole) > 0.99


def test_an_estimate_is_exact_where_only_the_end_changed(lm: fuse.CausalLM) -> None:
    term = fuse.Term(lm, fuse.NLL(), prefix="Look:")
    term.scorer.expand(term.encode(BEAM))
    rows = [row for ids in term.encode(BEAM) for row in term.around([ids.free_ids, ids.free_ids[:-1], (*ids.free_ids, 300)])]
    torch.testing.assert_close(term.scorer.estimate(rows), scorer(term).score(rows), atol=2e-5, rtol=0)


def test_clip_estimates_well_from_what_changed(clip: fuse.CLIP, house: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    term = fuse.Term(clip, fuse.CosineDistance(house))
    begun = term.encode(["a red house stands in the deep snow by a small boat"])[0].free_ids
    words = [row.free_ids[0] for row in term.encode("blue green boat tree under two train old house cat cup of".split())]  # noqa: SIM905
    rows = term.around([(*begun[:i], word, *begun[i + 1 :]) for i in range(len(begun)) for word in words])
    term.scorer.expand(term.around([begun]))
    losses, guessed = scorer(term).score(rows), term.scorer.estimate(rows)
    assert not torch.allclose(guessed, losses, atol=1e-3)
    assert rank_correlation(guessed, losses) > 0.95
    monkeypatch.setattr(roots, "WINDOW", 99)
    torch.testing.assert_close(term.scorer.estimate(rows), losses, atol=2e-5, rtol=0)


def test_what_cannot_be_estimated_is_scored(term: fuse.Term) -> None:
    rows = term.encode(PROMPTS)
    assert torch.equal(scorer(term).estimate(rows), scorer(term).score(rows)), "nothing was expanded"
    if not term.model.packs:
        expanded = scorer(term)
        expanded.expand(term.encode(BEAM))
        torch.testing.assert_close(expanded.estimate(rows), scorer(term).score(rows), atol=2e-5, rtol=0)


def test_a_batch_that_does_not_fit_is_halved(lm: fuse.CausalLM, caplog: pytest.LogCaptureFixture) -> None:
    class Greedy(fuse.NLL):
        def __call__(self, model: fuse.CausalLM, inputs: Any) -> torch.Tensor:
            if len(inputs.ids) > 2:
                raise torch.OutOfMemoryError
            return super().__call__(model, inputs)

    term = fuse.Term(lm, fuse.NLL())
    tight = Scorer(lm, Greedy(), term.surroundings)
    rows = term.encode(CHILDREN)
    torch.testing.assert_close(tight.score(rows), scorer(term).score(rows), atol=2e-5, rtol=0)
    assert tight.batch_size <= 2
    assert "out of memory" in caplog.text


def test_a_gradient_tells_the_loss_of_a_row_that_reads_its_own_tokens(term: fuse.Term, monkeypatch: pytest.MonkeyPatch) -> None:
    own, hidden = term.encode(["A red house", "a cup"])
    places = [range(*row.free) for row in (own, hidden)]
    table, point = term.vocabulary.embedding, term.vocabulary.mean_embedding
    read = [table[list(own.free_ids)], point.expand(len(hidden.free_ids), -1)]
    new, expected = scorer(term), scorer(term).score([own, hidden])
    new.gradient([own, hidden], places, read)
    asked: list[Any] = []
    map_ = Scorer._map
    monkeypatch.setattr(Scorer, "_map", lambda self, rows, *others: [asked.extend(rows), map_(self, rows, *others)][1])
    torch.testing.assert_close(new.score([own, hidden]), expected, atol=2e-5, rtol=0)
    assert asked == [hidden]


def test_a_neutral_point_hides_the_token(clip: fuse.CLIP, house: torch.Tensor) -> None:
    """At a neutral position the gradient does not depend on which token stands there."""
    loss = fuse.CosineDistance(house)
    (row,) = Template().encode(clip.vocabulary, ["a red house"])
    other = row.with_free_ids((row.free_ids[0], 7, *row.free_ids[2:]))
    place, read = [[row.free[0] + 1]], [clip.vocabulary.point("mean")[None]]
    got = [Scorer(clip, loss, row).gradient([r], place, read).embedding for r in (row, other)]
    torch.testing.assert_close(got[0], got[1])
    plain = [Scorer(clip, loss, row).gradient([r], place).embedding for r in (row, other)]
    assert not torch.allclose(plain[0], plain[1])


def test_the_best_few_of_a_coarse_type_are_scored_again_precisely(lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor) -> None:
    folder = ROOT / "fuse/demo"
    coarse = fuse.CausalLM.load(str(folder / "lm"), dtype=torch.bfloat16)
    coarse_clip = fuse.CLIP.load(str(folder / "clip"), dtype=torch.bfloat16)

    def objective(model: fuse.CausalLM, sight: fuse.CLIP, precise: bool) -> fuse.Objective:
        first = fuse.Term(model, fuse.NLL(), precise=lm if precise else None)
        second = fuse.Term(sight, fuse.CosineDistance(house), weight=10, precise=clip if precise else None)
        second.adapter = fuse.LexicalAdapter.fit(model.vocabulary, sight)
        return fuse.Objective(first, {"clip": second})

    mixed, exact, half = objective(coarse, coarse_clip, True), objective(lm, clip, False), objective(coarse, coarse_clip, False)
    begun = exact.spell("A red house")
    rows = [(*begun, token) for token in exact.allowed.nonzero().flatten().tolist()]
    found, wanted, rough = (of.evaluate(rows) for of in (mixed, exact, half))
    settled = torch.isclose(found.loss, wanted.loss, atol=1e-5, rtol=0) & found.loss.isfinite()
    best = found.loss.topk(FEW, largest=False).indices
    assert settled[best].all()
    assert FEW <= int((found.loss != rough.loss).sum()) <= 4 * FEW
    assert float(wanted.loss.min()) == pytest.approx(float(found.loss.min()), abs=1e-5)
    result = fuse.search(mixed, fuse.AutoDAN(search_width=32), fuse.Beam(4), steps=3)
    assert result.loss == pytest.approx(exact.evaluate_text(result.prompt)[0], abs=1e-5)
    assert result.loss == pytest.approx(result.trace[-1].best_loss, abs=1e-5)
