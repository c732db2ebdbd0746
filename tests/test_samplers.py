"""Methods with a distribution over tokens: Gibbs sampling, relaxed one-hots, Langevin chains."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
from test_models_kinds import masked_lm

import fuse
from fuse.guide import Guide
from fuse.search.methods.relaxed import State
from fuse.search.methods.simplex import onto_low_entropy, onto_simplex
from fuse.types import Evaluation, Ids

TEXT = "A red house stands by the sea"


@pytest.fixture
def guide(lm: fuse.CausalLM) -> Guide:
    """Of a language model alone; every row counts as valid."""
    guide = Guide(fuse.Objective(fuse.Term(lm, fuse.NLL())))
    guide.valid = lambda rows: [True] * len(rows)  # type: ignore[method-assign]
    return guide


def ids(guide: Guide, text: str) -> Ids:
    return guide.vocabulary.encode([text])[0][0]


def change(new: Ids, row: Ids) -> tuple[int, int]:
    """Return where two rows of one length differ, and the new token there."""
    assert len(new) == len(row)
    ((at, token),) = [(i, a) for i, (a, b) in enumerate(zip(new, row, strict=True)) if a != b]
    return at, token


def least_loss(objective: fuse.Objective, method: fuse.Method, seed: int = 0) -> fuse.Result:
    """Return what a method finds with 400 candidates."""
    rng = torch.Generator().manual_seed(seed)
    return fuse.search(objective, method, steps=40, max_evaluations=400, generator=rng)


# --- Gibbs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient_weight", [0.0, 2.0])
def test_gibbs_proposes_the_likeliest_tokens_of_one_position(
    guide: Guide, generator: torch.Generator, gradient_weight: float
) -> None:
    """In each row at a position of its own, in the order of the ranks; by the formula."""
    beam = [ids(guide, TEXT), ids(guide, "There is a small blue cup")]
    method = fuse.Gibbs(search_width=12, temperature=0.0, gradient_weight=gradient_weight)
    found = method.propose(None, beam, guide, generator)
    assert found is not None
    assert Counter(found.parents) == {0: 6, 1: 6}
    for parent, row in enumerate(beam):
        own = [new for new, p in zip(found.ids, found.parents, strict=True) if p == parent]
        changes = [change(new, row) for new in own]
        ((at),) = {position for position, _ in changes}
        ranking = guide.next_token_log_probs([row[:at]])[0]
        if gradient_weight:
            gradient = guide.token_gradient([row], [at])[0]
            kept = gradient[guide.allowed]
            ranking = ranking - gradient_weight * (gradient - kept.mean()) / kept.std()
        ranking[~guide.allowed] = ranking[row[at]] = -torch.inf
        assert [token for _, token in changes] == ranking.topk(6).indices.tolist()


def test_gibbs_draws_tokens_as_likely_as_the_primary_has_them(guide: Guide) -> None:
    row = ids(guide, "A")
    token = int(guide.allowed.nonzero()[40])
    log_probs = torch.full((len(guide.vocabulary),), -1e4)
    log_probs[[token, token + 1]] = torch.tensor([math.log(0.8), math.log(0.2)])
    guide.position_log_probs = lambda rows, _: log_probs.expand(len(rows), -1)  # type: ignore[method-assign]
    generator, first = torch.Generator().manual_seed(0), Counter[int]()
    for _ in range(300):
        found = fuse.Gibbs(search_width=1).propose(None, [row], guide, generator)
        first[found.ids[0][0]] += 1  # type: ignore[union-attr]
    assert set(first) == {token, token + 1}
    assert 215 < first[token] < 265


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gibbs_leaves_out_rows_whose_gradient_is_not_finite(
    guide: Guide, generator: torch.Generator, value: float
) -> None:
    beam = [ids(guide, TEXT), ids(guide, "A cup")]
    gradient = torch.zeros(2, len(guide.vocabulary))
    gradient[0, 700] = value
    guide.token_gradient = lambda *_: gradient  # type: ignore[method-assign]
    found = fuse.Gibbs(gradient_weight=1.0).propose(None, beam, guide, generator)
    assert found is not None
    assert set(found.parents) == {1}
    assert found.num_non_finite == 1


def test_gibbs_beats_random_edits(lm: fuse.CausalLM) -> None:
    """With as many candidates, at a fluent prompt."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    edits = fuse.Random(search_width=16, moves=("swap",))
    found, other = (least_loss(objective, one) for one in (fuse.Gibbs(search_width=16), edits))
    assert found.initial_loss == other.initial_loss
    assert found.loss < 0.7 * other.loss


