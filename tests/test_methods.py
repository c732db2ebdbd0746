"""What each method proposes: equal to its own formula in plain code, and drawn as it says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

import fuse
from fuse.engine.runner import ModelRunner
from fuse.guide import Guide
from fuse.nn.batch import Inputs
from fuse.options import options_of
from fuse.registry import METHODS
from fuse.search.methods import embedding as embedding_module
from fuse.search.methods.base import Method, first_valid, random_prompt
from fuse.search.methods.edits import MOVES, Shortlists, Site
from fuse.search.methods.gcg import STEPS_REMEMBERED
from fuse.types import UNCHANGED, Candidates, Ids

TEXT = "A red house stands by the sea"
OTHER = "There is a small blue cup"
RARE = range(1300, 1364)
"""Tokens that no text here holds."""


@pytest.fixture(scope="module")
def adapter(lm: fuse.CausalLM, clip: fuse.CLIP) -> fuse.LexicalAdapter:
    return fuse.LexicalAdapter.fit(lm.vocabulary, clip)


@pytest.fixture
def guide(lm: fuse.CausalLM) -> Guide:
    """Of a language model alone: quick, and safe to patch."""
    return Guide(fuse.Objective(fuse.Term(lm, fuse.NLL())))


@pytest.fixture
def joint(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor, adapter: fuse.LexicalAdapter
) -> Guide:
    """Of a language model and a CLIP."""
    secondary = fuse.Term(clip, fuse.CosineDistance(house), weight=10, adapter=adapter)
    return Guide(fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": secondary}))


@pytest.fixture
def seeing(clip: fuse.CLIP, house: torch.Tensor) -> Guide:
    """Of a CLIP alone."""
    return Guide(fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house))))


def ids(guide: Guide, text: str) -> Ids:
    return guide.vocabulary.encode([text])[0][0]


def accept_all(guide: Guide) -> None:
    """Let every row count as valid, so that the method alone decides what is proposed."""
    guide.valid = lambda rows: [True] * len(rows)  # type: ignore[method-assign]


def set_gradient(guide: Guide, gradient: torch.Tensor) -> None:
    """Let the gradient be the same [v] at every position, or one [b v] for each."""

    def token_gradient(rows: Sequence[Ids], *_: Any) -> torch.Tensor:
        return gradient.expand(len(rows), -1)

    guide.token_gradient = token_gradient  # type: ignore[method-assign]


def set_log_probs(guide: Guide, of: Callable[[Ids], torch.Tensor]) -> None:
    def next_token_log_probs(rows: Sequence[Ids]) -> torch.Tensor:
        return torch.stack([of(row) for row in rows])

    guide.next_token_log_probs = next_token_log_probs  # type: ignore[method-assign]


def favouring(guide: Guide, tokens: Sequence[int]) -> torch.Tensor:
    """Return a gradient [v] that is the most negative at these tokens, above all at the first."""
    gradient = torch.rand(len(guide.vocabulary), generator=torch.Generator().manual_seed(3))
    gradient[list(tokens)] = -2 - torch.arange(len(tokens), 0, -1).float()
    return gradient


def candidates_of(
    method: Method, beam: Sequence[Ids], guide: Guide, generator: torch.Generator, state: Any = None
) -> Candidates:
    found = method.propose(state, beam, guide, generator)
    assert found is not None
    return found


def propose(
    method: Method, beam: Sequence[Ids], guide: Guide, generator: torch.Generator
) -> list[Ids]:
    return list(candidates_of(method, beam, guide, generator).ids)


def tokens_of(lists: Shortlists) -> list[set[int]]:
    """Return the tokens of each site."""
    return [set(tokens) for tokens in lists.tokens.tolist()]


def smallest(gradient: torch.Tensor, count: int, guide: Guide) -> list[set[int]]:
    """Return the `count` allowed tokens of the smallest gradient in each row."""
    found = gradient.masked_fill(~guide.allowed, torch.inf).topk(count, largest=False).indices
    return [set(tokens) for tokens in found.tolist()]


def swap_sites(parent: int, row: Ids) -> list[Site]:
    return [Site(parent, "swap", position, row) for position in range(len(row))]


def chi_square(counts: Sequence[float], expected: Sequence[float]) -> float:
    return sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))


def changes(row: Ids, parent: Ids) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(row, parent, strict=True)) if a != b]


def of_parent(candidates: Sequence[Ids], parent: Ids) -> list[Ids]:
    """Return the candidates that differ from this row by one token at most."""
    same_length = [new for new in candidates if len(new) == len(parent)]
    return [new for new in same_length if len(changes(new, parent)) <= 1]


def insertions(row: Ids, parent: Ids) -> list[int]:
    """Return where the one more token may have been put in: several, if it repeats a neighbour."""
    return [p for p in range(len(row)) if row[:p] + row[p + 1 :] == parent]


def all_insertions(rows: Sequence[Ids], parent: Ids) -> list[list[int]]:
    return [insertions(row, parent) for row in rows]


def certain(positions: Sequence[list[int]]) -> set[int]:
    """Return the positions of insertions that can have been made in one way alone."""
    return {own[0] for own in positions if len(own) == 1}


# --- what all methods share ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcg", "random", "pez", "embedding", "gibbs", "relaxed"])
def test_a_method_that_changes_a_prompt_needs_one_to_begin_with(name: str) -> None:
    with pytest.raises(fuse.FuseError, match="prompt_length=0"):
        METHODS[name](prompt_length=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gcg", {"search_width": 0}),
        ("gcg", {"top_k": 0}),
        ("gcg", {"n_replace": 0}),
        ("gcg", {"momentum": 1.0}),
        ("gcg", {"moves": ("jump",)}),
        ("gcg", {"moves": ()}),
        ("gcg", {"moves": ("swap", "swap")}),
        ("gcg", {"linearise": ("here",)}),
        ("gcg", {"buffer_size": -1}),
        ("random", {"search_ball": "L1"}),
        ("random", {"top_k": 0}),
        ("autodan", {"top_p": 0.0}),
        ("autodan", {"top_p": 1.1}),
        ("autodan", {"temperature": -1.0}),
        ("autodan", {"search_width": 0}),
        ("embedding", {"start": "middle"}),
        ("embedding", {"distance_weight": -1.0}),
        ("embedding", {"straight_through": 1.5}),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(name: str, options: dict) -> None:
    (key,) = options
    with pytest.raises(fuse.FuseError, match=f"^{key}="):
        METHODS[name](**options)


def test_the_first_different_valid_proposals_are_kept_in_their_order(guide: Guide) -> None:
    """One that comes again keeps its first rank, and is not put off to its last one."""
    refused = (5,)
    guide.valid = lambda rows: [row != refused for row in rows]  # type: ignore[method-assign]
    proposals = [(1,), refused, (2,), (3,), (1,), (2,), (4,)]
    assert first_valid(proposals, guide, 2) == [(1,), (2,)]
    assert first_valid(proposals, guide, 9) == [(1,), (2,), (3,), (4,)]


def is_edit(row: Ids, parent: Ids, n_replace: int) -> bool:
    """Whether swaps, one insertion or one deletion make the row of its parent."""
    if len(row) == len(parent):
        return len(changes(row, parent)) <= n_replace
    longer, shorter = (row, parent) if len(row) > len(parent) else (parent, row)
    return len(longer) == len(shorter) + 1 and bool(insertions(longer, shorter))


@pytest.mark.parametrize("moves", [MOVES, ("swap",), ("insert",), ("delete",)])
@pytest.mark.parametrize("name", ["gcg", "random"])
def test_an_edit_names_the_row_of_the_beam_that_it_was_made_from(
    guide: Guide, generator: torch.Generator, name: str, moves: tuple[str, ...]
) -> None:
    """Also where another row is nearly the same, or some rows allow no move."""
    row, other = ids(guide, TEXT), ids(guide, OTHER)
    beam = [other, row, row[:-1], other[:1]]
    guide.max_length = len(row)
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    method = METHODS[name](search_width=80, n_replace=2, moves=moves)
    found = candidates_of(method, beam, guide, generator)
    assert len(found.parents) == len(found.ids) > 5
    assert all(is_edit(new, beam[p], 2) for new, p in zip(found.ids, found.parents, strict=True))
    able = {"swap": {0, 1, 2, 3}, "insert": {0, 2, 3}, "delete": {0, 1, 2}}
    assert set(found.parents) == set.union(*(able[move] for move in moves))


def test_a_continuation_names_the_row_of_the_beam_that_it_extends(joint: Guide) -> None:
    """Each row has its share, in the order of the beam."""
    beam = [ids(joint, text) for text in (TEXT, OTHER, "A red house")]
    method = fuse.AutoDAN(search_width=30)
    found = candidates_of(method, beam, joint, torch.Generator())
    assert [new[:-1] for new in found.ids] == [beam[parent] for parent in found.parents]
    assert list(found.parents) == sorted(found.parents)
    assert Counter(found.parents) == {0: 10, 1: 10, 2: 10}


@pytest.mark.parametrize("name", ["pez", "embedding", "relaxed", "langevin"])
def test_a_continuous_method_has_the_first_row_for_a_parent(
    guide: Guide, generator: torch.Generator, name: str
) -> None:
    found = candidates_of(METHODS[name](), [ids(guide, TEXT)], guide, generator)
    assert found.ids
    assert list(found.parents) == [0] * len(found.ids)


@pytest.mark.parametrize(
    "method",
    [
        fuse.Random(search_width=5),
        fuse.GCG(search_width=5),
        fuse.AutoDAN(search_width=5),
        fuse.GCG(search_width=5, momentum=0.5),
        fuse.PEZ(),
        fuse.Embedding(search_width=2),
    ],
    ids=["random", "gcg", "autodan", "momentum", "pez", "embedding"],
)
def test_a_methods_state_is_a_value(guide: Guide, method: Method) -> None:
    """The same state and chance propose the same again; where nothing is kept, nothing changes."""
    beam = [ids(guide, TEXT)]
    first = candidates_of(method, beam, guide, torch.Generator().manual_seed(0))
    stateless = isinstance(method, fuse.Random | fuse.AutoDAN) or method == fuse.GCG(search_width=5)
    assert (first.state is UNCHANGED) == stateless
    evaluated = guide._objective.evaluate(first)
    state = None if stateless else first.state
    assert method.observe(state, evaluated) is state
    again = [
        candidates_of(method, beam, guide, torch.Generator().manual_seed(1), state)
        for _ in range(2)
    ]
    assert again[0].ids == again[1].ids
    assert again[0].parents == again[1].parents


@pytest.mark.parametrize("name", ["gcg", "autodan"])
@pytest.mark.parametrize("fluency", [0.0, 1.0])
def test_linearising_at_a_mask_token_needs_one(
    lm: fuse.CausalLM, joint: Guide, name: str, fluency: float
) -> None:
    """Of every model that has a say."""
    secondary = joint._objective.secondaries["clip"]
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL(), weight=fluency), {"clip": secondary})
    at_fault = "primary" if fluency else "secondary.clip"
    method = METHODS[name](linearise=("current", "mask"), search_width=4)
    with pytest.raises(fuse.FuseError, match=f"method.linearise=.*mask.*{at_fault} has no mask"):
        fuse.search(objective, method, steps=1)


# --- edits: GCG and Random -------------------------------------------------------------------


def test_gcg_draws_its_swaps_uniformly_from_the_shortlist(
    guide: Guide, generator: torch.Generator
) -> None:
    """Neither the rank nor the index of a token, nor the position, makes a swap likelier."""
    row, shortlist = ids(guide, "A red house"), (1500, 300, 40, 700, 1200, 90)
    accept_all(guide)
    set_gradient(guide, favouring(guide, shortlist))
    method = fuse.GCG(search_width=1, top_k=len(shortlist), moves=("swap",))
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(1200):
        (new,) = propose(method, [row], guide, generator)
        (position,) = changes(new, row)
        seen[position, new[position]] += 1
    cells: list[int] = []
    for position in range(len(row)):
        cells += [seen[position, token] for token in shortlist]
    assert sum(cells) == 1200  # nothing beside the shortlist
    expected = [1200 / len(cells)] * len(cells)
    assert chi_square(cells, expected) < 45  # 17 degrees of freedom: 1 in 4000


@pytest.mark.parametrize("skew", [2.0, 4.0])
def test_a_skew_draws_the_first_of_a_shortlist_more_often(
    guide: Guide, generator: torch.Generator, skew: float
) -> None:
    """Rank r of n with the chance ((r + 1) / n)^(1 / skew) - (r / n)^(1 / skew)."""
    row, shortlist = ids(guide, "A red house"), (1500, 300, 40, 700)
    accept_all(guide)
    set_gradient(guide, favouring(guide, shortlist))
    method = fuse.GCG(search_width=1, top_k=4, moves=("swap",), skew=skew)
    seen: Counter[int] = Counter()
    for _ in range(1200):
        (new,) = propose(method, [row], guide, generator)
        (position,) = changes(new, row)
        seen[new[position]] += 1
    below = [(rank / 4) ** (1 / skew) for rank in range(5)]
    expected = [1200 * (high - low) for low, high in pairwise(below)]
    assert chi_square([seen[token] for token in shortlist], expected) < 18


def test_a_distance_weight_keeps_far_tokens_out_of_the_shortlist(guide: Guide) -> None:
    row = ids(guide, "A red house")
    gradient = torch.randn(len(guide.vocabulary), generator=torch.Generator().manual_seed(4))
    set_gradient(guide, gradient)
    table = guide.vocabulary.embedding.float()
    means = []
    for weight in (0.0, 1.0, 1e4):
        method = fuse.GCG(top_k=20, distance_weight=weight)
        lists = method.shortlist(None, swap_sites(0, row), guide)
        far = torch.cdist(table[list(row)], table).gather(1, lists.tokens)
        means.append(float(far.mean()))
    assert means[0] > means[1] > means[2]
    nearest = torch.cdist(table[list(row)], table).masked_fill(~guide.allowed, torch.inf)
    expected = nearest.topk(20, largest=False).indices
    assert tokens_of(lists) == [set(own) for own in expected.tolist()]


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_moves_and_positions_are_drawn_uniformly(
    guide: Guide, generator: torch.Generator, name: str
) -> None:
    row = ids(guide, "A red house stands")
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    moves: Counter[int] = Counter()
    swapped: Counter[int] = Counter()
    for _ in range(900):
        (new,) = propose(METHODS[name](search_width=1), [row], guide, generator)
        moves[len(new) - len(row)] += 1
        if len(new) == len(row) and new != row:
            swapped[changes(new, row)[0]] += 1
    assert set(moves) == {-1, 0, 1}
    assert chi_square(list(moves.values()), [300] * 3) < 18
    assert set(swapped) == set(range(len(row)))
    assert chi_square(list(swapped.values()), [swapped.total() / 4] * 4) < 21


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_moves_with_few_outcomes_are_proposed_too(
    guide: Guide, generator: torch.Generator, name: str
) -> None:
    """A third of the draws delete: nearly all of the few different deletions are candidates."""
    row = ids(guide, TEXT)
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    candidates = propose(METHODS[name](), [row], guide, generator)
    assert len(candidates) == 128
    assert sum(len(new) < len(row) for new in candidates) >= len(row) - 1


@pytest.mark.parametrize("linearise", [("current",), ("mean", "current")])
def test_gcg_shortlists_the_most_negative_gradient_among_allowed_tokens(
    joint: Guide, linearise: tuple[str, ...]
) -> None:
    joint.allowed = fuse.Constraints(words=True).allowed(joint.vocabulary)
    row = ids(joint, TEXT)
    lists = fuse.GCG(top_k=20, linearise=linearise).shortlist(None, swap_sites(0, row), joint)
    assert list(lists.sites) == swap_sites(0, row)
    gradient = joint.token_gradient([row] * len(row), range(len(row)), linearise)
    usable = [i for i, ok in enumerate(joint.allowed.tolist()) if ok]
    assert len(usable) < int(joint.vocabulary.allowed.sum())
    for found, values in zip(tokens_of(lists), gradient.tolist(), strict=True):
        assert found == set(sorted(usable, key=lambda token: values[token])[:20])


@pytest.mark.parametrize("n_replace", [1, 2, 4, 9])
@pytest.mark.parametrize("name", ["gcg", "random"])
def test_n_replace_swaps_that_many_different_positions(
    guide: Guide, generator: torch.Generator, name: str, n_replace: int
) -> None:
    row = ids(guide, "A red house stands by the sea")
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    method = METHODS[name](search_width=200, n_replace=n_replace, moves=("swap",))
    positions = [changes(new, row) for new in propose(method, [row], guide, generator)]
    counts = [len(own) for own in positions]
    expected = min(n_replace, len(row))
    assert max(counts) == expected
    # the shortlist of GCG holds no present token; a token drawn from all may be the present one
    assert min(counts) == expected or name == "random"
    assert sum(count == expected for count in counts) > 0.98 * len(counts)
    assert set().union(*positions) == set(range(len(row)))


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_rows_of_the_beam_are_changed_in_turn_and_at_all_positions(
    guide: Guide, generator: torch.Generator, name: str
) -> None:
    beam = [ids(guide, text) for text in (TEXT, OTHER, "A big green boat")]
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    method = METHODS[name](search_width=150, moves=("swap",))
    candidates = propose(method, beam, guide, generator)
    assert len(set(candidates)) == len(candidates) == 150
    for row in beam:
        own = of_parent(candidates, row)
        assert abs(len(own) - 50) <= 8
        assert set().union(*(changes(new, row) for new in own)) == set(range(len(row)))


@pytest.mark.parametrize("linearise", [("current",), ("mean",), ("current", "mean")])
def test_gcg_shortlists_every_row_by_its_own_gradient(
    joint: Guide, linearise: tuple[str, ...]
) -> None:
    method = fuse.GCG(top_k=12, linearise=linearise)
    sites = []
    for i, row in enumerate((ids(joint, TEXT), ids(joint, OTHER))):
        own = swap_sites(i, row)
        for position in (1, len(row)):
            longer = (*row[:position], joint.filler, *row[position:])
            own.append(Site(i, "insert", position, longer))
        sites.append(own)
    first, second = (tokens_of(method.shortlist(None, own, joint)) for own in sites)
    assert tokens_of(method.shortlist(None, sites[0] + sites[1], joint)) == first + second
    assert first[0] != second[0]


def test_gcg_in_a_beam_proposes_what_it_would_alone(joint: Guide) -> None:
    """A position takes tokens from the shortlist that its row has when it is alone."""
    beam = [ids(joint, TEXT), ids(joint, OTHER)]
    method = fuse.GCG(search_width=60, top_k=6, moves=("swap",))
    candidates = propose(method, beam, joint, torch.Generator().manual_seed(0))
    assert all(of_parent(candidates, row) for row in beam)
    for row in beam:
        alone = tokens_of(method.shortlist(None, swap_sites(0, row), joint))
        for new in of_parent(candidates, row):
            assert all(new[position] in alone[position] for position in changes(new, row))


def test_random_l0_takes_any_allowed_token(guide: Guide, generator: torch.Generator) -> None:
    guide.allowed = fuse.Constraints(words=True).allowed(guide.vocabulary)
    accept_all(guide)
    row = ids(guide, "A red house")
    method = fuse.Random(search_width=4000, moves=("swap",))
    put: list[int] = []
    for new in propose(method, [row], guide, generator):
        put += [new[position] for position in changes(new, row)]
    assert all(guide.allowed[token] for token in put)
    assert len(set(put)) > 0.8 * int(guide.allowed.sum())
    # low and high ids alike
    usable = guide.allowed.nonzero().flatten().tolist()
    quarters = Counter(4 * usable.index(token) // len(usable) for token in put)
    assert chi_square([quarters[i] for i in range(4)], [len(put) / 4] * 4) < 25


def nearest_tokens(guide: Guide, token: int, count: int) -> set[int]:
    """Return the allowed tokens nearest to one of them, without itself."""
    table = guide.vocabulary.embedding
    others = [i for i in guide.allowed.nonzero().flatten().tolist() if i != token]
    return set(sorted(others, key=lambda i: float((table[i] - table[token]).norm()))[:count])


def test_random_l2_takes_the_nearest_tokens_and_never_the_present_one(
    guide: Guide, generator: torch.Generator
) -> None:
    accept_all(guide)
    row = ids(guide, "A red house stands")
    method = fuse.Random(search_ball="L2", top_k=5, search_width=400, moves=("swap",))
    seen: dict[int, set[int]] = {}
    for new in propose(method, [row], guide, generator):
        (position,) = changes(new, row)
        seen.setdefault(position, set()).add(new[position])
    assert seen == {p: nearest_tokens(guide, present, 5) for p, present in enumerate(row)}


def test_random_l2_is_never_the_present_token_where_few_are_allowed(guide: Guide) -> None:
    """Also where the ball would hold all that is allowed."""
    constraints = fuse.Constraints(allow=("red", "blue", "house", "a"))
    guide.allowed = constraints.allowed(guide.vocabulary)
    row = tuple(guide.allowed.nonzero().flatten().tolist())
    lists = fuse.Random(search_ball="L2").shortlist(None, swap_sites(0, row), guide)
    assert tokens_of(lists) == [set(row) - {present} for present in row]


def test_random_l2_inserts_tokens_near_to_the_one_before(
    guide: Guide, generator: torch.Generator
) -> None:
    accept_all(guide)
    row = ids(guide, "A red house")
    method = fuse.Random(search_ball="L2", top_k=4, search_width=200, moves=("insert",))
    nearest = {before: nearest_tokens(guide, before, 4) for before in row}
    for new in propose(method, [row], guide, generator):
        behind = [p for p in insertions(new, row) if p and new[p] in nearest[row[p - 1]]]
        assert behind or 0 in insertions(new, row)


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_insertions_and_deletions_change_the_length_by_one(
    guide: Guide, generator: torch.Generator, name: str
) -> None:
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    row = ids(guide, TEXT)
    inserting = METHODS[name](search_width=100, moves=("insert",))
    positions: list[list[int]] = []
    for _ in range(12):
        positions += all_insertions(propose(inserting, [row], guide, generator), row)
    assert all(positions)
    # in the long run everywhere between words, but never inside one or before a first token that
    # has no space before it
    starts = [guide.vocabulary.token_texts[token].startswith(" ") for token in row]
    assert certain(positions) == {p for p, begins in enumerate([*starts, True]) if begins}
    deleting = METHODS[name](search_width=100, moves=("delete",))
    deleted = propose(deleting, [row], guide, generator)
    assert set(deleted) == {row[:p] + row[p + 1 :] for p in range(len(row))}


def test_nothing_is_inserted_inside_a_word(guide: Guide, generator: torch.Generator) -> None:
    accept_all(guide)
    row = ids(guide, "turquoise umbrella and a turtles")
    texts = [guide.vocabulary.token_texts[token] for token in row]
    inside = {position for position, text in enumerate(texts) if not text.startswith(" ")}
    assert len(inside) >= 3
    method = fuse.Random(search_width=200, moves=("insert",))
    positions: list[list[int]] = []
    for _ in range(12):
        positions += all_insertions(propose(method, [row], guide, generator), row)
    assert certain(positions) == set(range(len(row) + 1)) - inside


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_no_deletion_empties_a_prompt_and_no_insertion_makes_it_too_long(
    guide: Guide, generator: torch.Generator, name: str
) -> None:
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    short, full = ids(guide, "A"), ids(guide, TEXT)
    guide.max_length = len(full)
    assert propose(METHODS[name](moves=("delete",)), [short], guide, generator) == []
    assert propose(METHODS[name](moves=("insert",)), [full], guide, generator) == []
    both = propose(METHODS[name](search_width=300), [short, full], guide, generator)
    assert {len(new) for new in both} == {1, 2, len(full), len(full) - 1}


def test_an_edit_search_in_a_small_room_stays_in_it(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL(), prefix="a house " * 60))
    room = objective.primary.max_free_tokens
    assert 3 < room < 10
    method = fuse.Random(search_width=30, prompt_length=room, moves=("insert", "swap"))
    result = fuse.search(objective, method, fuse.Beam(2), steps=3)
    assert {len(step.free_ids) for step in result.trace} == {room}
    with pytest.raises(fuse.FuseError, match="prompt_length"):
        fuse.search(objective, fuse.Random(prompt_length=room + 1), fuse.Beam(2), steps=3)


# --- GCG: momentum, and gradients that are not finite -----------------------------------------


def test_momentum_ranks_by_the_mixture_of_gradients(guide: Guide) -> None:
    row = ids(guide, "A red house")
    sites = swap_sites(0, row)[1:3]
    generator = torch.Generator().manual_seed(5)
    steps = torch.randn(3, 2, len(guide.vocabulary), generator=generator)
    method, state = fuse.GCG(top_k=30, momentum=0.7), None
    mixed = steps[0]
    for number, gradient in enumerate(steps):
        mixed = gradient if number == 0 else 0.7 * mixed + 0.3 * gradient
        set_gradient(guide, gradient)
        lists = method.shortlist(state, sites, guide)
        state = lists.state
        assert tokens_of(lists) == smallest(mixed, 30, guide)
    plain = fuse.GCG(top_k=30).shortlist(None, sites, guide)
    assert tokens_of(plain)[0] != tokens_of(lists)[0]


def test_momentum_is_the_mean_over_the_beam_at_the_same_position_and_length(guide: Guide) -> None:
    beam = [ids(guide, "A red house"), ids(guide, "A blue cup"), ids(guide, "A cup")]
    sites = [Site(i, "swap", 1, row) for i, row in enumerate(beam)]
    generator = torch.Generator().manual_seed(6)
    first, second = torch.randn(2, 3, len(guide.vocabulary), generator=generator)
    method = fuse.GCG(top_k=30, momentum=0.5)
    set_gradient(guide, first)
    state = method.shortlist(None, sites, guide).state
    set_gradient(guide, second)
    shared = first[:2].mean(0)
    expected = 0.5 * torch.stack([shared, shared, first[2]]) + 0.5 * second
    assert tokens_of(method.shortlist(state, sites, guide)) == smallest(expected, 30, guide)


def test_momentum_keeps_no_more_than_a_few_steps_hold_however_long_a_search_is(
    guide: Guide,
) -> None:
    """Lengths that come and go add keys; those of the latest steps stay."""
    method, state = fuse.GCG(top_k=5, momentum=0.5), None
    row = ids(guide, TEXT + " and a small blue cup lies on the green table near the house")
    longest = len(row)
    lengths = [3 + (5 * step) % (longest - 2) for step in range(40)]
    assert set(lengths) == set(range(3, longest + 1))
    sizes = []
    for number, length in enumerate(lengths):
        gradient = torch.full((length, len(guide.vocabulary)), float(number + 1))
        set_gradient(guide, gradient)
        lists = method.shortlist(state, swap_sites(0, row[:length]), guide)
        state = lists.state
        sizes.append(len(state))
        assert len(state) <= STEPS_REMEMBERED * length
        assert all(("swap", position, length) in state for position in range(length))
    assert sum(set(lengths)) > STEPS_REMEMBERED * longest  # more keys than may stay
    assert max(sizes) > 2 * longest


def test_momentum_of_lengths_that_take_turns_is_remembered(guide: Guide) -> None:
    """As a search with insertions and deletions has them."""
    row = ids(guide, TEXT)
    generator = torch.Generator().manual_seed(7)
    method, state = fuse.GCG(top_k=30, momentum=0.7), None
    mixed: dict[int, torch.Tensor] = {}
    for length in (4, 5, 4, 6, 5, 4):
        gradient = torch.randn(length, len(guide.vocabulary), generator=generator)
        known = length in mixed
        mixed[length] = 0.7 * mixed[length] + 0.3 * gradient if known else gradient
        set_gradient(guide, gradient)
        lists = method.shortlist(state, swap_sites(0, row[:length]), guide)
        state = lists.state
        assert tokens_of(lists) == smallest(mixed[length], 30, guide)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"logit_weight": 1.0}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gcg_leaves_out_sites_whose_gradient_is_not_finite(
    guide: Guide, generator: torch.Generator, value: float, options: dict[str, float]
) -> None:
    row = ids(guide, TEXT)
    gradient = torch.rand(len(row), len(guide.vocabulary), generator=generator)
    set_gradient(guide, gradient.clone())
    method = fuse.GCG(top_k=9, search_width=100, moves=("swap",), **options)
    whole = method.shortlist(None, swap_sites(0, row), guide)
    assert whole.num_non_finite == 0
    broken = gradient.clone()
    broken[2, 700] = broken[4, 11] = value
    set_gradient(guide, broken)
    accept_all(guide)
    lists = method.shortlist(None, swap_sites(0, row), guide)
    kept = [position for position in range(len(row)) if position not in (2, 4)]
    assert [site.position for site in lists.sites] == kept
    assert tokens_of(lists) == [tokens_of(whole)[position] for position in kept]
    assert lists.num_non_finite == 2
    if "momentum" in options:
        assert all(one.isfinite().all() for one in lists.state.values())
    found = candidates_of(method, [row], guide, generator)
    assert set().union(*(changes(new, row) for new in found.ids)) == set(kept)
    assert found.num_non_finite == 2


def test_gcg_with_no_finite_gradient_can_only_delete(
    guide: Guide, generator: torch.Generator
) -> None:
    row = ids(guide, TEXT)
    accept_all(guide)
    set_gradient(guide, torch.full((len(guide.vocabulary),), math.nan))
    found = candidates_of(fuse.GCG(momentum=0.5), [row], guide, generator)
    assert found.ids
    assert {len(new) for new in found.ids} == {len(row) - 1}
    assert found.num_non_finite > len(row)  # every swap, and the insertions
    swaps = candidates_of(fuse.GCG(moves=("swap",)), [row], guide, generator)
    assert (swaps.ids, swaps.num_non_finite) == ([], len(row))


@pytest.mark.parametrize("name", ["autodan", "gcg", "pez", "gibbs"])
def test_a_prompt_that_fills_a_secondarys_context_is_searched_on(joint: Guide, name: str) -> None:
    """Gradients are taken at texts that may be longer than a secondary can read."""
    words = ("a red house in the snow and a cup " * 8).split()
    secondary = joint._objective.secondaries["clip"]
    texts = [" ".join(words[:n]) for n in range(1, len(words))]
    fits = secondary.fits(secondary.encode(texts))
    start = max((text for text, fit in zip(texts, fits, strict=True) if fit), key=len)
    assert not all(fits)
    options = {} if name == "pez" else {"search_width": 8}
    method = METHODS[name](**options)
    result = fuse.search(joint._objective, method, fuse.Beam(1), steps=3, init=start)
    assert result.loss <= result.initial_loss + 1e-4


# --- AutoDAN ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logit_weight": 0.0},
        {"logit_weight": 3.0, "frequency_penalty": 2.0, "linearise": ("mean",)},
    ],
)
def test_autodan_at_temperature_zero_proposes_the_best_by_its_ranking(
    joint: Guide, options: dict
) -> None:
    method = fuse.AutoDAN(search_width=25, **options)
    row = ids(joint, "A red house and a red")
    usable = [i for i, ok in enumerate(joint.allowed.tolist()) if ok]
    whole = torch.tensor([(*joint.vocabulary.head, *row)])
    logits = joint._objective.primary.model.network(input_ids=whole).logits[0, -1]
    log_probs = logits.log_softmax(-1).tolist()
    likeliest = max(usable, key=lambda token: log_probs[token])
    gradient = joint.token_gradient([(*row, likeliest)], [len(row)], method.linearise)[0].tolist()
    kept = [gradient[token] for token in usable]
    mean = sum(kept) / len(kept)
    spread = math.sqrt(sum((g - mean) ** 2 for g in kept) / (len(kept) - 1))

    def rank(token: int) -> float:
        readable = method.logit_weight * log_probs[token]
        repeated = method.frequency_penalty * row.count(token)
        return -(gradient[token] - mean) / spread + readable - repeated

    ranked = [(*row, token) for token in sorted(usable, key=rank, reverse=True)]
    expected = [new for new, ok in zip(ranked, joint.valid(ranked), strict=True) if ok][:25]
    assert propose(method, [row], joint, torch.Generator()) == expected


def test_autodan_ranks_every_row_by_its_own_gradient(joint: Guide) -> None:
    beam = [ids(joint, TEXT), ids(joint, OTHER)]
    together = propose(fuse.AutoDAN(search_width=40), beam, joint, torch.Generator())
    for row in beam:
        own = [new for new in together if new[:-1] == row]
        assert own == propose(fuse.AutoDAN(search_width=20), [row], joint, torch.Generator())
    assert {row[-1] for row in together[:20]} != {row[-1] for row in together[20:]}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_autodan_leaves_out_rows_whose_gradient_is_not_finite(joint: Guide, value: float) -> None:
    beam = [ids(joint, TEXT), ids(joint, "A red house"), ids(joint, OTHER)]
    method = fuse.AutoDAN(search_width=30)
    whole = candidates_of(method, beam, joint, torch.Generator())
    assert whole.num_non_finite == 0
    gradient = joint.token_gradient

    def broken(*given: Any) -> torch.Tensor:
        found = gradient(*given).clone()
        found[1, 5] = value
        return found

    joint.token_gradient = broken  # type: ignore[method-assign]
    found = candidates_of(method, beam, joint, torch.Generator())
    pairs = zip(whole.ids, whole.parents, strict=True)
    assert found.ids == [new for new, parent in pairs if parent != 1]
    assert [new[:-1] for new in found.ids] == [beam[parent] for parent in found.parents]
    assert found.num_non_finite == 1


SHARES = {900: 0.4, 300: 0.25, 1200: 0.2, 50: 0.1, 700: 0.05}
"""Next tokens and their probabilities in a made-up prediction."""


def set_shares(guide: Guide) -> None:
    """Let the gradient say nothing, and the prediction be that of `SHARES`."""
    log_probs = torch.full((len(guide.vocabulary),), -60.0)
    log_probs[list(SHARES)] = torch.tensor(list(SHARES.values())).log()
    accept_all(guide)
    set_gradient(guide, torch.zeros(len(log_probs)))
    set_log_probs(guide, lambda row: log_probs)


def test_autodan_draws_from_the_softmax_without_replacement(
    guide: Guide, generator: torch.Generator
) -> None:
    set_shares(guide)
    row, method = ids(guide, "A red"), fuse.AutoDAN(search_width=5, temperature=1.0)
    first: Counter[int] = Counter()
    second: Counter[int] = Counter()
    for _ in range(800):
        drawn = [new[-1] for new in propose(method, [row], guide, generator)]
        assert len(drawn) == len(set(drawn)) == 5
        assert set(drawn) == set(SHARES)
        first[drawn[0]] += 1
        second[drawn[1]] += 1
    expected = [800 * p for p in SHARES.values()]
    # 4 degrees of freedom: 1 in 10,000
    assert chi_square([first[token] for token in SHARES], expected) < 24
    expected = []
    for token, p in SHARES.items():
        others = [q for other, q in SHARES.items() if other != token]
        expected.append(800 * sum(q * p / (1 - q) for q in others))
    assert chi_square([second[token] for token in SHARES], expected) < 24


def test_autodans_temperature_flattens_the_draw(guide: Guide, generator: torch.Generator) -> None:
    set_shares(guide)
    row, method = ids(guide, "A red"), fuse.AutoDAN(search_width=1, temperature=2.0)
    seen = Counter(propose(method, [row], guide, generator)[0][-1] for _ in range(800))
    total = sum(p**0.5 for p in SHARES.values())
    expected = [800 * p**0.5 / total for p in SHARES.values()]
    assert chi_square([seen[token] for token in SHARES], expected) < 24


@pytest.mark.parametrize(("top_p", "count"), [(0.3, 1), (0.6, 2), (0.7, 3), (0.9, 4)])
def test_autodan_draws_only_from_the_likeliest_mass(
    guide: Guide, generator: torch.Generator, top_p: float, count: int
) -> None:
    set_shares(guide)
    method = fuse.AutoDAN(search_width=20, temperature=1.0, top_p=top_p)
    drawn: set[int] = set()
    for _ in range(20):
        drawn |= {new[-1] for new in propose(method, [ids(guide, "A red")], guide, generator)}
    assert drawn == set(list(SHARES)[:count])


def test_autodans_draw_comes_from_the_generator_alone(joint: Guide) -> None:
    method = fuse.AutoDAN(search_width=10, temperature=1.0)
    beam = [ids(joint, TEXT), ids(joint, OTHER)]
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(torch.seed())
        draws.append(propose(method, beam, joint, torch.Generator().manual_seed(seed)))
    assert draws[0] == draws[1] != draws[2]


def test_a_frequency_penalty_keeps_tokens_from_coming_again(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    init = "A red cup and a red cup and"
    start = len(objective.spell(init))
    repeated = []
    for penalty in (0.0, 1000.0):
        options = {"logit_weight": 20.0, "frequency_penalty": penalty}
        method = fuse.AutoDAN(search_width=4, **options)
        result = fuse.search(objective, method, fuse.Beam(1), steps=7, init=init)
        row = max((step.free_ids for step in result.trace), key=len)
        assert len(row) > start
        repeated.append([row[i] for i in range(start, len(row)) if row[i] in row[:i]])
    assert repeated[0]
    assert not repeated[1]


@pytest.mark.parametrize("logit_weight", [1.0, 0.0])
def test_autodan_ends_a_row_where_the_end_of_text_is_the_likeliest(
    guide: Guide, logit_weight: float
) -> None:
    ending, going_on = ids(guide, "A red house."), ids(guide, "A red house")
    (end,) = guide.end_of_text
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.randn(len(guide.vocabulary), generator=generator).log_softmax(-1)
    forbidden = int((~guide.allowed).nonzero().flatten()[-1])
    accept_all(guide)

    def after(row: Ids) -> torch.Tensor:
        found = log_probs.clone()
        found[end] = 1.0 if row == ending else -1.0
        found[forbidden] = 5.0  # a token that no prompt may hold is no way to go on
        found[int(guide.allowed.nonzero()[7])] = 0.0
        return found

    set_log_probs(guide, after)
    method = fuse.AutoDAN(search_width=6, logit_weight=logit_weight)
    candidates = propose(method, [ending, going_on], guide, torch.Generator())
    assert {row[:-1] for row in candidates} == {going_on}
    assert len(candidates) == 6
    assert propose(method, [ending], guide, torch.Generator()) == []


def test_autodans_parents_are_right_beside_rows_that_do_not_grow(guide: Guide) -> None:
    """Where rows before them have ended, or are as long as a row can be."""
    ended, full, row = ids(guide, "A red house."), ids(guide, TEXT), ids(guide, "A blue")
    (end,) = guide.end_of_text
    guide.max_length = len(full)
    log_probs = torch.zeros(len(guide.vocabulary))

    def after(of: Ids) -> torch.Tensor:
        return log_probs.index_fill(0, torch.tensor([end]), 1.0 if of == ended else -1.0)

    set_log_probs(guide, after)
    for beam in ([ended, row], [full, row], [full, ended, row]):
        found = candidates_of(fuse.AutoDAN(search_width=6), beam, guide, torch.Generator())
        assert found.ids
        assert {new[:-1] for new in found.ids} == {row}
        assert set(found.parents) == {beam.index(row)}


def test_autodans_search_ends_where_all_rows_have_ended(lm: fuse.CausalLM) -> None:
    """The demo model ends a text after this sentence."""
    start = "A red house in the snow."
    objective, method = fuse.Objective(fuse.Term(lm, fuse.NLL())), fuse.AutoDAN(search_width=8)
    result = fuse.search(objective, method, fuse.Beam(1), steps=10, init=start)
    assert (result.prompt, result.steps, result.evaluations) == (start, 0, 1)
    assert result.ended == "exhausted"
    longer = fuse.search(objective, method, fuse.Beam(2), steps=60, init="A red house in the")
    assert 0 < longer.steps < 60
    assert longer.ended == "exhausted"


def test_autodan_needs_a_model_that_predicts(clip: fuse.CLIP, house: torch.Tensor) -> None:
    objective = fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house)))
    with pytest.raises(fuse.FuseError, match=r"method=autodan.*primary is a CLIP.*causal LM"):
        fuse.search(objective, fuse.AutoDAN(), fuse.Beam(1))


# --- continuous methods ----------------------------------------------------------------------


def test_pez_is_the_papers_algorithm(
    clip: fuse.CLIP, house: torch.Tensor, seeing: Guide, generator: torch.Generator
) -> None:
    vocabulary = clip.vocabulary
    method = fuse.PEZ(lr=0.05, weight_decay=0.2, prompt_length=5)
    start = random_prompt(seeing, 5, generator)
    table, allowed = vocabulary.embedding, seeing.allowed.nonzero().flatten()
    head, tail = list(vocabulary.head), list(vocabulary.tail)

    points = torch.nn.Parameter(table[list(start)].clone())
    optimiser = torch.optim.AdamW([points], lr=0.05, weight_decay=0.2)

    def nearest() -> torch.Tensor:
        return allowed[torch.cdist(points.detach(), table[allowed]).argmin(-1)]

    state: Any = None
    seen = set()
    for _ in range(8):
        leaf = table[nearest()].clone().requires_grad_()
        whole = torch.tensor([[*head, *nearest().tolist(), *tail]])
        read = torch.cat([table[head], leaf, table[tail]])[None]
        mask = torch.ones_like(whole, dtype=torch.bool)
        inputs = Inputs(whole, mask, mask, ~mask, embeddings=read)
        loss = 1 - clip.vector(inputs)[0] @ house
        (points.grad,) = torch.autograd.grad(loss, leaf)
        optimiser.step()

        candidates = candidates_of(method, [start], seeing, generator, state)
        state = candidates.state
        torch.testing.assert_close(state.points[0], points.detach(), atol=1e-5, rtol=1e-4)
        row = tuple(nearest().tolist())
        assert vocabulary.decode(candidates.ids) in ([], vocabulary.decode([row]))
        seen.add(row)
    assert len(seen) > 2


def test_pez_starts_at_the_first_prompt(seeing: Guide, generator: torch.Generator) -> None:
    (start,) = fuse.PEZ(prompt_length=3).init(seeing, (), generator)[1]
    assert len(start) == 3
    found = candidates_of(fuse.PEZ(lr=0.0), [start], seeing, generator)
    assert found.ids == [start]
    assert torch.equal(found.state.points[0], seeing.vocabulary.embedding[list(start)])


def test_the_pass_of_pezs_gradient_scores_its_candidate(
    seeing: Guide, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is known then, as that of the tokens nearest to the points."""
    objective = seeing._objective
    (start,) = fuse.PEZ(prompt_length=3).init(seeing, (), generator)[1]
    expected = fuse.Objective(fuse.Term(objective.primary.model, objective.primary.loss))
    losses = expected.evaluate([start]).loss
    counts: list[int] = []
    run = ModelRunner.run

    def counting(self: ModelRunner, rows: Sequence[Any], *others: Any) -> Any:
        counts.append(len(rows))
        return run(self, rows, *others)

    monkeypatch.setattr(ModelRunner, "run", counting)
    state = candidates_of(fuse.PEZ(lr=0.0), [start], seeing, generator).state
    objective.prefill([start])
    counts.clear()
    found = candidates_of(fuse.PEZ(lr=0.0), [start], seeing, generator, state)
    assert found.ids == [start]
    before = sum(counts)
    torch.testing.assert_close(objective.evaluate(found).loss, losses, atol=2e-5, rtol=0)
    assert sum(counts) == before == 1


