"""Probe sampling: which candidates it lets through, and that a search with it goes on as before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from conftest import ROOT

import fuse
from fuse.engine.runner import ModelRunner
from fuse.statistics import rank_correlation
from fuse.types import Candidates, Ids

COUNT = 256


@pytest.fixture(scope="module")
def draft() -> fuse.Term:
    return fuse.Term(fuse.CausalLM.load(str(ROOT / "fuse/demo/lm_small")), fuse.NLL())


@pytest.fixture
def objective(lm: fuse.CausalLM) -> fuse.Objective:
    return fuse.Objective(fuse.Term(lm, fuse.NLL()))


@pytest.fixture
def rows(objective: fuse.Objective) -> list[Ids]:
    """Valid candidates of one beam."""
    begun = objective.spell("A red house stands")
    tokens = objective.allowed.nonzero().flatten()
    drawn = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    return valid(objective, [(*begun, token) for token in drawn.tolist()])[:COUNT]


def valid(objective: fuse.Objective, rows: Sequence[Ids]) -> list[Ids]:
    return [row for row, ok in zip(rows, objective.valid(rows), strict=True) if ok]


def choose(
    probe: fuse.Probe,
    objective: fuse.Objective,
    beam: Sequence[Ids],
    rows: Sequence[Ids],
    generator: torch.Generator,
) -> Sequence[Ids]:
    return probe.choose(objective, beam, Candidates(rows), generator).ids


def set_draft_losses(probe: fuse.Probe, losses: Callable[[Sequence[str]], list[float]]) -> None:
    """Give the draft these losses of texts."""
    assert probe.draft is not None
    texts: dict[object, str] = {}
    encode = probe.draft.encode

    def encoding(prompts: Sequence[str]) -> list:
        found = encode(prompts)
        texts.update(zip(found, prompts, strict=True))
        return found

    def score(rows: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(losses([texts[row] for row in rows]))

    probe.draft.encode = encoding  # type: ignore[method-assign]
    probe.draft.score = score  # type: ignore[method-assign]


def anew(objective: fuse.Objective) -> fuse.Objective:
    """Return the same objective of a primary alone, which has computed nothing."""
    return fuse.Objective(fuse.Term(objective.primary.model, objective.primary.loss))


def text_losses(objective: fuse.Objective, rows: Sequence[Ids]) -> dict[str, float]:
    """Return the losses of rows by their texts."""
    losses = anew(objective).evaluate(rows).loss.tolist()
    return dict(zip(objective.vocabulary.decode(rows), losses, strict=True))


def count_scored(objective: fuse.Objective, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows that the primary's own model reads to score, call by call."""
    counts: list[int] = []
    run, model = ModelRunner.run, objective.primary.model

    def counting(self: ModelRunner, rows: Sequence[Any], *others: Any, **options: Any) -> Any:
        if self.model is model:
            counts.append(len(rows))
        return run(self, rows, *others, **options)

    monkeypatch.setattr(ModelRunner, "run", counting)
    return counts


@pytest.fixture
def probe(draft: fuse.Term) -> fuse.Probe:
    return fuse.Probe(fuse.Term(draft.model, draft.loss))


def test_a_draft_that_agrees_lets_its_best_through_alone(
    objective: fuse.Objective, rows: list[Ids], probe: fuse.Probe, generator: torch.Generator
) -> None:
    own = text_losses(objective, rows)
    set_draft_losses(probe, lambda texts: [own[text] for text in texts])
    chosen = choose(probe, objective, [rows[0][:-1]], rows, generator)
    losses = objective.evaluate(rows).loss
    assert len(rows) == COUNT
    assert len(chosen) in (16, 17)  # the probe, and the best one
    assert rows[int(losses.argmin())] in chosen