def test_a_masked_lm_proposes_from_all_other_tokens(
    tmp_path: Path, generator: torch.Generator
) -> None:
    """The position itself reads the mask; methods that append need a causal LM."""
    model = masked_lm(tmp_path / "bert")
    objective = fuse.Objective(fuse.Term(model, fuse.NLL()))
    guide, row = Guide(objective), objective.spell("a red house in the snow")
    rows, positions = [row, row, row[:2]], [1, 4, 0]
    found = guide.position_log_probs(rows, positions)
    tokenizer = model.vocabulary.tokenizer
    for got, own, position in zip(found, rows, positions, strict=True):
        masked = [*own[:position], tokenizer.mask_token_id, *own[position + 1 :]]
        text = torch.tensor([[tokenizer.cls_token_id, *masked, tokenizer.sep_token_id]])
        logits = model.network(input_ids=text).logits[0, position + 1]
        expected = logits.log_softmax(-1)[: len(model.vocabulary)]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    method = fuse.Gibbs(search_width=4, temperature=0.0)
    candidates = method.propose(None, [row], guide, generator)
    assert candidates is not None
    at = change(candidates.ids[0], row)[0]
    ranking = guide.position_log_probs([row], [at])[0].masked_fill(~guide.allowed, -torch.inf)
    ranking[row[at]] = -torch.inf
    assert [new[at] for new in candidates.ids] == ranking.topk(4).indices.tolist()
    for method_of_both in (method, fuse.GCG(search_width=8, logit_weight=1.0)):
        result = fuse.search(objective, method_of_both, steps=5, init="a red house in the snow")
        assert result.loss < result.initial_loss
    with pytest.raises(fuse.FuseError, match="method=autodan: it reads next-token"):
        fuse.search(objective, fuse.AutoDAN(), steps=1)


def test_gibbs_with_a_model_that_predicts_nothing_is_refused(
    clip: fuse.CLIP, house: torch.Tensor
) -> None:
    objective = fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house)))
    with pytest.raises(fuse.FuseError, match="method=gibbs: it reads how likely tokens are"):
        fuse.search(objective, fuse.Gibbs(), steps=1)


# --- relaxed one-hots ------------------------------------------------------------------------


def test_relaxed_moves_logits_against_the_gradient_of_the_mixture(
    guide: Guide, generator: torch.Generator
) -> None:
    """Adam's first step is lr in size wherever the gradient, by autograd, is not tiny."""
    table = guide.vocabulary.embedding[guide.allowed].float()
    by_point = torch.randn(2, 3, table.shape[1], generator=generator)
    read: list[torch.Tensor] = []

    def embedding_gradient(rows: list[Ids], points: torch.Tensor) -> torch.Tensor:
        read.append(points)
        assert len(rows) == 2
        return by_point

    guide.embedding_gradient = embedding_gradient  # type: ignore[method-assign,assignment]
    method = fuse.Relaxed(search_width=2, lr=0.3, decay=0.5)
    logits = torch.randn(2, 3, len(table), generator=generator).requires_grad_()
    points = logits.softmax(-1) @ table
    (gradient,) = torch.autograd.grad((points * by_point).sum(), logits)
    found = method.propose(State(logits.detach()), [ids(guide, "A cup.")], guide, generator)
    torch.testing.assert_close(read[0], points.detach(), atol=1e-5, rtol=0)
    moved = found.state.logits / 0.5 - logits.detach()
    large = gradient.abs() > 1e-6
    assert large.float().mean() > 0.5
    expected = -0.3 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(moved[large], expected[large], atol=1e-2, rtol=0)


def test_relaxed_begins_at_the_first_prompt(guide: Guide, generator: torch.Generator) -> None:
    """In its first row; the others begin elsewhere."""
    row = ids(guide, TEXT)
    method = fuse.Relaxed(search_width=3, lr=0.0, decay=1.0)
    found = method.propose(None, [row], guide, generator)
    assert found.ids[0] == row
    tokens = guide.allowed.nonzero().flatten()
    others = tokens[found.state.logits[1:].argmax(-1)]
    assert (others != torch.tensor(row)).float().mean() > 0.9


def test_relaxed_descends_on_random_words(lm: fuse.CausalLM) -> None:
    """Which nothing fluent elicits; further than random edits with as many candidates."""
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("rain shepherd")))
    found = fuse.search(objective, fuse.Relaxed(), steps=60)
    edits = fuse.Random(search_width=16, moves=("swap",))
    limit = found.evaluations
    other = fuse.search(objective, edits, steps=limit, max_evaluations=limit)
    assert found.initial_loss > 8
    assert found.loss < min(0.6 * found.initial_loss, other.loss)


# --- Langevin --------------------------------------------------------------------------------


