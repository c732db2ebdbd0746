"""Probe sampling: which candidates it lets through, and that a search with it goes on as it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from conftest import ROOT

import fuse
from fuse.adapter.fidelity import rank_correlation
from fuse.types import Ids

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
    found = [(*begun, token) for token in drawn.tolist()]
    return [row for row, ok in zip(found, objective.valid(found), strict=True) if ok][:COUNT]


def telling(probe: fuse.Probe, losses: Callable[[Sequence[str]], list[float]]) -> None:
    """Make the draft say these losses of texts."""
    texts: dict[object, str] = {}
    encode = probe.draft.encode

    def encoding(prompts: Sequence[str]) -> list:
        found = encode(prompts)
        texts.update(zip(found, prompts, strict=True))
        return found

    probe.draft.encode = encoding  # type: ignore[method-assign]
    probe.draft.score = lambda rows: torch.tensor(losses([texts[row] for row in rows]))  # type: ignore[method-assign]


@pytest.fixture
def probe(draft: fuse.Term) -> fuse.Probe:
    return fuse.Probe(fuse.Term(draft.model, draft.loss))


def test_a_draft_that_agrees_lets_its_best_through_alone(
    objective: fuse.Objective, rows: list[Ids], probe: fuse.Probe, generator: torch.Generator
) -> None:
    telling(probe, lambda texts: [objective.evaluate_text(text)[0] for text in texts])
    chosen = probe.choose(objective, [rows[0][:-1]], rows, generator)
    losses = objective.evaluate(rows).loss
    assert len(rows) == COUNT
    assert len(chosen) in (16, 17)  # the probe, and the best one
    assert rows[int(losses.argmin())] in chosen


def test_a_draft_that_is_wrong_lets_more_through(
    objective: fuse.Objective, rows: list[Ids], probe: fuse.Probe, generator: torch.Generator
) -> None:
    telling(probe, lambda texts: [-objective.evaluate_text(text)[0] for text in texts])
    chosen = probe.choose(objective, [rows[0][:-1]], rows, generator)
    assert 16 + COUNT // 8 - 16 <= len(chosen) <= 16 + COUNT // 8
    assert objective.evaluations == 16, "only the probe is scored for the choice"


def test_the_draft_stands_for_the_primary_in_the_weighted_sum(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor, rows: list[Ids], probe: fuse.Probe, generator: torch.Generator
) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL(), weight=0.5), {"clip": fuse.Term(clip, fuse.CosineDistance(house), weight=40)})
    prompts = objective.vocabulary.decode(rows)
    term = objective.secondaries["clip"]
    wanted = 0.5 * probe.draft.score(probe.draft.encode(prompts)) + 40 * term.score(term.encode(prompts))
    torch.testing.assert_close(probe._guess(objective, rows), wanted)
    assert rows[int(wanted.argmin())] in probe.choose(objective, [rows[0][:-1]], rows, generator)


def test_the_smaller_sibling_agrees_with_the_language_model(objective: fuse.Objective, rows: list[Ids], draft: fuse.Term) -> None:
    swapped = [(*row[:2], row[-1], *objective.spell("A red house stands alone in the snow.")[3:]) for row in rows]
    swapped = [row for row, ok in zip(swapped, objective.valid(swapped), strict=True) if ok]
    guessed = draft.score(draft.encode(objective.vocabulary.decode(swapped)))
    assert len(swapped) > COUNT // 2
    assert rank_correlation(guessed, objective.evaluate(swapped).loss) > 0.7


def test_few_candidates_are_all_scored_and_invalid_ones_none(
    objective: fuse.Objective, rows: list[Ids], probe: fuse.Probe, generator: torch.Generator
) -> None:
    broken = tuple(i for letter in "house" for i in objective.vocabulary.encode([letter])[0][0])
    assert probe.choose(objective, [], [*rows[:15], broken, rows[0]], generator) == rows[:15]
    assert probe.choose(objective, [], [], generator) == []
    assert broken not in probe.choose(objective, [], [broken, *rows], generator)


def test_what_the_draft_cannot_read_is_not_favoured(
    objective: fuse.Objective, rows: list[Ids], draft: fuse.Term, generator: torch.Generator
) -> None:
    rows = [row[:-1] + 2 * row[-1:] if i % 2 else row for i, row in enumerate(rows)]
    rows = [row for row, ok in zip(rows, objective.valid(rows), strict=True) if ok]
    lengths = [len(e.ids) for e in draft.encode(objective.vocabulary.decode(rows))]
    narrow = fuse.CausalLM(draft.model.network, draft.vocabulary.tokenizer)
    narrow.vocabulary.max_length = min(lengths)
    probe = fuse.Probe(fuse.Term(narrow, fuse.NLL()))
    assert probe._guess(objective, rows).isinf().tolist() == [length > min(lengths) for length in lengths]
    assert min(lengths) < max(lengths)
    assert probe.choose(objective, [], rows, generator)


@pytest.mark.parametrize("method", [fuse.GCG(steps=12), fuse.AutoDAN(steps=6)], ids=["gcg", "autodan"])
def test_a_search_with_it_scores_less_and_finds_nearly_as_good(
    objective: fuse.Objective, draft: fuse.Term, method: fuse.GCG | fuse.AutoDAN
) -> None:
    exact = fuse.search(objective, method, init="A red house stands")
    again = fuse.Objective(objective.primary)
    result = fuse.search(again, method, init="A red house stands", probe=fuse.Probe(draft))
    assert result.evaluations < 0.35 * exact.evaluations
    assert result.loss < exact.initial_loss
    assert result.loss < exact.loss + 1
    assert result.loss == again.evaluate_text(result.prompt)[0]
    once_more = fuse.search(fuse.Objective(objective.primary), method, init="A red house stands", probe=fuse.Probe(draft))
    assert [step.free_ids for step in once_more.trace] == [step.free_ids for step in result.trace]


def test_without_a_draft_a_search_scores_little_and_loses_little(lm: fuse.CausalLM, generator: torch.Generator) -> None:
    def run(probe: fuse.Probe | None) -> fuse.Result:
        objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("under a tree."), prefix="Look:"))
        return fuse.search(objective, fuse.GCG(steps=12, search_width=96, moves=("swap", "insert", "delete")), probe=probe)

    exact, guessed, again = run(None), run(fuse.Probe()), run(fuse.Probe())
    assert guessed.evaluations < 0.3 * exact.evaluations
    assert guessed.loss < exact.loss + 0.3 * (exact.initial_loss - exact.loss)
    assert [step.free_ids for step in guessed.trace] == [step.free_ids for step in again.trace]


def test_a_beam_is_chosen_as_wide_as_the_strategy_has_it(objective: fuse.Objective) -> None:
    """The guess at rows that only grow is exact, so that the beams are those of scoring all."""
    exact = fuse.search(objective, fuse.AutoDAN(), fuse.Beam(6), steps=5)
    guessed = fuse.search(fuse.Objective(objective.primary), fuse.AutoDAN(), fuse.Beam(6), steps=5, probe=fuse.Probe())
    assert [step.free_ids for step in guessed.trace] == [step.free_ids for step in exact.trace]
    assert guessed.evaluations < 0.2 * exact.evaluations


def test_secondaries_guess_for_themselves(lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": fuse.Term(clip, fuse.CosineDistance(house), weight=20)})
    begun = objective.spell("A red house stands alone in the deep snow of winter")
    words = objective.spell("Two small blue boats lie by the sea")
    swapped = [(*begun[:i], word, *begun[i + 1 :]) for i in range(len(begun)) for word in words]
    swapped = [row for row, ok in zip(swapped, objective.valid(swapped), strict=True) if ok]
    objective.expand([begun])
    guessed = fuse.Probe()._guess(objective, swapped)
    read: list[int] = []
    layer = clip.network.text_model.encoder.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[:-1].numel()))
    fuse.Probe()._guess(objective, swapped)
    hook.remove()
    assert sum(read) < 0.5 * len(begun) * len(swapped)
    assert rank_correlation(guessed, objective.evaluate(swapped).loss) > 0.8


def test_a_primary_that_cannot_guess_is_told(minilm: fuse.SentenceEncoder) -> None:
    objective = fuse.Objective(fuse.Term(minilm, fuse.CosineDistance(minilm.embed_texts(["a cup"])[0])))
    with pytest.raises(fuse.FuseError, match=r"scoring.draft.model_id=null.*Sentence"):
        fuse.search(objective, fuse.GCG(steps=1), probe=fuse.Probe())


@pytest.mark.parametrize(("option", "value"), [("probe_share", 0.0), ("probe_share", 1.0), ("reduction", 0.5)])
def test_wrong_options_are_told(draft: fuse.Term, option: str, value: float) -> None:
    with pytest.raises(fuse.FuseError, match=f"scoring.{option}={value}"):
        fuse.Probe(draft, **{option: value})