def test_a_draft_that_is_wrong_lets_more_through(
    objective: fuse.Objective,
    rows: list[Ids],
    probe: fuse.Probe,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = text_losses(objective, rows)
    set_draft_losses(probe, lambda texts: [-own[text] for text in texts])
    counts = count_scored(objective, monkeypatch)
    chosen = choose(probe, objective, [rows[0][:-1]], rows, generator)
    assert 16 + COUNT // 8 - 16 <= len(chosen) <= 16 + COUNT // 8
    assert sum(counts) == 16, "only the probe is scored for the choice"
    objective.evaluate(chosen)
    assert sum(counts) == len(chosen), "and not once more afterwards"


def test_what_is_known_is_not_scored_for_the_choice(
    objective: fuse.Objective,
    rows: list[Ids],
    probe: fuse.Probe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It makes no difference to what is chosen."""
    beam, candidates = [rows[0][:-1]], Candidates(rows)
    known = {entry.ids: entry.terms for entry in anew(objective).evaluate(rows).entries()}
    counts = count_scored(objective, monkeypatch)

    def chosen(*given: Any) -> Sequence[Ids]:
        generator = torch.Generator().manual_seed(0)
        return probe.choose(objective, beam, candidates, generator, 1, *given).ids

    found = chosen(known)
    assert not counts
    assert found == chosen()
    assert sum(counts) == 16


def test_the_draft_stands_for_the_primary_in_the_weighted_sum(
    lm: fuse.CausalLM,
    clip: fuse.CLIP,
    house: torch.Tensor,
    rows: list[Ids],
    probe: fuse.Probe,
    generator: torch.Generator,
) -> None:
    secondary = fuse.Term(clip, fuse.CosineDistance(house), weight=40)
    primary = fuse.Term(lm, fuse.NLL(), weight=0.5)
    objective = fuse.Objective(primary, {"clip": secondary})
    prompts = objective.vocabulary.decode(rows)
    expected = 0.5 * probe.draft.score(probe.draft.encode(prompts))
    expected += 40 * secondary.score(secondary.encode(prompts))
    torch.testing.assert_close(probe._guess(objective, rows), expected)
    best = rows[int(expected.argmin())]
    assert best in choose(probe, objective, [rows[0][:-1]], rows, generator)


def test_the_smaller_sibling_agrees_with_the_language_model(
    objective: fuse.Objective, rows: list[Ids], draft: fuse.Term
) -> None:
    end = objective.spell("A red house stands alone in the snow.")[3:]
    swapped = valid(objective, [(*row[:2], row[-1], *end) for row in rows])
    guessed = draft.score(draft.encode(objective.vocabulary.decode(swapped)))
    assert len(swapped) > COUNT // 2
    assert rank_correlation(guessed, objective.evaluate(swapped).loss) > 0.7


def test_few_candidates_are_all_scored_and_invalid_ones_none(
    objective: fuse.Objective, rows: list[Ids], probe: fuse.Probe, generator: torch.Generator
) -> None:
    letters = [objective.vocabulary.encode([letter])[0][0] for letter in "house"]
    broken = tuple(chain.from_iterable(letters))
    few = [*rows[:15], broken, rows[0]]
    assert choose(probe, objective, [], few, generator) == rows[:15]
    assert choose(probe, objective, [], [], generator) == []
    assert broken not in choose(probe, objective, [], [broken, *rows], generator)


@pytest.mark.parametrize("count", [15, COUNT])
def test_what_is_chosen_keeps_its_parents_and_what_the_method_said(
    objective: fuse.Objective,
    rows: list[Ids],
    probe: fuse.Probe,
    generator: torch.Generator,
    count: int,
) -> None:
    """A candidate that comes twice has the parent that it had first."""
    ids = [rows[0], *rows[:count]]
    parents = [7, *range(count)]
    given = Candidates(ids, parents, state="next", num_non_finite=3)
    chosen = probe.choose(objective, [rows[0][:-1]], given, generator)
    parent_of = {row: i for i, row in enumerate(rows)} | {rows[0]: 7}
    assert list(chosen.parents) == [parent_of[row] for row in chosen.ids]
    assert sorted(chosen.ids, key=rows.index) == chosen.ids
    assert (chosen.state, chosen.num_non_finite) == ("next", 3)


def test_what_the_draft_cannot_read_is_not_favoured(
    objective: fuse.Objective, rows: list[Ids], draft: fuse.Term, generator: torch.Generator
) -> None:
    doubled = [row[:-1] + 2 * row[-1:] if i % 2 else row for i, row in enumerate(rows)]
    rows = valid(objective, doubled)
    lengths = [len(e.ids) for e in draft.encode(objective.vocabulary.decode(rows))]
    narrow = fuse.CausalLM(draft.model.network, draft.vocabulary.tokenizer)
    narrow.vocabulary.max_length = min(lengths)
    probe = fuse.Probe(fuse.Term(narrow, fuse.NLL()))
    too_long = [length > min(lengths) for length in lengths]
    assert probe._guess(objective, rows).isinf().tolist() == too_long
    assert min(lengths) < max(lengths)
    assert choose(probe, objective, [], rows, generator)


def trace(result: fuse.Result) -> list[Ids]:
    return [step.free_ids for step in result.trace]


@pytest.mark.parametrize(
    "method",
    [pytest.param(fuse.GCG(steps=12), marks=pytest.mark.full), fuse.AutoDAN(steps=6)],
    ids=["gcg", "autodan"],
)
def test_a_search_with_it_scores_less_and_finds_nearly_as_good(
    objective: fuse.Objective, draft: fuse.Term, method: fuse.GCG | fuse.AutoDAN
) -> None:
    exact = fuse.search(objective, method, init="A red house stands")

    def probed() -> tuple[fuse.Objective, fuse.Result]:
        again, probe = fuse.Objective(objective.primary), fuse.Probe(draft)
        return again, fuse.search(again, method, init="A red house stands", probe=probe)

    again, result = probed()
    assert result.evaluations < 0.35 * exact.evaluations
    assert result.loss < exact.initial_loss
    assert result.loss < exact.loss + 1
    assert result.loss == again.evaluate_text(result.prompt)[0]
    assert trace(probed()[1]) == trace(result)


def test_without_a_draft_a_search_scores_little_and_loses_little(lm: fuse.CausalLM) -> None:
    method = fuse.GCG(steps=6, search_width=96, moves=("swap", "insert", "delete"))

    def run(probe: fuse.Probe | None) -> fuse.Result:
        loss = fuse.CrossEntropy("under a tree.")
        objective = fuse.Objective(fuse.Term(lm, loss, prefix="Look:"))
        return fuse.search(objective, method, probe=probe)

    exact, guessed, again = run(None), run(fuse.Probe()), run(fuse.Probe())
    assert guessed.evaluations < 0.3 * exact.evaluations
    assert guessed.loss < exact.loss + 0.3 * (exact.initial_loss - exact.loss)
    assert trace(guessed) == trace(again)


def test_a_beam_is_chosen_as_wide_as_the_strategy_has_it(objective: fuse.Objective) -> None:
    """The guess at rows that only grow is exact, so that the beams are those of scoring all."""

    def run(probe: fuse.Probe | None) -> fuse.Result:
        again = fuse.Objective(objective.primary)
        return fuse.search(again, fuse.AutoDAN(), fuse.Beam(6), steps=5, probe=probe)

    exact, guessed = run(None), run(fuse.Probe())
    assert trace(guessed) == trace(exact)
    assert guessed.evaluations < 0.2 * exact.evaluations


def test_secondaries_guess_for_themselves(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor
) -> None:
    secondary = fuse.Term(clip, fuse.CosineDistance(house), weight=20)
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": secondary})
    begun = objective.spell("A red house stands alone in the deep snow of winter")
    words = objective.spell("Two small blue boats lie by the sea")
    swapped: list[Ids] = []
    for i in range(len(begun)):
        swapped += [(*begun[:i], word, *begun[i + 1 :]) for word in words]
    swapped = valid(objective, swapped)
    objective.prefill([begun])
    guessed = fuse.Probe()._guess(objective, swapped)
    tokens_read: list[int] = []
    hook = clip.network.text_model.encoder.layers[0].register_forward_pre_hook(
        lambda _, given: tokens_read.append(given[0].shape[:-1].numel())
    )
    fuse.Probe()._guess(objective, swapped)
    hook.remove()
    assert 0 < sum(tokens_read) < 0.5 * len(begun) * len(swapped)
    assert rank_correlation(guessed, objective.evaluate(swapped).loss) > 0.8


def test_a_primary_that_cannot_guess_is_an_error(minilm: fuse.SentenceEncoder) -> None:
    loss = fuse.CosineDistance(minilm.embed_texts(["a cup"])[0])
    objective = fuse.Objective(fuse.Term(minilm, loss))
    with pytest.raises(fuse.FuseError, match=r"scoring.draft.model_id=null.*Sentence"):
        fuse.search(objective, fuse.GCG(steps=1), probe=fuse.Probe())


@pytest.mark.parametrize(
    ("option", "value"), [("probe_share", 0.0), ("probe_share", 1.0), ("reduction", 0.5)]
)
def test_wrong_options_are_errors(draft: fuse.Term, option: str, value: float) -> None:
    with pytest.raises(fuse.FuseError, match=f"^{option}={value}"):
        fuse.Probe(draft, **{option: value})
