"""A trial when a network is loaded: does it go on from a prefix cache as if it read whole rows?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.models.base import Model
from fuse.nn.batch import CachedPrefixes, CacheHits, Inputs, pad
from fuse.text.template import Encoded
from fuse.types import Ids

log = logging.getLogger(__name__)

NUM_OWN_TOKENS = (2, 4, 3)
"""How many tokens each row of a trial has after its prefix, without special tokens at the end."""
PREFIX_OF_ROW = (0, 1, 0)
"""Which of two prefixes each row begins with."""
MAX_ERROR, MAX_COARSE_ERROR = 1e-3, 0.2
"""How much the states may differ, relative to their spread; the latter in coarse types."""

States = Callable[[Inputs, int], Float[Tensor, "n d"]]
"""Returns a batch's states after this many tokens, in the order of rows and positions."""


class TrialRows:
    """A few short rows of a model's own tokens, as a batch.

    Args:
        model: what reads them.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.length = len(model.vocabulary.head) + 2
        """How many tokens each prefix has."""
        rows = _rows(model, self.length)
        self.ids = [row.ids for row in rows]
        self.inputs = pad(rows, model.device)
        self.fit = self.inputs.ids.shape[1] <= model.vocabulary.max_length
        """Whether the model's context is long enough for them."""

    def from_cache(self, *, packed: bool) -> Inputs:
        """Return the batch whose rows go on from cached prefixes.

        The cache is filled with the prefixes by going on from a cache that lacks their last tokens.

        Args:
            packed: whether the rows are then read as one, rather than padded.
        """
        length, model = self.length, self._model
        prefixes = [self.ids[0][:length], self.ids[1][:length]]
        shorter = self._batch([ids[:-1] for ids in prefixes])
        cached = model.prefill(shorter, range(length - 2, length - 1))
        whole = self._batch(prefixes)
        hits = self._hits(cached, range(len(prefixes)), whole, length - 1, packed=False)
        cached = model.prefill(replace(whole, hits=hits), range(length - 1, length))
        hits = self._hits(cached, PREFIX_OF_ROW, self.inputs, length, packed)
        return replace(self.inputs, hits=hits)

    def _batch(self, rows: Sequence[Ids]) -> Inputs:
        """Make a batch of ids."""
        return pad([Encoded.of_ids(ids) for ids in rows], self._model.device)

    def _hits(
        self,
        prefixes: CachedPrefixes,
        row: Sequence[int],
        inputs: Inputs,
        length: int,
        packed: bool,
    ) -> CacheHits:
        """Let each row of a batch take this many tokens from its row of the cache."""
        position = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
        cached_position = torch.where(position < length, position, -1).expand(len(row), -1)
        rows = torch.tensor(list(row), device=inputs.ids.device)
        return CacheHits(prefixes, rows, cached_position, packed=packed)


class ReuseTrial:
    """A few short rows, and their states when they are read whole.

    Args:
        model: a model that neither packs nor uses a prefix cache so far.
    """

    def __init__(self, model: Model, states: States) -> None:
        self._model, self._states = model, states
        self._rows = TrialRows(model)
        if self._rows.fit:
            self._expected = states(self._rows.inputs, self._rows.length)

    def passes(self, *, packed: bool) -> bool:
        """Try whether the states stay the same when the rows go on from cached prefixes.

        Args:
            packed: whether the rows are then read as one, rather than padded.
        """
        network = type(self._model.network).__name__
        kind = f"{'packed' if packed else 'padded'} rows that go on from a prefix cache"
        try:
            error = self._error(packed) if self._rows.fit else torch.nan
        except torch.OutOfMemoryError:
            raise
        except Exception as reason:  # a network that cannot do it fails in its own way
            log.debug("%s: %s: no (%r)", network, kind, reason)
            return False
        passed = error <= (MAX_COARSE_ERROR if is_coarse(self._model) else MAX_ERROR)
        log.debug("%s: %s: %s (error %.1e)", network, kind, "yes" if passed else "no", error)
        return passed

    def _error(self, packed: bool) -> float:
        """Return how much the states differ."""
        found = self._states(self._rows.from_cache(packed=packed), self._rows.length)
        return relative_error(found, self._expected)


def is_coarse(model: Model) -> bool:
    """Whether a model multiplies in a type with fewer digits than float32."""
    return is_coarse_type(model.vocabulary.embedding.dtype)


def is_coarse_type(dtype: torch.dtype) -> bool:
    """Whether products in a type have fewer digits than those of float32."""
    if torch.finfo(dtype).eps > 1e-5:
        return True
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # it was set in another way, layer by layer
        return True


def relative_error(found: Float[Tensor, "n d"], expected: Float[Tensor, "n d"]) -> float:
    """Return the root mean square of differences, relative to the spread of the n rows."""
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / (expected - expected.mean(0)).norm())


def own_tokens(model: Model) -> Iterator[int]:
    """Yield ids from all over a model's vocabulary without end, without special tokens and those
    that the network takes for padding.
    """
    vocabulary, tokenizer = model.vocabulary, model.vocabulary.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    special |= {*vocabulary.head, *vocabulary.tail, *_padding(model)}
    size = min(len(vocabulary), len(tokenizer))
    usual = [token for token in range(size) if token not in special] or range(size)
    return cycle(usual[:: max(1, len(usual) // 64)])


def _padding(model: Model) -> Iterator[int | None]:
    """Yield the ids of padding that parts of a network name."""
    for module in model.network.modules():
        yield getattr(getattr(module, "config", None), "pad_token_id", None)
    for layer in model.lookups.layers:
        yield getattr(layer, "padding_idx", None)


def _rows(model: Model, prefix_length: int) -> list[Encoded]:
    """Make the rows of a trial."""
    ids, vocabulary = own_tokens(model), model.vocabulary
    num_free = prefix_length - len(vocabulary.head)
    prefixes = [vocabulary.head + tuple(islice(ids, num_free)) for _ in set(PREFIX_OF_ROW)]
    rows = []
    for number, count in zip(PREFIX_OF_ROW, NUM_OWN_TOKENS, strict=True):
        own = tuple(islice(ids, count)) + vocabulary.tail
        rows.append(Encoded.of_ids(prefixes[number] + own))
    return rows
