"""Scoring in batches equals scoring one by one, and the prefix cache changes no result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, combinations, pairwise
from typing import Any

import pytest
import torch
from conftest import ROOT
from sampling import sampled_pairs

import fuse
from fuse.engine import Engine, prefix_cache
from fuse.engine.batching import packed_batches, padded_batches
from fuse.engine.prefix_cache import ESTIMATE_WINDOW, PrefixCache, cache_hits
from fuse.losses import VectorLoss
from fuse.nn import lm_head
from fuse.nn.batch import CachedPrefixes
from fuse.objective import MIN_PRECISE
from fuse.statistics import rank_correlation
from fuse.text.template import Encoded, Template
from fuse.types import Ids

PROMPTS = [
    "A red house",
    "a cup",
    "A red house",
    "Two big umbrellas stand by the sea in heavy rain, and nobody knows why.",
    "A red cup",
]
PREFIX = "This picture was drawn for you, and it shows:"


@pytest.fixture(params=["lm", "clip", "minilm"])
def term(request: pytest.FixtureRequest) -> fuse.Term:
    model = request.getfixturevalue(request.param)
    loss: Any = fuse.NLL()
    if request.param != "lm":
        loss = fuse.CosineDistance(model.embed_texts(["A blue boat on the sea."])[0])
    return fuse.Term(model, loss, prefix="See", suffix=".")


def engine(term: fuse.Term, batch_size: int = 128, **options: bool) -> Engine:
    """Return a new one, which remembers nothing."""
    return Engine(term.model, term.loss, term.surroundings, batch_size, **options)


@contextmanager
def passes(model: Any) -> Iterator[list[torch.Size]]:
    """Collect the shapes [rows, tokens] of what a causal network's layers read, pass by pass."""
    first = model.embedding_layer
    if isinstance(model, fuse.CLIP):
        first = model.network.text_model.encoder.layers[0]
    found: list[torch.Size] = []
    hook = first.register_forward_pre_hook(lambda _, given: found.append(given[0].shape[:2]))
    try:
        yield found
    finally:
        hook.remove()


