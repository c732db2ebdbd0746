"""The records that pass between stages.

Shape letters: b beam or batch, n candidates, s free length, t full length, v vocabulary, d width, k
subtokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from time import perf_counter
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

Ids = tuple[int, ...]
"""Token ids of one sequence.

Hashable, so that duplicates, memos and frontiers are sets and dictionaries.
"""

UNCHANGED: Any = type("Unchanged", (), {"__repr__": lambda _: "UNCHANGED"})()
"""In the place of a state: the state is as it was."""


@dataclass(frozen=True)
class Candidates:
    """Sequences of free tokens that await their losses."""

    ids: Sequence[Ids] = ()
    parents: Sequence[int] = ()
    """The row of the beam that each came from; empty where a method does not say."""
    state: Any = UNCHANGED
    """The method's next state, where proposing has changed it."""
    num_non_finite: int = 0
    """How many proposals were dropped because a gradient was not finite."""
    num_judged: int = 0
    """How many other texts the method has had read by some of the models to choose these."""
    over: bool = False
    """Whether the method has nothing more to propose."""
    leaves: frozenset[Ids] = frozenset()
    """Those that nothing goes on from: they may be the best, but no strategy expands them."""
    rng: Tensor | None = field(default=None, repr=False)
    """The state of the generator after proposing; set by the search."""
    began: float = field(default_factory=perf_counter, repr=False)
    """When proposing began, by `time.perf_counter`; set by the search."""
    operations_before: int | None = field(default=None, repr=False)
    """How many operations the models had made when proposing began; set by the search."""

    def kept(self, index: Sequence[int]) -> Candidates:
        """Return some of the candidates."""
        parents = [self.parents[i] for i in index] if self.parents else ()
        return replace(self, ids=[self.ids[i] for i in index], parents=parents)


@dataclass(frozen=True)
class Evaluation:
    """Losses of n candidates."""

    candidates: Candidates
    loss: Float[Tensor, " n"]
    """The weighted sum of the terms; inf for a candidate that is refused, or whose loss is not
    finite.
    """
    terms: dict[str, Float[Tensor, " n"]]
    """Each term's own loss, without its weight."""
    valid: Bool[Tensor, " n"]
    """Whether the text spells itself, fits every model and obeys the constraints."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """The factor of each term in the sum; 1 where none is given."""
    left_out: tuple[Entry, ...] = ()
    """The leaves, of an evaluation that is without them."""
    operations: int = 0
    """How many operations the models have made to propose and to score them; set by the search."""

    @property
    def num_non_finite(self) -> int:
        """How many valid candidates have a loss that is not finite."""
        return int((self.valid & ~self.loss.isfinite()).sum())

    def growing(self) -> Evaluation:
        """Return the evaluation of the candidates without the leaves."""
        leaves = self.candidates.leaves
        if not leaves:
            return self
        kept = [i for i, ids in enumerate(self.candidates.ids) if ids not in leaves]
        return replace(
            self,
            candidates=self.candidates.kept(kept),
            loss=self.loss[kept],
            terms={name: losses[kept] for name, losses in self.terms.items()},
            valid=self.valid[kept],
            left_out=tuple(entry for entry in self.entries() if entry.ids in leaves),
        )

    def entries(self) -> list[Entry]:
        """Return the candidates that count, each once, in their order."""
        found: dict[Ids, Entry] = {}
        terms = [losses.tolist() for losses in self.terms.values()]
        for i, (ids, loss) in enumerate(zip(self.candidates.ids, self.loss.tolist(), strict=True)):
            if loss < float("inf"):
                own = tuple(losses[i] for losses in terms)
                found.setdefault(tuple(ids), Entry(loss, tuple(ids), own))
        return list(found.values())


@dataclass(frozen=True, order=True)
class Entry:
    """One scored sequence.

    It sorts by loss, equal losses by tokens, so that the order is always the same.
    """

    loss: float
    ids: Ids
    terms: tuple[float, ...] = field(default=(), compare=False)
    """Each term's own loss, in the order of the objective's terms."""


@dataclass(frozen=True)
class BeamRow:
    """One prompt of the beam after a step."""

    prompt: str
    loss: float | None
    """None where it is no longer known."""
    parent: int | None
    """The row of the beam before the step that it came from; None where nobody says."""


@dataclass(frozen=True)
class Step:
    """One iteration: the best candidate of this step, and the best loss so far."""

    step: int
    method: str
    loss: float
    best_loss: float
    prompt: str
    free_ids: Ids
    terms: dict[str, float]
    evaluations: int
    seconds: float
    operations: int = 0
    """How many operations the models have made for the search so far."""
    parent: int | None = None
    """The row of the beam before that the best candidate came from; None where nobody says."""
    beam: tuple[BeamRow, ...] = ()
    """What the next step goes on from."""


@dataclass(frozen=True)
class TermResult:
    """One term of the final objective: its loss without its weight, its weight, and the text and
    the token ids, special ones included, that its model read.
    """

    loss: float
    weight: float
    text: str
    ids: Ids = ()


@dataclass(frozen=True)
class FrontPrompt:
    """One prompt of a Pareto front: no other one is better in a term without being worse in
    another. The losses are those of the search: each term's without its weight, and their sum.
    """

    prompt: str
    loss: float
    terms: dict[str, float]


@dataclass(frozen=True)
class Result:
    """The best prompt of a search.

    `loss` is the loss of exactly `prompt`, re-tokenised by every model.
    """

    prompt: str
    free_ids: Ids
    loss: float
    initial_loss: float
    terms: dict[str, TermResult]
    steps: int
    evaluations: int
    """How many different candidates were scored."""
    seconds: float
    found: tuple[str, ...] = ()
    """Every different prompt that the method collected: those that elicit the label."""
    token_counts: dict[str, int] = field(default_factory=dict)
    """How often these hold each token."""
    trace: tuple[Step, ...] = field(repr=False, default=())
    ended: str = ""
    """Why the search ended."""
    num_non_finite: int = 0
    """How many candidates were dropped because a loss or a gradient was not finite."""
    front: tuple[FrontPrompt, ...] = ()
    """The Pareto front, the lowest sum first; empty of strategies that keep none."""
    operations: int = 0
    """How many operations the models have made for the search, as `OperationCounter` counts."""

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the prompt, and a table of the terms."""
        rows = []
        for name, term in self.terms.items():
            numbers = f"<td>{term.loss:.4f}</td><td>{term.weight:g}</td>"
            rows.append(f"<tr><th>{escape(name)}</th>{numbers}<td>{escape(term.text)}</td></tr>")
        titles = "<tr><th>term</th><th>loss</th><th>weight</th><th>what its model read</th></tr>"
        facts = f"loss {self.loss:.4f}, from {self.initial_loss:.4f}, in {self.steps} steps"
        return (
            f"<p><strong>{escape(self.prompt)}</strong><br>{facts} and {self.evaluations:,} "
            f"candidates, {self.seconds:.1f} s</p><table>{titles}{''.join(rows)}</table>"
        )