@pytest.mark.parametrize("method", [fuse.PEZ(), fuse.Embedding(search_width=4)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_counted_and_moves_nothing(
    guide: Guide, generator: torch.Generator, method: Method, value: float
) -> None:
    beam = [ids(guide, TEXT)]
    first = candidates_of(method, beam, guide, generator)
    assert first.num_non_finite == 0
    gradient = guide.embedding_gradient

    def broken(*given: Any) -> torch.Tensor:
        found = gradient(*given).clone()
        found[0, 1, 3] = value
        return found

    guide.embedding_gradient = broken  # type: ignore[method-assign]
    state = first.state
    for _ in range(3):
        found = candidates_of(method, beam, guide, generator, state)
        state = found.state
        assert found.num_non_finite == 1
        assert found.ids
        assert state.points.isfinite().all()
        for moment in state.optimiser["state"][0].values():
            assert torch.as_tensor(moment).isfinite().all()
    assert not torch.equal(state.points, first.state.points)


@pytest.fixture
def eliciting(lm: fuse.CausalLM) -> Guide:
    return Guide(fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the snow."))))


def radius_of(guide: Guide) -> float:
    return float(guide.vocabulary.embedding[guide.allowed].norm(dim=-1).mean())


@pytest.mark.parametrize("start", options_of(fuse.Embedding)["start"].choices)
def test_embeddings_points_stay_on_the_sphere(
    eliciting: Guide, generator: torch.Generator, start: str
) -> None:
    method = fuse.Embedding(search_width=5, start=start, prompt_length=4, lr=0.5)
    (row,) = method.init(eliciting, (), generator)[1]
    state: Any = None
    norms = torch.full((5, 4), radius_of(eliciting))
    for _ in range(3):
        before = state
        candidates = candidates_of(method, [row], eliciting, generator, state)
        state = candidates.state
        assert state.points.shape == (5, 4, eliciting.vocabulary.embedding.shape[1])
        torch.testing.assert_close(state.points.norm(dim=-1), norms, rtol=1e-4, atol=0)
        assert len(candidates.ids) <= 5
        assert before is None or not torch.allclose(before.points, state.points)


def test_embeddings_first_row_is_the_first_prompt(
    eliciting: Guide, generator: torch.Generator
) -> None:
    method, row = fuse.Embedding(search_width=3, lr=0.0), ids(eliciting, TEXT)
    state = candidates_of(method, [row], eliciting, generator).state
    own = eliciting.vocabulary.embedding[list(row)]
    expected = radius_of(eliciting) * own / own.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(state.points[0], expected, atol=1e-4, rtol=1e-4)


def unique_share(points: torch.Tensor) -> torch.Tensor:
    """Return the soft share of different points, by its formula; in units of the radius."""
    flat = points.flatten(0, 1)
    width = embedding_module.BANDWIDTH**2
    counts = []
    for a in flat:
        counts.append(1 / sum(torch.exp(-((a - b) ** 2).sum() / width) for b in flat))
    return torch.stack(counts).mean()


def test_the_soft_share_is_the_exact_share_of_far_apart_points() -> None:
    corners = torch.eye(8)[[0, 1, 1, 2, 3, 3, 3, 0]].reshape(2, 4, 8)
    assert float(unique_share(corners)) == pytest.approx(4 / 8, abs=1e-3)
    assert float(unique_share(torch.eye(8).reshape(2, 4, 8))) == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize(
    ("distance_weight", "diversity_weight"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)]
)
def test_the_gradient_of_embeddings_regularisers_equals_finite_differences(
    guide: Guide, generator: torch.Generator, distance_weight: float, diversity_weight: float
) -> None:
    """Summed over the prompts, each with the formula's terms: the share is one for all of them."""
    weights = {"distance_weight": distance_weight, "diversity_weight": diversity_weight}
    method = fuse.Embedding(**weights)
    table, radius = guide.vocabulary.embedding.double(), radius_of(guide)
    allowed = guide.allowed.nonzero().flatten()
    tokens = allowed[torch.randint(len(allowed), (3, 2), generator=generator)]
    tokens[2, 1] = tokens[0, 0]  # two points that are nearly one
    noise = torch.randn(3, 2, table.shape[1], generator=generator)
    points = table[tokens] + 0.1 * radius * torch.nn.functional.normalize(noise, dim=-1)
    nearest = guide.vocabulary.embedding[guide.vocabulary.nearest(points, guide.allowed)]
    found = method._regulariser_gradient(points.float(), nearest, radius).double()

    def value(at: torch.Tensor) -> float:
        distances = [torch.cdist(row, table[allowed]).amin(1).mean() for row in at]
        distance = torch.stack(distances).sum() / radius
        diversity = len(at) * torch.log1p(unique_share(at / radius))
        return float(distance_weight * distance - diversity_weight * diversity)

    for _ in range(6):
        direction = torch.randn(points.shape, generator=generator, dtype=torch.double)
        ahead, behind = value(points + 1e-5 * direction), value(points - 1e-5 * direction)
        numeric = (ahead - behind) / 2e-5
        assert float((found * direction).sum()) == pytest.approx(numeric, rel=2e-3, abs=1e-5)


def test_rows_that_succeed_start_anew(eliciting: Guide) -> None:
    method = fuse.Embedding(search_width=4, start="random", prompt_length=4)

    def third_step(succeeds: Callable[[Ids], bool]) -> tuple[embedding_module.State, list[Ids]]:
        generator = torch.Generator().manual_seed(0)
        (row,) = method.init(eliciting, (), generator)[1]
        state, candidates = None, Candidates()
        for number in range(3):

            def says(rows: Sequence[Ids], last: bool = number == 2) -> list[bool]:
                return [last and succeeds(row) for row in rows]

            eliciting.says_label = says  # type: ignore[method-assign]
            candidates = candidates_of(method, [row], eliciting, generator, state)
            state = candidates.state
        return state, list(candidates.ids)

    none, rows = third_step(lambda row: False)
    assert len(rows) >= 2
    assert none.found == ()
    some, again = third_step(lambda row: row == rows[0])
    assert again == rows
    assert some.found == (rows[0],)
    moved = (some.points != none.points).flatten(1).any(1)
    assert moved.sum() == 1
    # the row begins at points of the pool, and the optimiser has forgotten it alone
    pool = torch.nn.functional.normalize(some.pool, dim=-1)
    begun = torch.nn.functional.normalize(some.points, dim=-1)
    nearest = (begun.flatten(0, 1) @ pool.T).amax(1).reshape(4, 4)
    assert (nearest[moved] > 1 - 1e-5).all()
    assert (nearest[~moved] < 1 - 1e-4).all()
    for name in ("exp_avg", "exp_avg_sq"):
        moment = some.optimiser["state"][0][name]
        assert not moment[moved].any()
        assert torch.equal(moment[~moved], none.optimiser["state"][0][name][~moved])


@pytest.mark.parametrize("label", ["in the snow.", "by the sea."])
def test_start_label_begins_near_the_label_as_it_stands_after_the_prompt(
    lm: fuse.CausalLM, generator: torch.Generator, label: str
) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy(label)))
    guide, table = Guide(objective), lm.vocabulary.embedding
    read = objective.primary.encode(["A red house"])[0]
    own = read.ids[slice(*read.label)]
    assert lm.vocabulary.tokenizer.decode(own) == f" {label}"
    method = fuse.Embedding(search_width=12, start="label", lr=0.0)
    (row,) = method.init(guide, (), generator)[1]
    state = candidates_of(method, [row], guide, generator).state
    tokens = guide.allowed.nonzero().flatten()
    directions = torch.nn.functional.normalize(table[tokens], dim=-1)
    points = torch.nn.functional.normalize(state.points[1:].flatten(0, 1), dim=-1)
    begun = set(tokens[(points @ directions.T).argmax(1)].tolist())
    near: set[int] = set()
    for token in own:
        distance = (table[tokens] - table[token]).norm(dim=-1)
        near |= set(tokens[distance.topk(16, largest=False).indices].tolist())
    assert begun <= near
    assert set(own) & begun


