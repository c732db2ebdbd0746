"""What methods of local edits share: candidates that differ from a row of the beam by a few tokens
or words.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import LARGE, Count, CountOrNone, OnceEach, Whole, check_options
from fuse.search.methods.base import PROMPT_LENGTH, SEARCH_WIDTH, Method, first_valid
from fuse.search.methods.word_moves import cut, joined, moved, rewritten
from fuse.types import UNCHANGED, Candidates, Evaluation, Ids

Move = Literal["swap", "insert", "delete", "move", "cut", "join", "rewrite"]
MOVES: tuple[Move, ...] = ("swap", "insert", "delete")
DRAWS = 4
"""How often a candidate is drawn, for each that a step proposes, before it makes do with fewer."""
WORD_MOVES: tuple[Move, ...] = ("move", "cut", "join", "rewrite")
CANDIDATES_PER_REWRITING = 12
"""Of so many candidates the language model writes one anew."""
MAX_GAPS = 4
"""How many gaps of a row are open to an insertion in one step: each costs a row of its own where a
gradient is taken.
"""


@dataclass(frozen=True)
class Site:
    """A position of one row where a token can be put: in the place of another one, or before it."""

    parent: int
    move: str
    position: int
    row: Ids
    """The row with a token to be replaced at `position`: the parent itself, or the parent with a
    filler put in.
    """


@dataclass(frozen=True)
class Shortlists:
    """The tokens that may be put at each site."""

    sites: Sequence[Site]
    tokens: Int[Tensor, "n k"]
    state: Any = UNCHANGED
    """The method's next state, where making the lists has changed it."""
    pools: Sequence[Sequence[Sequence[Ids]]] = ()
    """Whole candidates that models with other tokens propose: pools of them, in each a list for
    every site.
    """
    num_non_finite: int = 0
    """How many sites were left out because their gradient is not finite."""


@dataclass(frozen=True)
class EditState:
    """What a method of edits knows between two steps."""

    own: Any = None
    """What the shortlists depend on."""
    beam: tuple[Ids, ...] = ()
    """The rows that were edited last."""
    joined: tuple[Ids, ...] = ()
    """Rows with several of the last step's best swaps, which this step tries."""
    factor: int = 1
    """How many times as long as at first the shortlists are: the rows have few new edits left."""
    extra: int = 0
    """How many more tokens are swapped at once: all single edits were tried."""
    spent: bool = False
    """Whether the rows have no new edit at all."""


