"""The records that pass between stages.

Shape letters: b beam or batch, n candidates, s free length, t full length, v vocabulary, d width, k subtokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from fuse.models.output import Contexts

Ids = tuple[int, ...]
"""Token ids of one sequence. Hashable, so that duplicates, memos and frontiers are plain sets and dictionaries."""


@dataclass(frozen=True)
class Trunk:
    """Rows that a causal model has read, kept so that others go on from them."""

    states: Sequence[tuple[Float[Tensor, "r h t e"], Float[Tensor, "r h t e"]]]
    """Keys and values of every layer; empty where the model cannot go on from the middle of a row."""
    columns: Sequence[int] = ()
    """The positions, one after another, after which `contexts` foretell the next token."""
    contexts: Contexts | None = None
    """Those of a language model, one column after another in each row."""


@dataclass(frozen=True)
class Branch:
    """What a batch need not read anew: of row i, what stands in row `row[i]` of `trunk` too.

    The keys, values and prediction of that row's position `known[i, p]` stand for those of position p; -1 where the token is
    read. They are those of position p, but where `guessed`: there what comes before may differ, and results are estimates.
    """

    trunk: Trunk
    row: Int[Tensor, " b"]
    known: Int[Tensor, "b t"]
    guessed: bool = False

    @property
    def length(self) -> int:
        """How many tokens no row has to read, from its first on."""
        return int((self.known >= 0).cumprod(1).sum(1).min())


@dataclass(frozen=True)
class Inputs:
    """A padded batch for one model. `embeddings` and `labels` are set where a gradient is wanted."""

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    """True at real tokens; padding is on the right."""
    free: Bool[Tensor, "b t"]
    """True at the tokens that spell the prompt."""
    label: Bool[Tensor, "b t"]
    """True at the tokens of the label (the text to elicit)."""
    embeddings: Float[Tensor, "b t d"] | None = None
    """What the model reads instead of looking `ids` up."""
    label_places: Int[Tensor, "b p"] | None = None
    """Positions whose own token is picked as a label through `labels`; a repeated one adds up."""
    labels: Float[Tensor, "b p v"] | None = None
    """A shift of the one-hot rows by which a loss picks the tokens at `label_places`; zero in value, read for its gradient."""
    branch: Branch | None = None
    """Where a causal model goes on from; the ids hold the whole rows nevertheless."""

    def lines(self, rows: Int[Tensor, " u"]) -> Inputs:
        """Some of the rows, without what `label_places` and `labels` say of them."""
        branch = self.branch and replace(self.branch, row=self.branch.row[rows], known=self.branch.known[rows])
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Inputs(self.ids[rows], self.mask[rows], self.free[rows], self.label[rows], embeddings, branch=branch)


@dataclass(frozen=True)
class Evaluation:
    """Losses of n sequences: the weighted sum, and each term's own unweighted loss. inf marks a refused sequence."""

    loss: Float[Tensor, " n"]
    terms: dict[str, Float[Tensor, " n"]]


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


@dataclass(frozen=True)
class TermResult:
    """One term of the final objective: its unweighted loss, its weight, and the whole text that its model read."""

    loss: float
    weight: float
    text: str


@dataclass(frozen=True)
class Result:
    """The best prompt of a search. `loss` is the loss of exactly `prompt`, re-tokenised by every model.

    `found` holds every different prompt that the method collected (those that elicit the label), and `token_counts` how
    often these hold each token.
    """

    prompt: str
    free_ids: Ids
    loss: float
    initial_loss: float
    terms: dict[str, TermResult]
    steps: int
    evaluations: int
    seconds: float
    found: tuple[str, ...] = ()
    token_counts: dict[str, int] = field(default_factory=dict)
    trace: tuple[Step, ...] = field(repr=False, default=())
