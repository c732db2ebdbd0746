"""What each method proposes: equal to its own formula in plain code, and drawn as it says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

import fuse
from fuse.guide import Guide
from fuse.methods import METHODS, Method
from fuse.methods import embedding as embedding_module
from fuse.methods.base import first_valid, random_prompt
from fuse.methods.edits import Site
from fuse.types import Ids, Inputs

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
def joint(lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor, adapter: fuse.LexicalAdapter) -> Guide:
    """Of a language model and a CLIP."""
    secondary = fuse.Term(clip, fuse.CosineDistance(house), weight=10, adapter=adapter)
    return Guide(fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": secondary}))


def ids(guide: Guide, text: str) -> Ids:
    return guide.vocabulary.encode([text])[0][0]


def takes_all(guide: Guide) -> None:
    """Every row counts as valid, so that nothing but the method decides what is proposed."""
    guide.valid = lambda rows: [True] * len(rows)  # type: ignore[method-assign]


def tells_gradient(guide: Guide, gradient: torch.Tensor) -> None:
    """The same gradient [v] at every place, or one [b v] for each."""
    guide.token_gradient = lambda rows, places, linearise=(): gradient.expand(len(rows), -1)  # type: ignore[method-assign]


def tells_log_probs(guide: Guide, of: Callable[[Ids], torch.Tensor]) -> None:
    guide.next_token_log_probs = lambda rows: torch.stack([of(row) for row in rows])  # type: ignore[method-assign]


def favouring(guide: Guide, tokens: Sequence[int]) -> torch.Tensor:
    """A gradient [v] whose most negative entries are these tokens, the first the most negative."""
    gradient = torch.rand(len(guide.vocabulary), generator=torch.Generator().manual_seed(3))
    gradient[list(tokens)] = -2 - torch.arange(len(tokens), 0, -1).float()
    return gradient


def propose(method: Method, beam: Sequence[Ids], guide: Guide, generator: torch.Generator, state: object = None) -> list[Ids]:
    candidates = method.propose(state, beam, guide, generator)[1]
    assert candidates is not None
    return candidates


def chi_square(counts: Sequence[float], expected: Sequence[float]) -> float:
    return sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))


def changes(row: Ids, parent: Ids) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(row, parent, strict=True)) if a != b]


def of_parent(candidates: Sequence[Ids], parent: Ids) -> list[Ids]:
    """The candidates that differ from this row by one token at most."""
    return [new for new in candidates if len(new) == len(parent) and len(changes(new, parent)) <= 1]


def insertions(rows: Sequence[Ids], parent: Ids) -> list[list[int]]:
    """For each row the places where its one more token may have been put in: several, if it repeats its neighbour."""
    return [[p for p in range(len(row)) if row[:p] + row[p + 1 :] == parent] for row in rows]


# --- edits: GCG and Random -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcg", "random", "pez", "embedding"])
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
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(name: str, options: dict) -> None:
    (key,) = options
    with pytest.raises(fuse.FuseError, match=f"method.{key}="):
        METHODS[name](**options)


def test_gcg_draws_its_swaps_uniformly_from_the_shortlist(guide: Guide, generator: torch.Generator) -> None:
    """Neither the rank nor the index of a token, nor the place, makes a swap likelier."""
    row, shortlist = ids(guide, "A red house"), (1500, 300, 40, 700, 1200, 90)
    takes_all(guide)
    tells_gradient(guide, favouring(guide, shortlist))
    method = fuse.GCG(search_width=1, top_k=len(shortlist), moves=("swap",))
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(1200):
        (new,) = propose(method, [row], guide, generator)
        (place,) = changes(new, row)
        seen[place, new[place]] += 1
    cells = [seen[place, token] for place in range(len(row)) for token in shortlist]
    assert sum(cells) == 1200  # nothing beside the shortlist
    assert chi_square(cells, [1200 / len(cells)] * len(cells)) < 45  # 17 degrees of freedom: 1 in 4000


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_moves_and_places_are_drawn_uniformly(guide: Guide, generator: torch.Generator, name: str) -> None:
    row = ids(guide, "A red house stands")
    takes_all(guide)
    tells_gradient(guide, favouring(guide, RARE))
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


def test_the_first_different_valid_proposals_are_kept_in_their_order(guide: Guide) -> None:
    """One that comes again keeps its first place, and is not put off to its last one."""
    refused = (5,)
    guide.valid = lambda rows: [row != refused for row in rows]  # type: ignore[method-assign]
    proposals = [(1,), refused, (2,), (3,), (1,), (2,), (4,)]
    assert first_valid(proposals, guide, 2) == [(1,), (2,)]
    assert first_valid(proposals, guide, 9) == [(1,), (2,), (3,), (4,)]


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_moves_with_few_outcomes_are_proposed_too(guide: Guide, generator: torch.Generator, name: str) -> None:
    """A third of the draws delete: nearly all of the few different deletions are among the candidates."""
    row = ids(guide, TEXT)
    takes_all(guide)
    tells_gradient(guide, favouring(guide, RARE))
    candidates = propose(METHODS[name](), [row], guide, generator)
    assert len(candidates) == 128
    assert sum(len(new) < len(row) for new in candidates) >= len(row) - 1


@pytest.mark.parametrize("linearise", [("current",), ("mean", "mask")])
def test_gcg_shortlists_the_most_negative_gradient_among_allowed_tokens(joint: Guide, linearise: tuple[str, ...]) -> None:
    joint.allowed = fuse.Constraints(words=True).allowed(joint.vocabulary)
    row = ids(joint, TEXT)
    sites = [Site(0, "swap", place, row) for place in range(len(row))]
    _, found = fuse.GCG(top_k=20, linearise=linearise).shortlist(None, sites, joint)
    gradient = joint.token_gradient([row] * len(row), range(len(row)), linearise)
    usable = [i for i, ok in enumerate(joint.allowed.tolist()) if ok]
    assert len(usable) < int(joint.vocabulary.allowed.sum())
    for place in range(len(row)):
        best = sorted(usable, key=lambda token: float(gradient[place, token]))[:20]
        assert set(found[place].tolist()) == set(best)


@pytest.mark.parametrize("n_replace", [1, 2, 4, 9])
@pytest.mark.parametrize("name", ["gcg", "random"])
def test_n_replace_swaps_that_many_different_places(guide: Guide, generator: torch.Generator, name: str, n_replace: int) -> None:
    row = ids(guide, "A red house stands by the sea")
    takes_all(guide)
    tells_gradient(guide, favouring(guide, RARE))
    method = METHODS[name](search_width=200, n_replace=n_replace, moves=("swap",))
    candidates = propose(method, [row], guide, generator)
    places = [changes(new, row) for new in candidates]
    wanted = min(n_replace, len(row))
    assert max(map(len, places)) == wanted
    # the shortlist of GCG holds no present token; a token drawn from all may be the present one
    assert min(map(len, places)) == wanted or name == "random"
    assert sum(len(p) == wanted for p in places) > 0.98 * len(places)
    assert {place for p in places for place in p} == set(range(len(row)))


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_rows_of_the_beam_are_changed_in_turn_and_at_all_places(guide: Guide, generator: torch.Generator, name: str) -> None:
    beam = [ids(guide, text) for text in (TEXT, OTHER, "A big green boat")]
    takes_all(guide)
    tells_gradient(guide, favouring(guide, RARE))
    candidates = propose(METHODS[name](search_width=150, moves=("swap",)), beam, guide, generator)
    assert len(set(candidates)) == len(candidates) == 150
    for row in beam:
        mine = of_parent(candidates, row)
        assert abs(len(mine) - 50) <= 8
        assert {place for new in mine for place in changes(new, row)} == set(range(len(row)))


@pytest.mark.parametrize("linearise", [("current",), ("mean",), ("current", "mask")])
def test_gcg_shortlists_every_row_by_its_own_gradient(joint: Guide, linearise: tuple[str, ...]) -> None:
    method = fuse.GCG(top_k=12, linearise=linearise)
    beam = [ids(joint, TEXT), ids(joint, OTHER)]
    sites = [[Site(i, "swap", place, row) for place in range(len(row))] for i, row in enumerate(beam)]
    for i, row in enumerate(beam):
        sites[i] += [Site(i, "insert", place, (*row[:place], joint.filler, *row[place:])) for place in (1, len(row))]
    alone = [method.shortlist(None, of_row, joint)[1].tolist() for of_row in sites]
    together = method.shortlist(None, sites[0] + sites[1], joint)[1].tolist()
    assert [set(line) for line in together] == [set(line) for of_row in alone for line in of_row]
    assert alone[0][0] != alone[1][0]


def test_gcg_in_a_beam_proposes_what_it_would_alone(joint: Guide) -> None:
    """The same chance, one row at a time: tokens at a place come from the shortlist that the row has when it is alone."""
    beam = [ids(joint, TEXT), ids(joint, OTHER)]
    method = fuse.GCG(search_width=60, top_k=6, moves=("swap",))
    candidates = propose(method, beam, joint, torch.Generator().manual_seed(0))
    assert all(of_parent(candidates, row) for row in beam)
    for row in beam:
        for new in of_parent(candidates, row):
            for place in changes(new, row):
                (line,) = method.shortlist(None, [Site(0, "swap", place, row)], joint)[1].tolist()
                assert new[place] in line


def test_random_l0_takes_any_allowed_token(guide: Guide, generator: torch.Generator) -> None:
    guide.allowed = fuse.Constraints(words=True).allowed(guide.vocabulary)
    takes_all(guide)
    row = ids(guide, "A red house")
    candidates = propose(fuse.Random(search_width=4000, moves=("swap",)), [row], guide, generator)
    put = [new[place] for new in candidates for place in changes(new, row)]
    assert all(guide.allowed[token] for token in put)
    assert len(set(put)) > 0.8 * int(guide.allowed.sum())
    # low and high ids alike
    usable = guide.allowed.nonzero().flatten().tolist()
    quarters = Counter(4 * usable.index(token) // len(usable) for token in put)
    assert chi_square([quarters[i] for i in range(4)], [len(put) / 4] * 4) < 25


def test_random_l2_takes_the_nearest_tokens_and_never_the_present_one(guide: Guide, generator: torch.Generator) -> None:
    takes_all(guide)
    row, table = ids(guide, "A red house stands"), guide.vocabulary.embedding
    method = fuse.Random(search_ball="L2", top_k=5, search_width=400, moves=("swap",))
    seen: dict[int, set[int]] = {}
    for new in propose(method, [row], guide, generator):
        (place,) = changes(new, row)
        seen.setdefault(place, set()).add(new[place])
    for place, present in enumerate(row):
        others = [i for i in guide.allowed.nonzero().flatten().tolist() if i != present]
        nearest = sorted(others, key=lambda i: float((table[i] - table[present]).norm()))[:5]
        assert seen[place] == set(nearest)


def test_random_l2_is_never_the_present_token_where_few_are_allowed(guide: Guide) -> None:
    """Also where the ball would hold all that is allowed."""
    guide.allowed = fuse.Constraints(allow=("red", "blue", "house", "a")).allowed(guide.vocabulary)
    row = tuple(guide.allowed.nonzero().flatten().tolist())
    _, lines = fuse.Random(search_ball="L2").shortlist(None, [Site(0, "swap", place, row) for place in range(len(row))], guide)
    for present, line in zip(row, lines.tolist(), strict=True):
        assert set(line) == set(row) - {present}


def test_random_l2_inserts_tokens_near_to_the_one_before(guide: Guide, generator: torch.Generator) -> None:
    takes_all(guide)
    row, table = ids(guide, "A red house"), guide.vocabulary.embedding
    candidates = propose(fuse.Random(search_ball="L2", top_k=4, search_width=200, moves=("insert",)), [row], guide, generator)
    usable = guide.allowed.nonzero().flatten().tolist()
    nearest = {
        before: sorted((i for i in usable if i != before), key=lambda i: float((table[i] - table[before]).norm()))[:4] for before in row
    }
    for new, places in zip(candidates, insertions(candidates, row), strict=True):
        assert any(place == 0 or new[place] in nearest[row[place - 1]] for place in places)


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_insertions_and_deletions_change_the_length_by_one(guide: Guide, generator: torch.Generator, name: str) -> None:
    takes_all(guide)
    tells_gradient(guide, favouring(guide, RARE))
    row = ids(guide, TEXT)
    steps = [propose(METHODS[name](search_width=100, moves=("insert",)), [row], guide, generator) for _ in range(12)]
    places = [place for inserted in steps for place in insertions(inserted, row)]
    assert all(places)
    # in the long run everywhere between words, but never inside one or before a first token that has no space before it
    starts = [guide.vocabulary.token_texts[token].startswith(" ") for token in row]
    expected = {place for place in range(len(row) + 1) if place == len(row) or starts[place]}
    assert {place[0] for place in places if len(place) == 1} == expected
    deleted = propose(METHODS[name](search_width=100, moves=("delete",)), [row], guide, generator)
    assert set(deleted) == {row[:p] + row[p + 1 :] for p in range(len(row))}


def test_nothing_is_inserted_inside_a_word(guide: Guide, generator: torch.Generator) -> None:
    takes_all(guide)
    row = ids(guide, "turquoise umbrella and a turtles")
    texts = [guide.vocabulary.token_texts[token] for token in row]
    inside = {place for place, text in enumerate(texts) if not text.startswith(" ")}
    assert len(inside) >= 3
    steps = [propose(fuse.Random(search_width=200, moves=("insert",)), [row], guide, generator) for _ in range(12)]
    places = [place for inserted in steps for place in insertions(inserted, row)]
    assert {place[0] for place in places if len(place) == 1} == set(range(len(row) + 1)) - inside


@pytest.mark.parametrize("name", ["gcg", "random"])
def test_no_deletion_empties_a_prompt_and_no_insertion_makes_it_too_long(guide: Guide, generator: torch.Generator, name: str) -> None:
    takes_all(guide)
    tells_gradient(guide, favouring(guide, RARE))
    short, full = ids(guide, "A"), ids(guide, TEXT)
    guide.longest = len(full)
    assert propose(METHODS[name](moves=("delete",)), [short], guide, generator) == []
    assert propose(METHODS[name](moves=("insert",)), [full], guide, generator) == []
    both = propose(METHODS[name](search_width=300), [short, full], guide, generator)
    assert {len(new) for new in both} == {1, 2, len(full), len(full) - 1}


def test_an_edit_search_in_a_small_room_stays_in_it(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL(), prefix="a house " * 60))
    room = objective.primary.room
    assert 3 < room < 10
    result = fuse.search(objective, fuse.Random(search_width=30, prompt_length=room, moves=("insert", "swap")), fuse.Beam(2), steps=3)
    assert {len(step.free_ids) for step in result.trace} == {room}
    with pytest.raises(fuse.FuseError, match="prompt_length"):
        fuse.search(objective, fuse.Random(prompt_length=room + 1), fuse.Beam(2), steps=3)


def test_momentum_ranks_by_the_mixture_of_gradients(guide: Guide) -> None:
    row = ids(guide, "A red house")
    sites = [Site(0, "swap", 1, row), Site(0, "swap", 2, row)]
    first, second, third = torch.randn(3, 2, len(guide.vocabulary), generator=torch.Generator().manual_seed(5))
    method, state = fuse.GCG(top_k=30, momentum=0.7), None
    mixed = first
    for number, gradient in enumerate((first, second, third)):
        mixed = gradient if number == 0 else 0.7 * mixed + 0.3 * gradient
        tells_gradient(guide, gradient)
        state, lines = method.shortlist(state, sites, guide)
        for line, values in zip(lines.tolist(), mixed.masked_fill(~guide.allowed, torch.inf), strict=True):
            assert set(line) == set(values.topk(30, largest=False).indices.tolist())
    _, plain = fuse.GCG(top_k=30).shortlist(None, sites, guide)
    assert set(plain[0].tolist()) != set(lines[0].tolist())


def test_momentum_remembers_the_mean_over_the_beam_and_only_at_the_same_place(guide: Guide) -> None:
    beam = [ids(guide, "A red house"), ids(guide, "A blue cup"), ids(guide, "A cup")]
    sites = [Site(i, "swap", 1, row) for i, row in enumerate(beam)]
    first, second = torch.randn(2, 3, len(guide.vocabulary), generator=torch.Generator().manual_seed(6))
    method = fuse.GCG(top_k=30, momentum=0.5)
    tells_gradient(guide, first)
    state, _ = method.shortlist(None, sites, guide)
    tells_gradient(guide, second)
    _, lines = method.shortlist(state, sites, guide)
    shared = first[:2].mean(0)
    expected = [0.5 * shared + 0.5 * second[0], 0.5 * shared + 0.5 * second[1], 0.5 * first[2] + 0.5 * second[2]]
    for line, values in zip(lines.tolist(), expected, strict=True):
        assert set(line) == set(values.masked_fill(~guide.allowed, torch.inf).topk(30, largest=False).indices.tolist())


@pytest.mark.parametrize("name", ["autodan", "gcg", "pez"])
def test_a_prompt_that_fills_a_secondarys_context_is_searched_on(joint: Guide, name: str) -> None:
    """Gradients are taken at texts that differ from a valid prompt; those may be longer than a secondary can read."""
    words = ("a red house in the snow and a cup " * 8).split()
    secondary = joint._objective.secondaries["clip"]
    fits = [n for n in range(1, len(words)) if len(secondary.encode([" ".join(words[:n])])[0].ids) <= secondary.vocabulary.max_length]
    start = " ".join(words[: max(fits)])
    options = {} if name == "pez" else {"search_width": 8}
    result = fuse.search(joint._objective, METHODS[name](**options), fuse.Beam(1), steps=3, init=start)
    assert result.loss <= result.initial_loss + 1e-4


# --- AutoDAN -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"logit_weight": 0.0}, {"logit_weight": 3.0, "frequency_penalty": 2.0, "linearise": ("mask",)}])
def test_autodan_at_temperature_zero_proposes_the_best_by_its_ranking(joint: Guide, options: dict) -> None:
    method = fuse.AutoDAN(search_width=25, **options)
    row = ids(joint, "A red house and a red")
    network, table = joint._objective.primary.model.network, [i for i, ok in enumerate(joint.allowed.tolist()) if ok]
    log_probs = network(input_ids=torch.tensor([(*joint.vocabulary.head, *row)])).logits[0, -1].log_softmax(-1).tolist()
    likeliest = max(table, key=lambda token: log_probs[token])
    gradient = joint.token_gradient([(*row, likeliest)], [len(row)], method.linearise)[0].tolist()
    kept = [gradient[token] for token in table]
    mean = sum(kept) / len(kept)
    spread = math.sqrt(sum((g - mean) ** 2 for g in kept) / (len(kept) - 1))

    def rank(token: int) -> float:
        readable = method.logit_weight * log_probs[token] - method.frequency_penalty * row.count(token)
        return -(gradient[token] - mean) / spread + readable

    ranked = [(*row, token) for token in sorted(table, key=rank, reverse=True)]
    expected = [new for new, ok in zip(ranked, joint.valid(ranked), strict=True) if ok][:25]
    candidates = propose(method, [row], joint, torch.Generator())
    assert candidates == expected


def test_autodan_ranks_every_row_by_its_own_gradient(joint: Guide) -> None:
    beam = [ids(joint, TEXT), ids(joint, OTHER)]
    together = propose(fuse.AutoDAN(search_width=40), beam, joint, torch.Generator())
    for row in beam:
        mine = [new for new in together if new[:-1] == row]
        assert mine == propose(fuse.AutoDAN(search_width=20), [row], joint, torch.Generator())
    assert {row[-1] for row in together[:20]} != {row[-1] for row in together[20:]}


SHARES = {900: 0.4, 300: 0.25, 1200: 0.2, 50: 0.1, 700: 0.05}
"""Next tokens and their probabilities in a made-up prediction."""


def made_up(guide: Guide) -> None:
    log_probs = torch.full((len(guide.vocabulary),), -60.0)
    log_probs[list(SHARES)] = torch.tensor(list(SHARES.values())).log()
    takes_all(guide)
    tells_gradient(guide, torch.zeros(len(log_probs)))
    tells_log_probs(guide, lambda row: log_probs)


def test_autodan_draws_from_the_softmax_without_replacement(guide: Guide, generator: torch.Generator) -> None:
    made_up(guide)
    row = ids(guide, "A red")
    drawn = [[new[-1] for new in propose(fuse.AutoDAN(search_width=5, temperature=1.0), [row], guide, generator)] for _ in range(800)]
    assert all(len(set(tokens)) == 5 for tokens in drawn)
    assert all(set(tokens) == set(SHARES) for tokens in drawn)
    first, second = Counter(tokens[0] for tokens in drawn), Counter(tokens[1] for tokens in drawn)
    assert chi_square([first[t] for t in SHARES], [800 * p for p in SHARES.values()]) < 24  # 4 degrees of freedom: 1 in 10,000
    p_second = [sum(q * p / (1 - q) for u, q in SHARES.items() if u != t) for t, p in SHARES.items()]
    assert chi_square([second[t] for t in SHARES], [800 * p for p in p_second]) < 24


def test_autodans_temperature_flattens_the_draw(guide: Guide, generator: torch.Generator) -> None:
    made_up(guide)
    row, method = ids(guide, "A red"), fuse.AutoDAN(search_width=1, temperature=2.0)
    seen = Counter(propose(method, [row], guide, generator)[0][-1] for _ in range(800))
    total = sum(p**0.5 for p in SHARES.values())
    assert chi_square([seen[t] for t in SHARES], [800 * p**0.5 / total for p in SHARES.values()]) < 24


@pytest.mark.parametrize(("top_p", "count"), [(0.3, 1), (0.6, 2), (0.7, 3), (0.9, 4)])
def test_autodan_draws_only_from_the_likeliest_mass(guide: Guide, generator: torch.Generator, top_p: float, count: int) -> None:
    made_up(guide)
    method = fuse.AutoDAN(search_width=20, temperature=1.0, top_p=top_p)
    drawn = {new[-1] for _ in range(20) for new in propose(method, [ids(guide, "A red")], guide, generator)}
    assert drawn == set(list(SHARES)[:count])


def test_autodans_draw_comes_from_the_generator_alone(joint: Guide) -> None:
    method, beam = fuse.AutoDAN(search_width=10, temperature=1.0), [ids(joint, TEXT), ids(joint, OTHER)]
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(torch.seed())
        draws.append(propose(method, beam, joint, torch.Generator().manual_seed(seed)))
    assert draws[0] == draws[1] != draws[2]


def test_a_frequency_penalty_keeps_tokens_from_coming_again(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    longest: list[Ids] = []
    for penalty in (0.0, 1000.0):
        method = fuse.AutoDAN(search_width=4, logit_weight=20.0, frequency_penalty=penalty)
        result = fuse.search(objective, method, fuse.Beam(1), steps=7, init="A red cup and a red cup and")
        longest.append(max((step.free_ids for step in result.trace), key=len))
    start = len(objective.spell("A red cup and a red cup and"))
    repeated = [[token for i, token in enumerate(row) if i >= start and token in row[:i]] for row in longest]
    assert repeated[0]
    assert not repeated[1]


@pytest.mark.parametrize("logit_weight", [1.0, 0.0])
def test_autodan_ends_a_row_where_the_end_of_text_is_the_likeliest(guide: Guide, logit_weight: float) -> None:
    ending, going_on = ids(guide, "A red house."), ids(guide, "A red house")
    (end,) = guide.end_of_text
    log_probs = torch.randn(len(guide.vocabulary), generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    forbidden = int((~guide.allowed).nonzero().flatten()[-1])
    takes_all(guide)

    def after(row: Ids) -> torch.Tensor:
        told = log_probs.clone()
        told[end] = 1.0 if row == ending else -1.0
        told[forbidden] = 5.0  # a token that no prompt may hold is no way to go on
        told[int(guide.allowed.nonzero()[7])] = 0.0
        return told

    tells_log_probs(guide, after)
    method = fuse.AutoDAN(search_width=6, logit_weight=logit_weight)
    candidates = propose(method, [ending, going_on], guide, torch.Generator())
    assert {row[:-1] for row in candidates} == {going_on}
    assert len(candidates) == 6
    assert propose(method, [ending], guide, torch.Generator()) == []


def test_autodans_candidates_name_the_row_of_the_beam_that_they_extend(guide: Guide) -> None:
    """Also where rows before it have ended, or are as long as a row can be."""
    ended, full, row = ids(guide, "A red house."), ids(guide, TEXT), ids(guide, "A blue")
    (end,) = guide.end_of_text
    guide.longest = len(full)
    log_probs = torch.zeros(len(guide.vocabulary))
    tells_log_probs(guide, lambda of: log_probs.index_fill(0, torch.tensor([end]), 1.0 if of == ended else -1.0))
    for beam in ([ended, row], [full, row], [full, ended, row]):
        candidates = propose(fuse.AutoDAN(search_width=6), beam, guide, torch.Generator())
        assert candidates
        assert {row[:-1] for row in candidates} <= set(beam)


def test_autodans_search_ends_where_all_rows_have_ended(lm: fuse.CausalLM) -> None:
    """The demo model ends a text after this sentence."""
    start = "A red house in the snow."
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    result = fuse.search(objective, fuse.AutoDAN(search_width=8), fuse.Beam(1), steps=10, init=start)
    assert (result.prompt, result.steps, result.evaluations) == (start, 0, 1)
    longer = fuse.search(objective, fuse.AutoDAN(search_width=8), fuse.Beam(2), steps=60, init="A red house in the")
    assert 0 < longer.steps < 60


def test_autodan_needs_a_model_that_predicts(clip: fuse.CLIP, house: torch.Tensor) -> None:
    with pytest.raises(fuse.FuseError, match=r"method=autodan.*primary is a CLIP.*causal LM"):
        fuse.search(fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house))), fuse.AutoDAN(), fuse.Beam(1))


# --- continuous methods --------------------------------------------------------------------------------------------


def test_pez_is_the_papers_algorithm(clip: fuse.CLIP, house: torch.Tensor, generator: torch.Generator) -> None:
    objective = fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house)))
    guide, vocabulary = Guide(objective), clip.vocabulary
    method = fuse.PEZ(lr=0.05, weight_decay=0.2, prompt_length=5)
    start = random_prompt(guide, 5, generator)
    table, allowed = vocabulary.embedding, guide.allowed.nonzero().flatten()

    points = torch.nn.Parameter(table[list(start)].clone())
    optimiser = torch.optim.AdamW([points], lr=0.05, weight_decay=0.2)
    state: object = None
    seen = set()
    for _ in range(8):
        nearest = allowed[torch.cdist(points.detach(), table[allowed]).argmin(-1)]
        leaf = table[nearest].clone().requires_grad_()
        whole = torch.tensor([[*vocabulary.head, *nearest.tolist(), *vocabulary.tail]])
        read = torch.cat([table[list(vocabulary.head)], leaf, table[list(vocabulary.tail)]])[None]
        mask = torch.ones_like(whole, dtype=torch.bool)
        loss = 1 - clip.vector(Inputs(whole, mask, mask, ~mask, embeddings=read))[0] @ house
        (points.grad,) = torch.autograd.grad(loss, leaf)
        optimiser.step()

        state, candidates = method.propose(state, [start], guide, generator)
        torch.testing.assert_close(state[0][0], points.detach(), atol=1e-5, rtol=1e-4)  # type: ignore[index]
        row = tuple(allowed[torch.cdist(points.detach(), table[allowed]).argmin(-1)].tolist())
        assert vocabulary.decode(candidates) in ([], vocabulary.decode([row]))
        seen.add(row)
    assert len(seen) > 2


def test_pez_starts_at_the_first_prompt(clip: fuse.CLIP, house: torch.Tensor, generator: torch.Generator) -> None:
    guide = Guide(fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house))))
    (start,) = fuse.PEZ(prompt_length=3).init(guide, (), generator)[1]
    assert len(start) == 3
    state, candidates = fuse.PEZ(lr=0.0).propose(None, [start], guide, generator)
    assert candidates == [start]
    assert torch.equal(state[0][0], clip.vocabulary.embedding[list(start)])


@pytest.fixture
def eliciting(lm: fuse.CausalLM) -> Guide:
    return Guide(fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the snow."))))


def radius_of(guide: Guide) -> float:
    return float(guide.vocabulary.embedding[guide.allowed].norm(dim=-1).mean())


@pytest.mark.parametrize("start", embedding_module.STARTS)
def test_embeddings_points_stay_on_the_sphere(eliciting: Guide, generator: torch.Generator, start: str) -> None:
    method = fuse.Embedding(search_width=5, start=start, prompt_length=4, lr=0.5)
    (beam,), state = method.init(eliciting, (), generator)[1], None
    for _ in range(3):
        before = state
        state, candidates = method.propose(state, [beam], eliciting, generator)
        assert state.points.shape == (5, 4, eliciting.vocabulary.embedding.shape[1])
        torch.testing.assert_close(state.points.norm(dim=-1), torch.full((5, 4), radius_of(eliciting)), rtol=1e-4, atol=0)
        assert len(candidates) <= 5
        assert before is None or not torch.allclose(before.points, state.points)


def test_embeddings_first_row_is_the_first_prompt(eliciting: Guide, generator: torch.Generator) -> None:
    method, row = fuse.Embedding(search_width=3, lr=0.0), ids(eliciting, TEXT)
    state, _ = method.propose(None, [row], eliciting, generator)
    towards = eliciting.vocabulary.embedding[list(row)]
    torch.testing.assert_close(state.points[0], radius_of(eliciting) * towards / towards.norm(dim=-1, keepdim=True), atol=1e-4, rtol=1e-4)


def unique_share(points: torch.Tensor) -> torch.Tensor:
    """The soft share of different points, by its formula; in units of the radius."""
    flat = points.flatten(0, 1)
    counts = [1 / sum(torch.exp(-((a - b) ** 2).sum() / embedding_module.BANDWIDTH**2) for b in flat) for a in flat]
    return torch.stack(counts).mean()


def test_the_soft_share_is_the_exact_share_of_far_apart_points() -> None:
    corners = torch.eye(8)[[0, 1, 1, 2, 3, 3, 3, 0]].reshape(2, 4, 8)
    assert float(unique_share(corners)) == pytest.approx(4 / 8, abs=1e-3)
    assert float(unique_share(torch.eye(8).reshape(2, 4, 8))) == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize(("distance_weight", "diversity_weight"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_the_gradient_of_embeddings_regularisers_equals_finite_differences(
    guide: Guide, generator: torch.Generator, distance_weight: float, diversity_weight: float
) -> None:
    """Summed over the prompts, each with the terms of the formula: the share is one for all of them."""
    method = fuse.Embedding(distance_weight=distance_weight, diversity_weight=diversity_weight)
    table, radius = guide.vocabulary.embedding.double(), radius_of(guide)
    allowed = guide.allowed.nonzero().flatten()
    tokens = allowed[torch.randint(len(allowed), (3, 2), generator=generator)]
    tokens[2, 1] = tokens[0, 0]  # two points that are nearly one
    points = table[tokens] + 0.1 * radius * torch.nn.functional.normalize(torch.randn(3, 2, table.shape[1], generator=generator), dim=-1)
    nearest = guide.vocabulary.embedding[guide.vocabulary.nearest(points, guide.allowed)]
    got = method._regulariser_gradient(points.float(), nearest, radius).double()

    def value(at: torch.Tensor) -> float:
        distance = torch.stack([torch.cdist(row, table[allowed]).amin(1).mean() for row in at]).sum() / radius
        return float(distance_weight * distance - diversity_weight * len(at) * torch.log1p(unique_share(at / radius)))

    for _ in range(6):
        way = torch.randn(points.shape, generator=generator, dtype=torch.double)
        numeric = (value(points + 1e-5 * way) - value(points - 1e-5 * way)) / 2e-5
        assert float((got * way).sum()) == pytest.approx(numeric, rel=2e-3, abs=1e-5)


def test_rows_that_succeed_start_anew(eliciting: Guide) -> None:
    method = fuse.Embedding(search_width=4, start="random", prompt_length=4)

    def third_step(lucky: Callable[[Ids], bool]) -> tuple[embedding_module.State, list[Ids]]:
        generator = torch.Generator().manual_seed(0)
        (beam,), state, candidates = method.init(eliciting, (), generator)[1], None, None
        for number in range(3):
            eliciting.says_label = lambda rows, n=number: [n == 2 and lucky(row) for row in rows]  # type: ignore[method-assign]
            state, candidates = method.propose(state, [beam], eliciting, generator)
        return state, list(candidates)

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
        moment = some.memory["state"][0][name]
        assert not moment[moved].any()
        assert torch.equal(moment[~moved], none.memory["state"][0][name][~moved])


@pytest.mark.parametrize("label", ["in the snow.", "by the sea."])
def test_start_label_begins_near_the_label_as_it_stands_after_the_prompt(lm: fuse.CausalLM, generator: torch.Generator, label: str) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy(label)))
    guide, table = Guide(objective), lm.vocabulary.embedding
    read = objective.primary.encode(["A red house"])[0]
    own = read.ids[slice(*read.label)]
    assert lm.vocabulary.tokenizer.decode(own) == f" {label}"
    method = fuse.Embedding(search_width=12, start="label", lr=0.0)
    (beam,) = method.init(guide, (), generator)[1]
    state, _ = method.propose(None, [beam], guide, generator)
    directions = torch.nn.functional.normalize(table[guide.allowed], dim=-1)
    tokens = guide.allowed.nonzero().flatten()
    begun = tokens[(torch.nn.functional.normalize(state.points[1:].flatten(0, 1), dim=-1) @ directions.T).argmax(1)].tolist()
    near = {int(t) for token in own for t in tokens[(table[tokens] - table[token]).norm(dim=-1).topk(16, largest=False).indices]}
    assert set(begun) <= near
    assert set(own) & set(begun)


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


# --- captions ------------------------------------------------------------------------------------------------------


def test_captions_are_proposed_once_and_those_that_cannot_be_spelled_are_skipped(guide: Guide, generator: torch.Generator) -> None:
    texts = ("A red house.", "naïve ✓", "There is a cup.", "A red house.", "word " * 300)
    method = fuse.Caption(texts)
    state, candidates = method.propose(None, [()], guide, generator)
    assert guide.vocabulary.decode(candidates) == ["A red house.", "There is a cup."]
    assert method.propose(state, [candidates[0]], guide, generator)[1] is None


def test_the_best_caption_is_the_result(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    texts = ("house the of of", "A red house in the snow.", "cup cup cup")
    result = fuse.search(objective, fuse.Caption(texts), fuse.Beam(1), steps=5)
    assert (result.prompt, result.steps, len(result.trace)) == ("A red house in the snow.", 1, 1)


@pytest.mark.parametrize("texts", [("✓✓", "naïve ✓"), ()])
def test_captions_that_no_model_can_take_are_refused(guide: Guide, generator: torch.Generator, texts: tuple[str, ...]) -> None:
    with pytest.raises(fuse.FuseError, match="caption"):
        fuse.Caption(texts).propose(None, [()], guide, generator)