def test_start_label_needs_a_label(guide: Guide, generator: torch.Generator) -> None:
    with pytest.raises(fuse.FuseError, match="label=null"):
        fuse.Embedding(start="label").propose(None, [ids(guide, TEXT)], guide, generator)


def test_centroids_are_means_of_what_is_nearest_to_them(generator: torch.Generator) -> None:
    """On clusters far apart k-means finds their means."""
    means = 100 * torch.eye(4)
    points = (means[:, None] + torch.randn(4, 50, 4, generator=generator)).flatten(0, 1)
    centroids = embedding_module._centroids(points, 4, generator, rounds=30)
    owner = torch.cdist(points, centroids).argmin(1)
    for i in owner.unique().tolist():
        torch.testing.assert_close(centroids[i], points[owner == i].mean(0), atol=1e-3, rtol=1e-4)


# --- captions --------------------------------------------------------------------------------


def test_captions_are_the_first_beam_without_those_that_cannot_be_spelled(
    guide: Guide, generator: torch.Generator
) -> None:
    texts = ("A red house.", "naïve ✓", "There is a cup.", "A red house.", "word " * 300)
    method = fuse.Caption(texts)
    state, beam = method.init(guide, (), generator)
    assert guide.vocabulary.decode(beam) == ["A red house.", "There is a cup."]
    assert method.propose(state, beam, guide, generator) is None


