"""What a model reads in one forward pass, and what it takes from its prefix cache instead.

Shape letters: b rows of the batch, r rows of the cache, t positions, p chosen positions, v
vocabulary, d width. Layers may have unequal numbers of heads, and unequal widths of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.nn.lm_head import LazyLogits
from fuse.text.template import Encoded
from fuse.text.vocabulary import Span


@dataclass(frozen=True)
class CachedPrefixes:
    """Rows that a causal model has read, with their keys and values, so that others go on from
    them.
    """

    keys_values: Sequence[tuple[Float[Tensor, "r _ t _"], Float[Tensor, "r _ t _"]]]
    """Keys and values of every layer; empty where the model cannot go on from the middle of a row.
    """
    positions: Sequence[int] = ()
    """The consecutive positions after which `logits` predict the next token."""
    logits: LazyLogits | None = None
    """Those of a language model, one position after another in each row."""


@dataclass(frozen=True)
class CacheHits:
    """What the rows of a batch take from the prefix cache, and need not read.

    The keys, values and prediction at position `cached_position[i, p]` of the cache's row `row[i]`
    stand for those of position p of row i; -1 where the token is read. They are equal to those of
    position p, unless the hits are
    `approximate`: there the tokens before may differ, and losses are estimates.
    """

    prefixes: CachedPrefixes
    row: Int[Tensor, " b"]
    cached_position: Int[Tensor, "b t"]
    approximate: bool = False
    packed: bool = True
    """Whether a model that supports packing reads what is left of the rows as one row, without
    padding.
    """

    @property
    def num_shared_tokens(self) -> int:
        """How many tokens no row has to read, from its first on."""
        return int((self.cached_position >= 0).cumprod(1).sum(1).min())

    def select(self, rows: Int[Tensor, " u"]) -> CacheHits:
        """Return the hits of some of the rows."""
        return replace(self, row=self.row[rows], cached_position=self.cached_position[rows])


@dataclass(frozen=True)
class Inputs:
    """A padded batch for one model.

    `embeddings` and `labels` are set where a gradient is wanted.
    """

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    """True at real tokens; padding is on the right."""
    free: Bool[Tensor, "b t"]
    """True at the tokens that spell the prompt."""
    label: Bool[Tensor, "b t"]
    """True at the tokens of the label (the text to elicit)."""
    embeddings: Float[Tensor, "b t d"] | None = None
    """What the model reads instead of looking `ids` up."""
    label_positions: Int[Tensor, "b p"] | None = None
    """Positions whose own token is picked as a label through `labels`; a repeated one adds up."""
    labels: Float[Tensor, "b p v"] | None = None
    """A shift of the one-hot rows by which a loss picks the tokens at `label_positions`.

    It is zero in value, and there for its gradient.
    """
    hits: CacheHits | None = None
    """What a causal model takes from its prefix cache; the ids hold the whole rows nevertheless."""

    def select(self, rows: Int[Tensor, " u"]) -> Inputs:
        """Return some of the rows, without `label_positions` and `labels`."""
        hits = None if self.hits is None else self.hits.select(rows)
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Inputs(
            self.ids[rows],
            self.mask[rows],
            self.free[rows],
            self.label[rows],
            embeddings,
            hits=hits,
        )


def unpadded(inputs: Inputs) -> Iterator[Inputs]:
    """Yield each row as a batch of its own, without padding, `labels` and `hits`."""
    for row, length in enumerate(inputs.mask.sum(1).tolist()):
        here = slice(row, row + 1), slice(length)
        embeddings = None if inputs.embeddings is None else inputs.embeddings[here]
        ids, mask, free, label = inputs.ids, inputs.mask, inputs.free, inputs.label
        yield Inputs(ids[here], mask[here], free[here], label[here], embeddings)


def pad(rows: Sequence[Encoded], device: torch.device) -> Inputs:
    """Make one batch of rows, padded on the right by id 0 under a false mask."""
    width = max((len(row.ids) for row in rows), default=0)
    ids = torch.tensor([row.ids + (0,) * (width - len(row.ids)) for row in rows], dtype=torch.long)
    position = torch.arange(width)

    def marked(spans: list[Span]) -> Bool[Tensor, "b t"]:
        start, end = torch.tensor(spans).unsqueeze(-1).unbind(1)
        return ((position >= start) & (position < end)).to(device)

    return Inputs(
        ids=ids.to(device),
        mask=marked([(0, len(row.ids)) for row in rows]),
        free=marked([row.free for row in rows]),
        label=marked([row.label for row in rows]),
    )