@dataclass(frozen=True)
class Edits(Method):
    """Swaps `n_replace` tokens at once, inserts one, deletes one, or edits words, as `moves`
    allows.

    Words are taken to another place (move), left out (cut), taken from another row of the beam
    (join), or written by the primary in the place of others (rewrite); see `word_moves`.

    A candidate takes a row of the beam in turn; the move, the positions and the tokens, from the
    shortlist of each site, are drawn uniformly. A subclass makes the shortlists. Where there are
    pools, swaps and insertions are taken from the shortlists and from each pool in turn.

    What the search has scored already is drawn again instead of proposed. Where less than half a
    step's candidates are new, the next step has shortlists twice as long; when these are as long as
    can be and hold nothing new, one token more is swapped at once. Where that is not possible
    nothing is proposed, and when the same rows come again the method ends.

    With `merge` m the best single swaps of the last step are joined, that of each position, those
    of the best two positions, three, and so on up to m (I-GCG, arXiv 2405.21018, section 3.3).
    """

    search_width: Annotated[Count, SEARCH_WIDTH] = 128
    n_replace: Annotated[Count, Doc("tokens swapped at once")] = 1
    skew: Annotated[
        float,
        Ge(1),
        Le(LARGE),
        Doc(
            "1: any token of a shortlist alike; above: its first ones, of rank ~ u^skew, u uniform"
        ),
    ] = 1.0
    moves: Annotated[Sequence[Move], OnceEach, Doc("[swap] keeps the length")] = MOVES
    sites: Annotated[
        CountOrNone, Doc("how many sites of a row are drawn for swaps and insertions; 0: all")
    ] = 0
    merge: Annotated[
        CountOrNone, Doc("how many of the last step's best swaps are joined (arXiv 2405.21018)")
    ] = 0
    prompt_length: Annotated[Count, PROMPT_LENGTH] = 8
    buffer_size: Annotated[CountOrNone, Doc("best earlier prompts that compete again")] = 1
    beam_width: Annotated[Count, Doc("prompts that are edited, where no strategy is named")] = 1
    distance: Annotated[
        CountOrNone, Doc("by how many tokens these differ, at least; 0: by any")
    ] = 0
    steps: Annotated[Whole, Doc("at most")] = 100

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def shortlist(self, state: Any, sites: Sequence[Site], guide: Guide) -> Shortlists:
        """Return the tokens that may be put at each site."""

    @property
    def reads_predictions(self) -> bool:
        return "rewrite" in self.moves

    def pull(
        self, rows: Sequence[Ids], positions: Sequence[int], guide: Guide
    ) -> Float[Tensor, "n v"]:
        """Return how much the objective wants each token there; all alike, without a gradient."""
        return torch.zeros(len(rows), len(guide.vocabulary))

    def propose(
        self, state: Any, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates | None:
        if not beam:
            return None
        before = state if isinstance(state, EditState) else EditState(state)
        if before.beam != tuple(beam):
            before = replace(before, factor=1, extra=0, spent=False)
        if before.spent:
            return None
        wide = self.widened(before.factor, guide)
        wide = replace(wide, n_replace=wide.n_replace + before.extra)
        sites: list[Site] = []
        for parent, row in enumerate(beam):
            sites += self._sites(parent, row, guide, rng)
        lists = Shortlists([], torch.zeros(0, 1, dtype=torch.long))
        if sites:
            lists = wide.shortlist(before.own, sites, guide)
        written: list[list[Ids]] = [[] for _ in beam]
        if "rewrite" in self.moves:
            count = -(-self.search_width // CANDIDATES_PER_REWRITING)
            pull = partial(self.pull, guide=guide)
            written = rewritten(beam, count, guide, pull, rng)
        draw = _Draw(wide, beam, lists, written, guide.begins_word.tolist(), rng)
        parent_of = self._new(before.joined, draw, len(beam), guide)
        after: Any = self._after(before, beam, lists, len(parent_of), guide)
        if not self.merge and after == EditState(after.own, after.beam):
            # Nothing but what the shortlists depend on
            after = after.own if isinstance(state, EditState) else lists.state
        parents = list(parent_of.values())
        return Candidates(list(parent_of), parents, after, lists.num_non_finite)

    def _new(
        self, merged: Sequence[Ids], draw: _Draw, num_rows: int, guide: Guide
    ) -> dict[Ids, int]:
        """Return rows that the search has not scored, with the row of the beam that each was made
        from.
        """
        parent_of = {row: 0 for row in merged if row not in guide.scored}
        kept: list[Ids] = []
        for start in range(0, DRAWS * self.search_width, 2 * self.search_width):
            for i in range(start, start + 2 * self.search_width):
                drawn = draw.candidate(i)
                if drawn is not None and drawn not in guide.scored:
                    parent_of.setdefault(drawn, i % num_rows)
            kept = first_valid(parent_of, guide, self.search_width)
            if len(kept) == self.search_width:
                break
        return {row: parent_of[row] for row in kept}

    def widened(self, factor: int, guide: Guide) -> Edits:
        """Return the method with shortlists so many times as long, as far as there are tokens."""
        return self

    def _after(
        self,
        before: EditState,
        beam: Sequence[Ids],
        lists: Shortlists,
        num_new: int,
        guide: Guide,
    ) -> EditState:
        """Return the state after a proposal with so many new rows."""
        own = before.own if lists.state is UNCHANGED else lists.state
        after = EditState(own, tuple(beam), (), before.factor, before.extra)
        if 2 * num_new >= self.search_width:
            return after
        longer = 2 * before.factor
        if self.widened(longer, guide) != self.widened(before.factor, guide):
            return replace(after, factor=longer)
        if num_new or lists.num_non_finite or self.sites:
            return after  # other sites may have others
        swapped = self.n_replace + before.extra
        if "swap" in self.moves and swapped < max(map(len, beam)):
            return replace(after, factor=1, extra=before.extra + 1)
        return replace(after, spent=True)

    def observe(self, state: Any, evaluated: Evaluation) -> Any:
        if not self.merge or not isinstance(state, EditState):
            return state
        parent_of = dict(zip(evaluated.candidates.ids, evaluated.candidates.parents, strict=True))
        ranked = sorted(evaluated.entries())
        if not ranked:
            return state
        origin = parent_of[ranked[0].ids]
        best: dict[int, int] = {}  # the token of the best swap at a position
        for entry in ranked:
            changed = _changed(state.beam[origin], entry.ids)
            if parent_of[entry.ids] == origin and len(changed) == 1:
                best.setdefault(*changed[0])
        swaps = list(best.items())[: self.merge]
        return replace(state, joined=_joined(state.beam[origin], swaps))

    def _sites(self, parent: int, row: Ids, guide: Guide, rng: torch.Generator) -> list[Site]:
        """Return where a row takes a token."""
        sites = []
        if "swap" in self.moves:
            sites += [Site(parent, "swap", position, row) for position in range(len(row))]
        if "insert" not in self.moves or len(row) >= guide.max_length:
            return self._drawn(sites, rng)
        # A token is inserted between words, never inside one
        gaps = [p for p in range(len(row)) if guide.begins_word[row[p]]] + [len(row)]
        drawn = torch.randperm(len(gaps), generator=rng)[:MAX_GAPS].tolist()
        for position in sorted(gaps[i] for i in drawn):
            longer = (*row[:position], guide.filler, *row[position:])
            sites.append(Site(parent, "insert", position, longer))
        return self._drawn(sites, rng)

    def _drawn(self, sites: list[Site], rng: torch.Generator) -> list[Site]:
        """Return the sites at which shortlists are made: each may cost a gradient of its own."""
        if not self.sites or len(sites) <= self.sites:
            return sites
        drawn = torch.randperm(len(sites), generator=rng)[: self.sites].tolist()
        return [sites[i] for i in sorted(drawn)]


def _changed(row: Ids, edited: Ids) -> list[tuple[int, int]]:
    """Return the positions of the swapped tokens, and the new tokens; none of other edits."""
    if len(row) != len(edited):
        return []
    pairs = enumerate(zip(row, edited, strict=True))
    return [(position, new) for position, (old, new) in pairs if old != new]


def _joined(row: Ids, swaps: Sequence[tuple[int, int]]) -> tuple[Ids, ...]:
    """Return the row with the first two swaps, with the first three, and so on."""
    found = []
    for count in range(2, len(swaps) + 1):
        tokens = dict(swaps[:count])
        found.append(tuple(tokens.get(i, old) for i, old in enumerate(row)))
    return tuple(found)


class _Draw:
    """Draws the candidates of one step."""

    def __init__(
        self,
        method: Edits,
        beam: Sequence[Ids],
        lists: Shortlists,
        written: Sequence[Sequence[Ids]],
        begins_word: Sequence[bool],
        rng: torch.Generator,
    ) -> None:
        self._method, self._beam, self._lists, self._rng = method, beam, lists, rng
        self._written, self._begins_word = written, begins_word
        self._tokens = lists.tokens.cpu()
        self._sites_of: dict[tuple[int, str], list[int]] = {}
        """The indices of the sites of each row and move."""
        for i, site in enumerate(lists.sites):
            self._sites_of.setdefault((site.parent, site.move), []).append(i)

    def candidate(self, number: int) -> Ids | None:
        """Return the next candidate, of rows and pools in turn; None where there is none."""
        parent = number % len(self._beam)
        pool = number // len(self._beam) % (1 + len(self._lists.pools))
        row = list(self._beam[parent])
        moves = self._moves(parent)
        if not moves:
            return None
        move = moves[self._below(len(moves))]
        sites = self._sites_of.get((parent, move), [])
        if move in WORD_MOVES:
            return self._word_move(move, parent)
        if move == "delete":
            del row[self._below(len(row))]
        elif pool:
            offered = self._lists.pools[pool - 1][sites[self._below(len(sites))]]
            return offered[self._below(len(offered))] if offered else None
        elif move == "swap":
            for i in torch.randperm(len(sites), generator=self._rng)[
                : self._method.n_replace
            ].tolist():
                row[self._lists.sites[sites[i]].position] = self._token(sites[i])
        else:
            site = sites[self._below(len(sites))]
            row.insert(self._lists.sites[site].position, self._token(site))
        return tuple(row)

    def _word_move(self, move: Move, parent: int) -> Ids | None:
        """Return a row after an edit of words; None where that leaves it as it is."""
        row, begins, rng = self._beam[parent], self._begins_word, self._rng
        if move == "rewrite":
            written = self._written[parent]
            return written[self._below(len(written))] if written else None
        if move == "join":
            edited = joined(row, self._beam[self._below(len(self._beam))], begins, rng)
        else:
            edited = (moved if move == "move" else cut)(row, begins, rng)
        return edited if edited and edited != row else None

    def _moves(self, parent: int) -> list[Move]:
        """Return the moves that a row of the beam allows."""
        can_delete = len(self._beam[parent]) > 1
        found = []
        for move in self._method.moves:
            has_site = (parent, move) in self._sites_of
            if has_site or move in WORD_MOVES or (move == "delete" and can_delete):
                found.append(move)
        return found

    def _below(self, count: int) -> int:
        """Draw a number from 0 to `count` - 1."""
        return int(torch.randint(count, (1,), generator=self._rng))

    def _token(self, site: int) -> int:
        """Draw a token for a site."""
        count = self._tokens.shape[1]
        if self._method.skew == 1:
            return int(self._tokens[site, self._below(count)])
        share = float(torch.rand((), generator=self._rng)) ** self._method.skew
        return int(self._tokens[site, min(int(share * count), count - 1)])