def num_tokens(shapes: list[torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes)


@pytest.fixture
def scored_rows(term: fuse.Term, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the loss of `term` was computed of, pass by pass."""
    counts: list[int] = []
    kind, name = type(term.loss), "at" if isinstance(term.loss, VectorLoss) else "__call__"
    original = getattr(kind, name)

    def counting(*arguments: Any) -> torch.Tensor:
        found = original(*arguments)
        counts.append(len(found))
        return found

    monkeypatch.setattr(kind, name, counting)
    return counts


# --- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_batched_equals_single(term: fuse.Term, batch_size: int) -> None:
    rows = term.encode(PROMPTS)
    alone = torch.cat([engine(term, 1).score([row]) for row in rows])
    together = engine(term, batch_size).score(rows)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    assert together[0] == together[2]
    positions = [range(*row.free) for row in rows]
    batched = engine(term, batch_size).gradient(rows, positions)
    for i, (row, own) in enumerate(zip(rows, positions, strict=True)):
        single = engine(term, 1).gradient([row], [own])
        pairs = [(batched.embedding, single.embedding)]
        if batched.labels is not None:
            pairs.append((batched.labels, single.labels))
        for found, expected in pairs:
            torch.testing.assert_close(found[i, : len(own)], expected[0], atol=1e-5, rtol=1e-3)
            assert not found[i, len(own) :].any()


@pytest.mark.parametrize("sizes", [[3, 5, 4, 4, 6, 9, 10, 60], [1, 5, 3, 1, 4, 1, 9, 20]])
@pytest.mark.parametrize("launch_tokens", [0, 20])
def test_padded_batches_cost_the_least(sizes: list[int], launch_tokens: int) -> None:
    found = padded_batches(sizes, 3, launch_tokens)
    order = list(chain.from_iterable(found))
    assert sorted(order) == list(range(8))

    def cost(batch: list[int]) -> float:
        if len(batch) > 3:
            return torch.inf
        return launch_tokens + len(batch) * max(sizes[i] for i in batch)

    unequal = [i for i in range(1, 8) if sizes[order[i]] != sizes[order[i - 1]]]
    costs = []
    for count in range(8):
        for cuts in combinations(unequal, count):
            costs.append(sum(cost(order[a:b]) for a, b in pairwise([0, *cuts, 8])))
    assert sum(map(cost, found)) == min(costs)


def test_equal_rows_fill_whole_batches() -> None:
    assert [len(batch) for batch in padded_batches([3] * 10, 4, 0)] == [4, 4, 2]


@pytest.mark.parametrize("sizes", [[3, 5, 4, 4, 6, 9, 10, 60], [0, 0, 0], [2] * 100, []])
def test_packed_batches_are_few_and_about_as_large(sizes: list[int]) -> None:
    found = packed_batches(sizes, 30, 50)
    assert sorted(chain.from_iterable(found)) == list(range(len(sizes)))
    for batch in found:
        assert len(batch) <= 30
        assert sum(sizes[i] for i in batch) <= 50 + max(sizes)
    assert len(found) <= sum(sizes) / 50 + 1 + len(sizes) / 30


# --- the memo of losses ----------------------------------------------------------------------


def test_equal_rows_are_scored_once(term: fuse.Term, scored_rows: list[int]) -> None:
    new = engine(term)
    first = new.score(term.encode(PROMPTS))
    assert sum(scored_rows) == len(set(PROMPTS))
    assert torch.equal(new.score(term.encode(PROMPTS[::-1])).flip(0), first)
    assert sum(scored_rows) == len(set(PROMPTS))


@pytest.mark.parametrize(
    "forget", [lambda new, rows: new.prefill(rows), lambda new, rows: new.clear()]
)
def test_losses_are_remembered_until_the_next_step(
    term: fuse.Term, scored_rows: list[int], forget: Callable[[Engine, list[Encoded]], None]
) -> None:
    new, rows = engine(term), term.encode(PROMPTS)
    first = new.score(rows)
    forget(new, rows[:1])
    torch.testing.assert_close(new.score(rows), first, atol=2e-5, rtol=0)
    assert sum(scored_rows) == 2 * len(set(PROMPTS))


def test_a_gradient_alone_makes_no_loss_known(term: fuse.Term, scored_rows: list[int]) -> None:
    """Of all rows, also of those that read their own tokens."""
    own, hidden = term.encode(["A red house", "a cup"])
    positions = [range(*row.free) for row in (own, hidden)]
    table, point = term.vocabulary.embedding, term.vocabulary.mean_embedding
    read = [table[list(own.free_ids)], point.expand(len(hidden.free_ids), -1)]
    expected = engine(term).score([own, hidden])
    for given in (None, read):
        new = engine(term)
        new.gradient([own, hidden], positions, given)
        scored_rows.clear()
        torch.testing.assert_close(new.score([own, hidden]), expected, atol=2e-5, rtol=0)
        assert sum(scored_rows) == 2


def test_values_that_come_with_a_gradient_are_not_scored_again(
    term: fuse.Term, scored_rows: list[int]
) -> None:
    rows = term.encode(["A red house", "a cup"])
    positions = [range(*row.free) for row in rows]
    new, expected = engine(term), engine(term).score(rows)
    losses, gradient = new.value_and_gradient(rows, positions)
    scored_rows.clear()
    assert torch.equal(new.score(rows), losses)
    assert not scored_rows
    torch.testing.assert_close(losses, expected, atol=2e-5, rtol=0)
    plain = engine(term).gradient(rows, positions)
    assert torch.equal(gradient.embedding, plain.embedding)
    assert (gradient.labels is None) == (plain.labels is None)
    if gradient.labels is not None:
        assert torch.equal(gradient.labels, plain.labels)
    new.prefill(rows)
    scored_rows.clear()
    torch.testing.assert_close(new.score(rows), expected, atol=2e-5, rtol=0)
    assert sum(scored_rows) == 2, "known in this step alone"


# --- the prefix cache ------------------------------------------------------------------------

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
LOSSES = {
    "nll": fuse.NLL(),
    "log_prob": fuse.LogProb(),
    "kl_div": fuse.KLDiv(),
    "label": fuse.CrossEntropy("by the sea."),
    "label and prompt": fuse.CrossEntropy("by the sea.", 0.5),
}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("kind", "prefix"), sampled_pairs([*LOSSES, "clip", "minilm"], ["", PREFIX])
)
def test_with_the_prefix_cache_equals_without(
    request: pytest.FixtureRequest, kind: str, prefix: str, packing: bool
) -> None:
    """What candidates share with the rows that they come from is read once; so is the prefix."""
    model = request.getfixturevalue(kind if kind in ("clip", "minilm") else "lm")
    loss: Any = LOSSES.get(kind)
    if loss is None:
        loss = fuse.CosineDistance(model.embed_texts(["A blue boat on the sea."])[0])
    term = fuse.Term(model, loss, prefix=prefix, suffix="and so on")
    rows, beam = term.encode(CHILDREN), term.encode(BEAM)
    positions = [[row.free[1] - 2, row.free[1] - 1] for row in rows]
    plain, cached = engine(term, prefix_cache=False), engine(term, packing=packing)
    plain.runner.launch_tokens = cached.runner.launch_tokens = 0  # reuse wherever it saves a token
    with passes(model) as shapes:
        losses, gradient = plain.score(rows), plain.gradient(rows, positions)
        without = num_tokens(shapes)
        shapes.clear()
        for _ in range(2):  # the second beam goes on from the first one's
            cached.prefill(beam)
            torch.testing.assert_close(cached.score(rows), losses, atol=2e-5, rtol=0)
            found = cached.gradient(rows, positions)
            torch.testing.assert_close(found.embedding, gradient.embedding, atol=5e-5, rtol=1e-3)
            if gradient.labels is not None:
                torch.testing.assert_close(found.labels, gradient.labels, atol=5e-5, rtol=1e-3)
            beam = [beam[1], rows[0], rows[4]]
        assert (num_tokens(shapes) / 2 < without) == model.supports_prefix_cache


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", ["lm", "clip"])
def test_rows_are_packed_or_padded_as_asked(
    request: pytest.FixtureRequest, kind: str, packing: bool
) -> None:
    """Packed rows are read as one row without padding; padded ones stand side by side."""
    model = request.getfixturevalue(kind)
    loss: Any = (
        fuse.NLL() if kind == "lm" else fuse.CosineDistance(model.embed_texts(["a boat"])[0])
    )
    term = fuse.Term(model, loss, suffix="and")
    new = engine(term, packing=packing)
    assert model.supports_packing
    begun = term.encode(["A red house stands in the deep snow"])[0].free_ids
    rows = term.with_surroundings([(*begun, token, 300) for token in range(300, 308)])
    new.prefill(term.with_surroundings([begun]))
    with passes(model) as shapes:
        found = new.score(rows)
    filling, *scoring = shapes
    assert filling[0] == 1
    assert {shape[0] for shape in scoring} == {1 if packing else len(rows)}
    plain = engine(term, prefix_cache=False).score(rows)
    torch.testing.assert_close(found, plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_asking_what_a_cache_would_cost_computes_nothing(lm: fuse.CausalLM, prefix: str) -> None:
    term = fuse.Term(lm, fuse.NLL(), prefix=prefix)
    fixed = term.surroundings.free[0]
    assert fixed == 1 or prefix
    new, beam, rows = engine(term), term.encode(BEAM), term.encode(CHILDREN)
    new.prefill(beam)
    runner, length = new.runner, sum(len(row.ids) for row in beam)
    with passes(lm) as shapes:
        # The rows of the beam, or what of them stands behind the prefix, which is read once
        assert runner._fill_cost(runner._beam) == (length - fixed if prefix else length)
        assert runner._fill_cost(runner._fixed) == fixed
        for few in (rows[:1], rows[-1:], rows[4:6]):
            limits = [min(3, fixed + 1)] * len(few)
            reuse = runner._reuse([row.ids for row in few], limits)
            assert reuse.prefixes is None
            assert [match.num_cached_tokens for match in reuse.matches] == [0] * len(few)
        assert not shapes
        assert runner._beam.prefixes is None
        assert runner._fixed.prefixes is None
        ids = [row.ids for row in rows]
        assert runner._reuse(ids, [len(row) - 1 for row in ids]).prefixes is not None
        assert len(shapes) == (2 if prefix else 1), "where it pays, the caches are filled"


def test_the_next_token_after_rows_of_the_beam_costs_no_pass_of_its_own(lm: fuse.CausalLM) -> None:
    term = fuse.Term(lm, fuse.NLL())
    new, beam = engine(term), term.encode(BEAM)
    new.runner.launch_tokens = 0  # no padding that would join two batches
    ids = [row.ids for row in beam]
    asked = [ids[0], ids[1], ids[0][:4]]
    with passes(lm) as shapes:
        new.prefill(beam)
        found = new.next_token_log_probs(asked)
        new.score(term.with_surroundings([(*row.free_ids, row.free_ids[1]) for row in beam]))
        assert len(shapes) == 1
    alone = torch.cat([engine(term).next_token_log_probs([row]) for row in asked])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_a_token_that_spells_the_prompt_and_what_stands_before_is_scored(lm: fuse.CausalLM) -> None:
    """The cache keeps no prediction before the prompt's usual first token."""
    term = fuse.Term(lm, fuse.NLL(), prefix=PREFIX)
    beam = term.encode(BEAM)
    rows = [replace(row, free=(row.free[0] - 1, row.free[1])) for row in beam]
    term.engine.prefill(beam)
    expected = torch.cat([engine(term).score([row]) for row in rows])
    plain = torch.stack([_plain_nll(lm, row) for row in rows])
    torch.testing.assert_close(expected, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(term.score(rows), expected, atol=2e-5, rtol=0)


def _plain_nll(lm: fuse.CausalLM, row: Encoded) -> torch.Tensor:
    """Return the NLL of a row's free tokens, from all logits of the network."""
    log_probs = lm.network(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return -torch.stack([log_probs[t - 1, row.ids[t]] for t in range(*row.free)]).mean()


def random_rows(count: int, generator: torch.Generator) -> list[Ids]:
    """Return rows of few different tokens, so that many begin and end alike."""
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [(7, *torch.randint(3, (n,), generator=generator).tolist()) for n in lengths]


def common(a: Ids, b: Ids) -> int:
    """Return with how many equal tokens two rows begin."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


@pytest.mark.parametrize("prefix", [(), (7,)])
def test_the_longest_beginning_is_found(generator: torch.Generator, prefix: Ids) -> None:
    cached = random_rows(6, generator)
    rows = [*random_rows(40, generator), (8,), (8, 7, 1)]
    limits = [max(0, len(row) - 1 - i % 3) for i, row in enumerate(rows)]
    cache = PrefixCache(cached, prefix)
    for row, limit, match in zip(rows, limits, cache.match_prefix(rows, limits), strict=True):
        longest = max(common(row, other) for other in cached)
        assert match.num_cached_tokens == min(longest, limit)
        assert match.num_cached_tokens <= common(row, cached[match.row])
        assert cache.holds([row]) == (longest == len(row))


@pytest.mark.parametrize("prefix", [(), (7,)])
def test_both_ends_are_matched_with_the_row_that_has_most(
    generator: torch.Generator, prefix: Ids
) -> None:
    cached, rows = random_rows(6, generator), random_rows(40, generator)
    encoded = [Encoded((*row, 9, 9), (), (1, len(row)), (0, 0)) for row in rows]
    matches = PrefixCache(cached, prefix).match_both_ends(encoded)
    width = max(len(row.ids) for row in encoded)
    hits = cache_hits(CachedPrefixes(()), matches, width, torch.device("cpu"))
    pairs = zip(rows, matches, hits.cached_position.tolist(), strict=True)
    for row, match, positions in pairs:
        taken = {p: cached_p for p, cached_p in enumerate(positions) if cached_p >= 0}
        assert all(row[p] == cached[match.row][cached_p] for p, cached_p in taken.items())
        assert match.num_cached_tokens == len(taken)
        # All that the best row shares, but the tokens behind a change and the prompt's last one
        most = 0
        for other in cached:
            start, longest = common(row, other), min(len(row), len(other))
            most = max(most, start + min(common(row[::-1], other[::-1]), longest - start))
        assert most - ESTIMATE_WINDOW - 1 <= len(taken) <= most
        assert max(taken, default=0) < len(row) - 1


# --- estimates -------------------------------------------------------------------------------

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


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_estimate_that_reads_all_is_the_loss(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, loss: str, prefix: str
) -> None:
    term = fuse.Term(lm, LOSSES[loss], prefix=prefix, suffix="and so on")
    term.engine.prefill(term.encode(BEAM))
    rows = term.encode(EDITED)
    assert torch.equal(term.engine.estimate([]), torch.zeros(0))
    monkeypatch.setattr(prefix_cache, "ESTIMATE_WINDOW", 99)
    expected = engine(term).score(rows)
    torch.testing.assert_close(term.engine.estimate(rows), expected, atol=2e-5, rtol=0)


def swapped(term: fuse.Term, begun: Ids, words: str) -> list[Encoded]:
    """Return rows with each token in turn replaced by the first token of each word."""
    tokens = [row.free_ids[0] for row in term.encode(words.split())]
    rows: list[Ids] = []
    for i in range(len(begun)):
        rows += [(*begun[:i], token, *begun[i + 1 :]) for token in tokens]
    return term.with_surroundings(rows)


@pytest.mark.parametrize("loss", ["nll", "label", "label and prompt"])
def test_an_estimate_reads_little_and_ranks_well(lm: fuse.CausalLM, loss: str) -> None:
    term = fuse.Term(lm, LOSSES[loss], prefix="Look:")
    prompt = "A red house stands alone in the deep snow, and a small black cat sleeps on the roof"
    begun = term.encode([prompt])[0].free_ids
    rows = swapped(term, begun, f"{prompt} blue green boat tree under two train old")
    with passes(lm) as shapes:
        term.engine.prefill(term.encode([prompt]))
        estimated = term.engine.estimate(rows)
        num_estimated = num_tokens(shapes)
        shapes.clear()
        losses = term.engine.score(rows)
        assert num_estimated < 0.6 * num_tokens(shapes)
    assert rank_correlation(estimated, losses) > 0.8
    assert int(losses.argmin()) in estimated.argsort()[:8]


@pytest.mark.parametrize("loss", ["label", "label and prompt"])
def test_an_estimate_sums_few_of_many_logits_exactly(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    term = fuse.Term(lm, LOSSES[loss], prefix="Look:", suffix="and")
    begun = term.encode(["A red house stands alone in the deep snow"])[0].free_ids
    edited: list[Ids] = []
    for i in range(len(begun)):
        edited += [(*begun[:i], token, *begun[i + 1 :]) for token in range(300, 310)]
    rows = term.with_surroundings(edited)
    term.engine.prefill(term.with_surroundings([begun]))
    whole = term.engine.estimate(rows)
    counts: list[int] = []
    widened = lm_head.widened  # every logit goes through it

    def counting(logits: torch.Tensor) -> torch.Tensor:
        counts.append(logits.numel())
        return widened(logits)

    monkeypatch.setattr(lm_head, "widened", counting)
    term.engine.estimate(rows)
    summed = sum(counts)
    counts.clear()
    monkeypatch.setattr(lm_head, "SHORTLIST_TOKENS", 100)
    few = term.engine.estimate(rows)
    assert sum(counts) < 0.7 * summed
    torch.testing.assert_close(few, whole, atol=0.02, rtol=0)
    assert not torch.equal(few, whole)
    assert rank_correlation(few, whole) > 0.99


def test_an_estimate_is_exact_where_only_the_end_changed(lm: fuse.CausalLM) -> None:
    term = fuse.Term(lm, fuse.NLL(), prefix="Look:")
    beam = term.encode(BEAM)
    term.engine.prefill(beam)
    rows: list[Encoded] = []
    for row in beam:
        ids = row.free_ids
        rows += term.with_surroundings([ids, ids[:-1], (*ids, 300)])
    expected = engine(term).score(rows)
    torch.testing.assert_close(term.engine.estimate(rows), expected, atol=2e-5, rtol=0)


def test_clip_estimates_well_from_what_changed(
    clip: fuse.CLIP, house: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    term = fuse.Term(clip, fuse.CosineDistance(house))
    begun = term.encode(["a red house stands in the deep snow by a small boat"])[0].free_ids
    rows = swapped(term, begun, "blue green boat tree under two train old house cat cup of")
    term.engine.prefill(term.with_surroundings([begun]))
    losses, estimated = engine(term).score(rows), term.engine.estimate(rows)
    assert not torch.allclose(estimated, losses, atol=1e-3)
    assert rank_correlation(estimated, losses) > 0.95
    monkeypatch.setattr(prefix_cache, "ESTIMATE_WINDOW", 99)
    torch.testing.assert_close(term.engine.estimate(rows), losses, atol=2e-5, rtol=0)


def test_what_cannot_be_estimated_is_scored(term: fuse.Term) -> None:
    rows = term.encode(PROMPTS)
    expected = engine(term).score(rows)
    assert torch.equal(engine(term).estimate(rows), expected), "nothing was prefilled"
    unable = [engine(term, prefix_cache=False), engine(term, packing=False)]
    if not term.model.supports_packing:
        unable.append(engine(term))
    for prefilled in unable:
        prefilled.prefill(term.encode(BEAM))
        torch.testing.assert_close(prefilled.estimate(rows), expected, atol=2e-5, rtol=0)


# --- memory ----------------------------------------------------------------------------------


def _allocate() -> None:
    """Ask the CPU's allocator for more than there are addresses."""
    torch.empty(1 << 50, dtype=torch.uint8)


def _raise(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


OUT_OF_MEMORY = {
    "gpu": _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    "python": _raise(MemoryError()),
    "cpu": _allocate,
}


def tight_engine(term: fuse.Term, fail: Callable[[], None], max_rows: int = 2) -> Engine:
    """Return an engine that fails in its own way with more than `max_rows` rows at once."""

    class Tight(fuse.NLL):
        def __call__(self, model: fuse.CausalLM, inputs: Any) -> torch.Tensor:
            if len(inputs.ids) > max_rows:
                fail()
            return super().__call__(model, inputs)

    return Engine(term.model, Tight(), term.surroundings)


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_halved(
    lm: fuse.CausalLM, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    term = fuse.Term(lm, fuse.NLL())
    rows = term.encode(CHILDREN)
    tight = tight_engine(term, OUT_OF_MEMORY[kind])
    torch.testing.assert_close(tight.score(rows), engine(term).score(rows), atol=2e-5, rtol=0)
    assert tight.runner.batch_size <= 2
    assert "out of memory" in caplog.text
    positions = [range(*row.free) for row in rows]
    tight, plain = tight_engine(term, OUT_OF_MEMORY[kind]), engine(term)
    found, expected = tight.gradient(rows, positions), plain.gradient(rows, positions)
    torch.testing.assert_close(found.embedding, expected.embedding, atol=1e-5, rtol=1e-3)
    assert tight.runner.batch_size <= 2


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_a_single_row_that_does_not_fit_is_an_error_of_the_users(
    lm: fuse.CausalLM, kind: str
) -> None:
    term = fuse.Term(lm, fuse.NLL())
    tight = tight_engine(term, OUT_OF_MEMORY[kind], max_rows=0)
    with pytest.raises(fuse.FuseError, match="batch_size=1: out of memory with a single row"):
        tight.score(term.encode(CHILDREN))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_pass_and_leave_the_batch_size(lm: fuse.CausalLM, error: Exception) -> None:
    term = fuse.Term(lm, fuse.NLL())
    broken = tight_engine(term, _raise(error))
    with pytest.raises(type(error)) as raised:
        broken.score(term.encode(CHILDREN))
    assert raised.value is error
    assert broken.runner.batch_size == 128


# --- points and types ------------------------------------------------------------------------


def test_a_neutral_point_hides_the_token(clip: fuse.CLIP, house: torch.Tensor) -> None:
    """At a neutral position the gradient does not depend on which token stands there."""
    loss = fuse.CosineDistance(house)
    (row,) = Template().encode(clip.vocabulary, ["a red house"])
    other = row.with_free_ids((row.free_ids[0], 7, *row.free_ids[2:]))
    positions, read = [[row.free[0] + 1]], [clip.vocabulary.point("mean")[None]]

    def gradients(*given: Any) -> list[torch.Tensor]:
        return [
            Engine(clip, loss, row).gradient([r], positions, *given).embedding for r in (row, other)
        ]

    torch.testing.assert_close(*gradients(read))
    assert not torch.allclose(*gradients())


@pytest.fixture(scope="module")
def coarse() -> tuple[fuse.CausalLM, fuse.CLIP]:
    """The demo models in a coarse type."""
    folder, dtype = ROOT / "fuse/demo", torch.bfloat16
    coarse_lm = fuse.CausalLM.load(str(folder / "lm"), dtype=dtype)
    return coarse_lm, fuse.CLIP.load(str(folder / "clip"), dtype=dtype)


@pytest.fixture
def objectives(
    lm: fuse.CausalLM,
    clip: fuse.CLIP,
    house: torch.Tensor,
    coarse: tuple[fuse.CausalLM, fuse.CLIP],
) -> dict[str, fuse.Objective]:
    """One objective by coarse models, one by precise ones, and one by both."""
    loss = fuse.CosineDistance(house)
    found = {}
    for name, models in {"mixed": coarse, "coarse": coarse, "exact": (lm, clip)}.items():
        finer = (lm, clip) if name == "mixed" else (None, None)
        first = fuse.Term(models[0], fuse.NLL(), precise=finer[0])
        second = fuse.Term(models[1], loss, weight=10, precise=finer[1])
        second.adapter = fuse.LexicalAdapter.fit(models[0].vocabulary, models[1])
        found[name] = fuse.Objective(first, {"clip": second})
    return found


def test_the_best_of_a_coarse_type_are_scored_again_precisely(
    objectives: dict[str, fuse.Objective],
) -> None:
    """As many as are compared with one another, eight at least."""
    mixed, exact = objectives["mixed"], objectives["exact"]
    begun = exact.spell("A red house")
    rows = [(*begun, token) for token in exact.allowed.nonzero().flatten().tolist()[::2]]
    expected, rough = exact.evaluate(rows).loss, objectives["coarse"].evaluate(rows).loss
    for num_ranked in (1, MIN_PRECISE, 16):
        found, count = (
            mixed.evaluate(rows, num_ranked=num_ranked).loss,
            max(num_ranked, MIN_PRECISE),
        )
        settled = torch.isclose(found, expected, atol=1e-5, rtol=0) & found.isfinite()
        assert settled[found.topk(count, largest=False).indices].all()
        assert count <= int((found != rough).sum()) <= 4 * count
        assert float(expected.min()) == pytest.approx(float(found.min()), abs=1e-5)


@pytest.mark.parametrize("width", [4, 16])
def test_a_mixed_search_keeps_a_beam_of_precise_losses(
    objectives: dict[str, fuse.Objective], width: int
) -> None:
    mixed, exact = objectives["mixed"], objectives["exact"]
    search = fuse.Search(mixed, fuse.AutoDAN(search_width=64), fuse.Beam(width), steps=3)
    state = search.start()
    while not state.ended:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
        assert len(state.beam) == width
        losses = mixed.total(torch.tensor([state.scored[row] for row in state.beam]))
        torch.testing.assert_close(losses, exact.evaluate(state.beam).loss, atol=1e-5, rtol=0)
    result = search.result(state)
    assert result.loss == pytest.approx(exact.evaluate_text(result.prompt)[0], abs=1e-5)
    assert result.loss == pytest.approx(state.last.best_loss, abs=1e-5)


def test_a_beam_that_does_not_fit_into_memory_is_read_in_parts(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    term = fuse.Term(lm, fuse.NLL())
    beam, children = term.encode(BEAM), term.encode(CHILDREN)
    wanted = engine(term).score(children)
    ids = [row.ids for row in beam]
    log_probs = engine(term).next_token_log_probs(ids)
    original = lm.prefill

    def narrow(inputs: Any, positions: Any) -> Any:
        if len(inputs.ids) > 1:
            raise torch.OutOfMemoryError
        return original(inputs, positions)

    monkeypatch.setattr(lm, "prefill", narrow)
    tight = engine(term)
    tight.prefill(beam)
    torch.testing.assert_close(tight.next_token_log_probs(ids), log_probs, atol=1e-4, rtol=0)
    tight.prefill(beam)
    torch.testing.assert_close(tight.score(children), wanted, atol=2e-5, rtol=0)
    tight.prefill(beam)
    torch.testing.assert_close(tight.estimate(children), wanted, atol=2e-5, rtol=0)
    assert "without a prefix cache" in caplog.text