@pytest.mark.parametrize(("steps", "ended"), [(None, "steps"), (5, "exhausted")])
def test_the_best_caption_is_the_result(lm: fuse.CausalLM, steps: int | None, ended: str) -> None:
    """It is where the search starts, and there is no step."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    texts = ("house the of of", "A red house in the snow.", "cup cup cup")
    result = fuse.search(objective, fuse.Caption(texts), fuse.Beam(1), steps=steps)
    assert (result.prompt, result.steps, len(result.trace)) == ("A red house in the snow.", 0, 0)
    assert result.evaluations == 3
    assert result.ended == ended
    assert result.loss == result.initial_loss == objective.evaluate_text(result.prompt)[0]


def test_the_best_caption_is_refined(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    caption = fuse.Caption(("cup cup cup", "A red house in the snow"))
    refine = fuse.Random(search_width=20, moves=("delete",), buffer_size=0)
    result = fuse.search(objective, caption, fuse.Beam(1), refine=refine, steps=1)
    whole, first = objective.spell("A red house in the snow"), result.trace[0]
    assert first.method == "random"
    assert len(first.free_ids) == len(whole) - 1
    assert insertions(whole, first.free_ids)


@pytest.mark.parametrize("texts", [("✓✓", "naïve ✓"), ()])
def test_captions_that_no_model_can_take_are_refused(
    guide: Guide, generator: torch.Generator, texts: tuple[str, ...]
) -> None:
    with pytest.raises(fuse.FuseError, match="caption"):
        fuse.Caption(texts).init(guide, (), generator)


START_TEXT = "There is a big red house"


@pytest.mark.parametrize("method", [fuse.GCG, fuse.Random])
def test_the_best_swaps_of_a_step_are_joined_in_the_next(
    lm: fuse.CausalLM, method: type[fuse.GCG]
) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    search = fuse.Search(
        objective, method(search_width=64, moves=("swap",), merge=4), init=START_TEXT
    )
    state = search.start()
    (row,) = state.beam
    first = search.evaluate(state, search.propose(state))
    best: dict[int, int] = {}
    for entry in sorted(entry for entry in first.entries() if entry.ids != row):
        ((position, token),) = [
            (i, new) for i, (old, new) in enumerate(zip(row, entry.ids, strict=True)) if old != new
        ]
        best.setdefault(position, token)
    assert len(best) > 2
    swaps = dict(list(best.items())[:2])
    joined = tuple(swaps.get(i, token) for i, token in enumerate(row))
    state = search.accept(state, first)
    asked = search.propose(state).ids
    assert (joined in asked) == objective.valid([joined])[0]
    plain = fuse.Search(objective, method(search_width=64, moves=("swap",)), init=START_TEXT)
    state = plain.start()
    state = plain.accept(state, plain.evaluate(state, plain.propose(state)))
    assert state.method is None


@pytest.mark.parametrize("kind", [fuse.GCG, fuse.Random])
def test_a_search_with_few_texts_scores_them_all_and_ends(
    lm: fuse.CausalLM, kind: type[fuse.GCG]
) -> None:
    """Single swaps first, then two at once; each text once."""
    constraints = fuse.Constraints(allow=("red", "house"))
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), constraints=constraints)
    objective.long_words = []
    method = kind(search_width=64, top_k=2, moves=("swap",), prompt_length=2, steps=100)
    search = fuse.Search(objective, method)
    state, asked = search.start(), []
    asked += state.beam
    while not state.ended:
        candidates = search.propose(state)
        asked += candidates.ids
        state = search.accept(state, search.evaluate(state, candidates))
    assert state.ended == "exhausted"
    tokens = objective.allowed.nonzero().flatten().tolist()
    pairs = [(first, second) for first in tokens for second in tokens]
    expected = {pair for pair, ok in zip(pairs, objective.valid(pairs), strict=True) if ok}
    assert len(asked) == len(set(asked))
    assert set(asked) == expected | set(asked[:1])


def test_shortlists_grow_where_few_new_edits_are_left_and_shrink_with_a_new_beam(
    guide: Guide, generator: torch.Generator
) -> None:
    row = ids(guide, "A red house")
    accept_all(guide)
    set_gradient(guide, favouring(guide, RARE))
    method = fuse.GCG(search_width=60, top_k=2, moves=("swap",))
    first = candidates_of(method, [row], guide, generator)
    assert first.state.factor == 2
    guide.scored = set(first.ids)
    second = candidates_of(method, [row], guide, generator, first.state)
    assert not set(first.ids) & set(second.ids)
    assert second.state.factor == 4
    other = candidates_of(method, [first.ids[0]], guide, generator, second.state)
    assert other.state.factor == 2
