"""The records that pass between stages.

Shape letters: b beam or batch, n candidates, s free length, t full length, v vocabulary, d width, k subtokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = tuple[int, ...]
"""Token ids of one sequence. Hashable, so that duplicates, memos and frontiers are plain sets and dictionaries."""


@dataclass(frozen=True)
class Trunk:
    """Rows that a causal model has read, kept so that others go on from them."""

    states: Sequence[tuple[Float[Tensor, "r h t e"], Float[Tensor, "r h t e"]]]
    """Keys and values of every layer; empty where the model cannot go on from the middle of a row."""
    columns: Sequence[int] = ()
    """The positions, one after another, after which `logits` foretell the next token."""
    logits: Float[Tensor, "r c v"] | None = None
    normaliser: Float[Tensor, "r c"] | None = None
    """log of the sum of exp(logits) over the vocabulary."""
    hidden: Float[Tensor, "r c d"] | None = None


@dataclass(frozen=True)
class Branch:
    """What a batch need not read anew: row i shares its first `length` tokens with row `row[i]` of `trunk`.

    With `stale` results are estimates: the keys, values and prediction of position `stale[i, p]` of the trunk's row, one of
    its first `length`, stand for those of position p, though what comes before may differ; -1 where the token is read.
    """

    trunk: Trunk
    row: Int[Tensor, " b"]
    length: int
    stale: Int[Tensor, "b t"] | None = None


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