def test_langevin_chains_end_where_their_temperature_says(guide: Guide) -> None:
    """In proportion to exp(-loss / T), whatever the gradient is: 16 rows of two tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = guide.allowed.nonzero().flatten()[[10, 500, 900, 1200]].tolist()
    guide.allowed = torch.zeros_like(guide.allowed)
    guide.allowed[tokens] = True
    losses = {row: float(torch.rand((), generator=generator)) for row in product(tokens, tokens)}
    width = guide.vocabulary.embedding.shape[1]
    scale = 1.5 / guide.radius
    made_up = {row: scale * torch.randn(2, width, generator=generator) for row in losses}

    def embedding_gradient(rows: list[Ids]) -> torch.Tensor:
        return torch.stack([made_up[row] for row in rows])

    guide.embedding_gradient = embedding_gradient  # type: ignore[method-assign,assignment]
    method = fuse.Langevin(search_width=500, temperature=0.5, step_size=1.0)
    state = None
    for _ in range(30):
        found = method.propose(state, [(tokens[0], tokens[0])], guide, generator)
        own = torch.tensor([losses[row] for row in found.ids])
        valid = torch.ones(len(own), dtype=torch.bool)
        state = method.observe(found.state, Evaluation(found, own, {"primary": own}, valid))
    counts = Counter(state.rows)  # type: ignore[union-attr]
    shares = torch.tensor([-losses[row] / 0.5 for row in losses]).softmax(0)
    expected = dict(zip(losses, (500 * shares).tolist(), strict=True))
    assert sum((counts[row] - e) ** 2 / e for row, e in expected.items()) < 38  # 15 degrees
    assert max(expected.values()) > 3 * min(expected.values())


def test_langevin_keeps_what_no_candidate_may_hold(
    guide: Guide, generator: torch.Generator
) -> None:
    """A token that is allowed in the start alone stays; nothing forbidden is drawn."""
    row = ids(guide, TEXT)
    guide.allowed = guide.allowed.clone()
    guide.allowed[row[0]] = False
    method = fuse.Langevin(search_width=5, step_size=1.0)
    first = method.propose(None, [row], guide, generator)
    assert list(first.ids) == [row]
    found = method.propose(first.state, [row], guide, generator)
    for new in found.ids:
        assert new[0] == row[0]
        assert all(guide.allowed[token] for token in new[1:])
        assert new != row


def test_langevin_takes_no_step_to_what_does_not_count(
    guide: Guide, generator: torch.Generator
) -> None:
    """A candidate that is refused, or whose loss is not finite."""
    row = ids(guide, TEXT)
    method = fuse.Langevin(search_width=3, step_size=1.0)
    losses, valid = torch.tensor([1.0]), torch.tensor([True])
    state = method.propose(None, [row], guide, generator)
    state = method.observe(state.state, Evaluation(state, losses, {"primary": losses}, valid))
    assert state.losses == (1.0,) * 3
    found = method.propose(state, [row], guide, generator)
    losses = torch.tensor([math.inf, -100.0, math.inf])
    valid = torch.tensor([False, True, True])
    state = method.observe(found.state, Evaluation(found, losses, {"primary": losses}, valid))
    assert state.rows == (row, found.ids[1], row)
    torch.testing.assert_close(state.gradient[1], found.state.new_gradient[1])
    assert torch.equal(state.gradient[0], state.gradient[2])


def test_langevin_lowers_the_loss(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("by the sea.")))
    result = fuse.search(objective, fuse.Langevin(8, prompt_length=5), steps=50)
    assert result.loss < 0.7 * result.initial_loss


# --- projections ---------------------------------------------------------------------------


def test_the_projection_onto_the_simplex_is_the_nearest_point(generator: torch.Generator) -> None:
    """No other point of the simplex is nearer; points of it stay."""
    points = torch.randn(5, 3, 8, generator=generator)
    found = onto_simplex(points)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(5, 3))
    torch.testing.assert_close(onto_simplex(found), found)
    others = torch.randn(1000, 1, 1, 8, generator=generator).softmax(-1)
    assert ((points - found).norm(dim=-1) <= (points - others).norm(dim=-1) + 1e-6).all()


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.8])
def test_the_entropy_projection_ends_at_its_limit(generator: torch.Generator, limit: float) -> None:
    shares = torch.randn(200, 9, generator=generator).softmax(-1)
    found = onto_low_entropy(shares, limit)
    torch.testing.assert_close(found.sum(-1), torch.ones(200))
    entropy, before = (1 - one.square().sum(-1) for one in (found, shares))
    assert (entropy <= torch.maximum(before, torch.tensor(limit)) + 1e-5).all()
    # Where no share falls to zero on the way, it is at the limit
    inside = (before > limit) & (found > 0).all(-1)
    assert torch.allclose(entropy[inside], torch.tensor(limit), atol=1e-5)
    assert (entropy[before > limit] < before[before > limit]).all()
    low = before <= limit
    assert torch.equal(found[low], shares[low])


def test_relaxed_with_projections_descends(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("rain shepherd")))
    method = fuse.Relaxed(projection="simplex", lr=0.1)
    search = fuse.Search(objective, method, steps=15)
    state = search.start()
    while not state.ended:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
        shares = state.method.logits
        assert (shares >= 0).all()
        assert torch.allclose(shares.sum(-1), torch.ones(()), atol=1e-4)
    assert state.best is not None
    assert state.best.loss < 0.9 * state.initial_loss
