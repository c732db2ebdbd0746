"""One model and its prefix cache: rows in bounded batches, and no token read twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fuse.engine.batching import MAX_PACKED_TOKENS, packed_batches, padded_batches
from fuse.engine.prefix_cache import NO_MATCH, CacheMatch, PrefixCache, cache_hits
from fuse.engine.workers import Workers
from fuse.errors import FuseError
from fuse.models import Model
from fuse.nn.batch import CachedPrefixes, Inputs, pad
from fuse.text.template import Encoded
from fuse.types import Ids

log = logging.getLogger(__name__)

MIN_REUSED_TOKENS = 2
"""From how many tokens on it pays to take them from the cache rather than read them again."""
LAUNCH_OPERATIONS = {"cpu": 5e8, "cuda": 5e11}
"""About how many operations take as long as what a forward pass costs beside its operations."""

Batch = Sequence[int]
"""Indices of the rows in one batch."""
Function = Callable[[Model, Inputs, Batch], tuple[Tensor, ...]]
"""What a model computes of a batch: tensors with one entry a row."""


@dataclass(frozen=True)
class Reuse:
    """What rows take from the cache: a match for each, and the prefixes that the matches are of."""

    prefixes: CachedPrefixes | None
    matches: list[CacheMatch]

    def by(self, models: Sequence[Model]) -> list[Reuse]:
        """Return the same for each of several models of the same weights."""
        prefixes = self.prefixes
        if prefixes is None or len(models) == 1:
            return [self] * len(models)
        if prefixes.logits is not None:
            prefixes.logits.settle()
        return [replace(self, prefixes=model.adopted(prefixes)) for model in models]


class ModelRunner:
    """Run rows through one model; what its prefix cache holds is not read again.

    A causal model reads the fixed prefix once, and so the rows that a search expands (`prefill`);
    what candidates share with these is taken from the cache. It changes no result, but for
    rounding.

    Args:
        prefix: the ids that stand before every prompt.
        reads_prompt: whether the model is asked how likely each token of a prompt is; the cache
            then keeps the predictions within it, too.
        batch_size: how many rows a forward pass reads at most; halved where memory runs out.
        prefix_cache: False to read every row whole.
        packing: False to pad the rows of a batch instead of reading them as one.
        replicas: copies of the model that read batches beside it.
    """

    def __init__(
        self,
        model: Model,
        prefix: Ids,
        *,
        reads_prompt: bool,
        batch_size: int,
        prefix_cache: bool = True,
        packing: bool = True,
        replicas: Sequence[Model] = (),
    ) -> None:
        self.model = model
        self.workers = Workers([model, *replicas])
        self.batch_size = batch_size
        self.prefix_cache = prefix_cache and model.supports_prefix_cache
        self.packing = packing and self.prefix_cache and model.supports_packing
        kind = model.device.type
        operations = LAUNCH_OPERATIONS.get(kind, LAUNCH_OPERATIONS["cuda"])
        self.launch_tokens = operations / (2 * model.size)
        """How many tokens could be read in the time that a forward pass costs beside its
        operations.
        """
        self._max_packed_tokens = MAX_PACKED_TOKENS.get(kind, MAX_PACKED_TOKENS["cuda"])
        self._first = max(len(prefix) - 1, 0) if reads_prompt else None
        """After which position the cache has to predict; None after the last ones alone."""
        self._prefix = prefix
        self._fixed = PrefixCache([prefix] if prefix else [], prefix)
        self._beam = PrefixCache([])
        self._latest: PrefixCache | None = None
        """What predictions were asked for last beside the beam: rows that grow go on from there."""

    def prefill(self, rows: Sequence[Encoded]) -> None:
        """Let what follows go on from these rows, up to the ends of their prompts.

        Nothing is read before it is needed.
        """
        beginnings = [row.up_to_prompt().ids for row in rows]
        beginnings = [ids for ids in dict.fromkeys(beginnings) if ids]
        self._latest = None
        if beginnings == self._beam.rows:
            return
        parent = self._beam if self._beam.prefixes is not None else self._beam.parent
        if parent is not None:
            parent.parent = None
        self._beam = PrefixCache(beginnings, self._prefix, parent)

    def clear(self) -> None:
        """Empty the prefix cache."""
        self._fixed = PrefixCache(self._fixed.rows, self._prefix)
        self._beam = PrefixCache([])
        self._latest = None

    def run(
        self,
        rows: Sequence[Encoded],
        function: Function,
        limits: Sequence[int] | None = None,
        *,
        together: bool = False,
    ) -> tuple[Tensor, ...]:
        """Apply a function to batches of rows.

        Args:
            function: gets the model, the inputs of a batch and its rows' indices.
            limits: how many tokens at the beginning of each row may be taken from the cache; None
                for all but the prompt's last one, which is always read.
            together: whether the replicas read batches, too; there are no gradients then.

        Returns:
            The function's results, in the rows' order.
        """
        if limits is None:
            limits = [max(row.free[1] - 1, 0) for row in rows]
        reuse = self._reuse([row.ids for row in rows], limits)
        return self._run(rows, reuse, function, together=together)

    def run_approximately(
        self, rows: Sequence[Encoded], function: Function
    ) -> tuple[Tensor, ...] | None:
        """Apply a function as `run` does, reading of each row little more than what changed.

        For what a row has in common with a prefilled one at both ends, the keys, values and
        predictions of the latter stand, although the tokens between may differ. None where the
        model or the cache does not allow it.
        """
        if not self.packing or not len(self._beam) or not rows:
            return None
        beam = self._beam
        if not self._filled(beam):
            return None
        reuse = Reuse(beam.prefixes, beam.match_both_ends(rows))
        return self._run(rows, reuse, function, approximate=True, together=True)

    def predictions_after(self, rows: Sequence[Ids]) -> tuple[CachedPrefixes, list[int]]:
        """Return cached predictions of the next token.

        Returns:
            Prefixes with their logits, and for each row the index of its own among them.
        """
        cache = self._beam
        if not cache.holds(rows):
            if self._latest is not None:
                self._latest.parent = None
            cache = PrefixCache(_without_beginnings(rows), self._prefix, self._latest)
            self._latest = cache
        first = min(len(row) - 1 for row in rows)
        self._fill(cache, first if self._first is None else min(first, self._first))
        prefixes = cache.prefixes
        assert prefixes is not None
        index = []
        for match, row in zip(
            cache.match_prefix(rows, [len(row) for row in rows]), rows, strict=True
        ):
            position = prefixes.positions.index(len(row) - 1)
            index.append(match.row * len(prefixes.positions) + position)
        return prefixes, index

    @torch.inference_mode(False)
    def _run(
        self,
        rows: Sequence[Encoded],
        reuse: Reuse,
        function: Function,
        *,
        approximate: bool = False,
        together: bool = False,
    ) -> tuple[Tensor, ...]:
        """Apply a function to batches; one that does not fit into memory is halved, and so are all
        that follow.

        The batches are the same for any number of replicas.
        """
        todo = self._batches(rows, reuse)
        together = together and len(todo) > 1
        models = self.workers.models if together else [self.model]
        read = partial(self._read, rows, reuse.by(models), function, approximate)
        order: list[int] = []
        found: list[tuple[Tensor, ...]] = []
        while todo:
            for result in self.workers.read(list(todo), read, together=together):
                if result is None:
                    todo = self._halved(todo)
                    break
                found.append(result)
                order += todo.pop(0)
        device = found[0][0].device
        back = torch.tensor(order).argsort().to(device)
        parts = zip(*found, strict=True)
        return tuple(torch.cat([one.to(device) for one in part])[back] for part in parts)

    def _read(
        self,
        rows: Sequence[Encoded],
        reuse: Sequence[Reuse],
        function: Function,
        approximate: bool,
        number: int,
        batch: Batch,
    ) -> tuple[Tensor, ...] | None:
        """Apply a function to one batch; None where it does not fit into memory.

        Args:
            reuse: what each model takes from the cache.
            number: of the model.
        """
        model = self.workers.models[number]
        try:
            inputs = self._inputs(rows, reuse[number], batch, model.device, approximate)
            return function(model, inputs, batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _batches(self, rows: Sequence[Encoded], reuse: Reuse) -> list[list[int]]:
        """Divide rows into batches by how many tokens of each are read."""
        pairs = zip(rows, reuse.matches, strict=True)
        sizes = [len(row.ids) - match.num_cached_tokens for row, match in pairs]
        if reuse.prefixes is not None and self.packing:
            return packed_batches(sizes, self.batch_size, self._max_packed_tokens)
        return padded_batches(sizes, self.batch_size, self.launch_tokens)

    def _inputs(
        self,
        rows: Sequence[Encoded],
        reuse: Reuse,
        batch: Batch,
        device: torch.device,
        approximate: bool = False,
    ) -> Inputs:
        """Make one batch."""
        inputs = pad([rows[i] for i in batch], device)
        if reuse.prefixes is None:
            return inputs
        matches, width = [reuse.matches[i] for i in batch], inputs.ids.shape[1]
        hits = cache_hits(
            reuse.prefixes,
            matches,
            width,
            device,
            packed=self.packing,
            approximate=approximate,
        )
        return replace(inputs, hits=hits)

    def _halved(self, todo: Sequence[Sequence[int]]) -> list[list[int]]:
        """Halve the batch size, and the batches that wait.

        Raises:
            FuseError: a batch of one row did not fit.
        """
        if len(todo[0]) == 1:
            raise FuseError(
                "batch_size=1: out of memory with a single row; use a smaller model, "
                "a shorter text or a half dtype"
            )
        size = self.batch_size = (len(todo[0]) + 1) // 2
        log.warning(
            "out of memory with %d rows at once; going on with batch_size=%d", len(todo[0]), size
        )
        found = []
        for batch in todo:
            found += [list(batch[i : i + size]) for i in range(0, len(batch), size)]
        return found

    def _reuse(self, rows: Sequence[Ids], limits: Sequence[int]) -> Reuse:
        """Match rows with the cache that saves tokens, if there is one, and fill it first."""
        if self.prefix_cache:
            for cache in (self._beam, self._fixed):
                matches = cache.match_prefix(rows, limits)
                lengths = [match.num_cached_tokens for match in matches]
                saved = sum(length for length in lengths if length >= MIN_REUSED_TOKENS)
                # What the rows save has to outweigh what filling costs, unless that is done
                if not saved or (cache.prefixes is None and saved < self._fill_cost(cache)):
                    continue
                if self._filled(cache):
                    assert cache.prefixes is not None
                    return Reuse(cache.prefixes, matches)
                if not self.prefix_cache:
                    break
        return Reuse(None, [NO_MATCH] * len(rows))

    def _filled(self, cache: PrefixCache) -> bool:
        """Fill a cache, and say whether rows can go on from it.

        Where memory does not suffice to fill it, the prefix cache is turned off.
        """
        try:
            self._fill(cache, self._first)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            log.warning(
                "out of memory with %d cached rows; going on without a prefix cache", len(cache)
            )
            self.prefix_cache = self.packing = False
            self.clear()
            return False
        return cache.prefixes is not None and bool(cache.prefixes.keys_values)

    def _fill_cost(self, cache: PrefixCache) -> int:
        """Return how many tokens have to be read to fill a cache. Nothing is computed."""
        source, matches = self._source(cache, cache.first_position(self._first))
        cost = sum(map(len, cache.rows)) - sum(match.num_cached_tokens for match in matches)
        return cost + (len(self._prefix) if source is not None and source.prefixes is None else 0)

    def _source(
        self, cache: PrefixCache, first: int
    ) -> tuple[PrefixCache | None, list[CacheMatch]]:
        """Return an older cache, perhaps not yet filled, from which one can go on, and the matches
        with it.

        Args:
            first: the first position whose prediction the cache has to keep.
        """
        whole = [len(row) - 1 for row in cache.rows]
        for older in (cache.parent, self._fixed):
            if older is None or older is cache or not self._can_serve(older):
                continue
            # Predictions before the match have to be known there
            kept = older.prefixes.positions[0] if older.prefixes else older.first_position(None)
            limits = whole if kept <= first else [min(length, first) for length in whole]
            matches = older.match_prefix(cache.rows, limits)
            if min(match.num_cached_tokens for match in matches) >= MIN_REUSED_TOKENS:
                return older, matches
        return None, [NO_MATCH] * len(cache.rows)

    def _can_serve(self, cache: PrefixCache) -> bool:
        """Whether others can go on from a cache, or could if it were filled."""
        if not self.prefix_cache or not len(cache):
            return False
        return cache.prefixes is None or bool(cache.prefixes.keys_values)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _fill(self, cache: PrefixCache, first: int | None) -> None:
        """Read the rows of a cache, unless that is done.

        Predictions are kept from position `first` on; None for the last ones alone.
        """
        first = cache.first_position(first)
        if cache.prefixes is not None and cache.prefixes.positions[0] <= first:
            return
        source, matches = self._source(cache, first)
        if source is not None and source.prefixes is None:
            self._fill(source, None)
        rows = [Encoded.of_ids(ids) for ids in cache.rows]
        reuse = Reuse(None, matches)
        if source is not None and source.prefixes is not None and source.prefixes.keys_values:
            reuse = Reuse(source.prefixes, matches)
        inputs = self._inputs(rows, reuse, range(len(rows)), self.model.device)
        cache.prefixes = self.model.prefill(inputs, range(first, inputs.ids.shape[1]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "allocate memory" in text or "out of memory" in text
    )


def _without_beginnings(rows: Sequence[Ids]) -> list[Ids]:
    """Return the different rows, the longest first, without those that begin another one."""
    kept: list[Ids] = []
    for row in sorted(set(rows), key=len, reverse=True):
        if not any(longer[: len(row)] == row for longer in kept):
            kept.append(row)
    return kept
