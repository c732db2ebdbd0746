"""Causal networks with an output layer: forward passes over whole rows, and on from a prefix cache.

Shape letters: u rows of a pass, t positions, c chosen positions, v vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import islice
from math import nan
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad as pad_end

from fuse.errors import FuseError
from fuse.models.base import Model, context_length
from fuse.models.proof import plain_logits, plain_options
from fuse.models.reuse_trial import own_tokens
from fuse.nn.batch import CachedPrefixes, CacheHits, Inputs
from fuse.nn.embedding_table import EmbeddingTable
from fuse.nn.fixed_layers import LastFeedForward
from fuse.nn.hooks import changing_input
from fuse.nn.lm_head import LazyLogits, LMHead, widened
from fuse.nn.packing import packed_cache, padded_cache
from fuse.types import Ids


@dataclass(frozen=True)
class States:
    """Last hidden states, and the logits where an `LMHead` cannot compute them from these."""

    hidden: Float[Tensor, "*c d"]
    logits: Float[Tensor, "*c v"] | None

    def __getitem__(self, index: Any) -> States:
        return States(self.hidden[index], None if self.logits is None else self.logits[index])

    @staticmethod
    def stacked(rows: Sequence[States | None], length: int) -> States:
        """Join states of single rows [1 c d], filled up with zeros; at least one has some."""
        some = next(one for one in rows if one is not None)

        def joined(parts: list[Tensor | None], like: Tensor) -> Tensor:
            out = []
            for part in parts:
                part = like.new_zeros(1, 0, like.shape[-1]) if part is None else part
                out.append(pad_end(part, (0, 0, 0, length - part.shape[1])))
            return torch.cat(out)

        hidden = joined([None if one is None else one.hidden for one in rows], some.hidden)
        if some.logits is None:
            return States(hidden, None)
        logits = [None if one is None else one.logits for one in rows]
        return States(hidden, joined(logits, some.logits))

    def flattened(self) -> tuple[Float[Tensor, "u d"], Float[Tensor, "u v"] | None]:
        """Return hidden states and logits, row after row."""
        logits = None if self.logits is None else self.logits.flatten(0, 1)
        return self.hidden.flatten(0, 1), logits


class Decoder(Model):
    """A Hugging Face causal network. No special token follows a text."""

    tied: bool
    """Whether the logits are products with the very table that the embedding layer looks up."""

    pads = True
    """Whether rows of unequal length are read as a batch, rather than one by one."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, tokenizer: Any) -> None:
        super().__init__(
            network,
            tokenizer,
            network.get_input_embeddings(),
            context_length(network.config, tokenizer),
            tail=(),
        )
        network, config = self.network, self.network.config.get_text_config()
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False  # read in training alone
        self._cache_name = _cache_name(network)
        self._knows_cache = bool(plain_options(network))
        """Whether it can be told to keep no cache."""
        self._narrows = True
        """Whether the output layer is run for the states that are read alone."""
        self._windows: list[int | None] = []
        """For each layer how many positions a token sees; None for all."""
        self._set_up_output(getattr(config, "num_hidden_layers", 0))

    def _set_up_output(self, num_layers: int) -> None:
        """See by short passes what the network does last.

        Raises:
            FuseError: it has no output layer, or does not call it.
        """
        network, layer = self.network, self.network.get_output_embeddings()
        usable: list[bool] = []
        row = tuple(islice(own_tokens(self), 4))

        def last_logits() -> Float[Tensor, " v"]:
            logits, given, returned = _output(network, layer, row, self.device)
            usable.append(_is_linear(layer, given.device) and _equal(logits, returned[0]))
            return logits[-1]

        self._last = LastFeedForward(network.get_decoder(), num_layers, last_logits)
        if not usable:
            last_logits()
        weight, table = layer.weight, self.vocabulary.table
        same = isinstance(weight, Tensor) and _equal(weight, table.weight)
        self.tied = usable[0] and same
        self._own_head: LMHead | None = None
        """The output layer; None where the logits are not what it returns, unchanged."""
        if usable[0]:
            assert isinstance(weight, Tensor)
            own_table = table if self.tied else EmbeddingTable(weight)
            self._own_head = LMHead(layer, own_table, self.operations)
        self._head = self._own_head
        """The output layer where it computes the logits that are read, when they are read."""

    def turn_late_logits(self, on: bool) -> None:
        """Compute logits when they are read, or let the network compute them all."""
        self._head = self._own_head if on else None

    def turn_narrowed_output(self, on: bool) -> None:
        """Run the output layer for the states that are read, or for all."""
        self._narrows = on

    def turn_narrowed_layer(self, on: bool) -> None:
        """Compute the last layer's feed-forward part for the states that are read, or for all."""
        self._last.turn(on)

    def turn_padding(self, on: bool) -> None:
        """Read rows of unequal length as a batch, or one by one."""
        self.pads = on

    def _run_packed(
        self, rows: Inputs, hits: CacheHits, new: Bool[Tensor, "u t"], asked: Bool[Tensor, "u t"]
    ) -> States:
        """Return the states after the positions `asked`; the tokens at `new` become one row."""
        embeddings = None if rows.embeddings is None else rows.embeddings[new][None]
        cache = packed_cache(hits, new, self._windows)
        index = asked[new].nonzero()[:, 0]
        positions = new.nonzero()[None, :, 1]
        options = {
            self._cache_name: cache,
            "cache_hits": cache,
            "position_ids": positions,
            # A mask of four axes is passed on as it is; the cache says what each token sees
            "attention_mask": new.new_ones(1, 1, 1, 1),
        }
        return self._run(rows.ids[new][None], embeddings, index, options)[0]

    def _run_padded(
        self, rows: Inputs, hits: CacheHits | None, asked: Bool[Tensor, "u t"]
    ) -> States:
        """Return the states after the positions `asked`; tokens cached in all rows are not read."""
        start = 0 if hits is None else hits.num_shared_tokens
        first, last = asked.any(0).nonzero()[[0, -1]].flatten().tolist()
        index = torch.arange(first - start, last + 1 - start)
        cache = None if hits is None else padded_cache(hits, self.network.config)
        states = self._run_from(start, rows, last + 1, cache, index)
        return states[asked[:, first : last + 1]]

    @torch.no_grad()
    def prefill(self, inputs: Inputs, positions: Sequence[int]) -> CachedPrefixes:
        """Read whole rows; those that go on from a cache take from there what it has of them."""
        hits, length = inputs.hits, inputs.ids.shape[1]
        start = 0 if hits is None else hits.num_shared_tokens
        use_cache = self.supports_prefix_cache
        cache = padded_cache(hits, self.network.config) if use_cache else None
        index = torch.tensor([position - start for position in positions if position >= start])
        states = self._run_from(start, inputs, length, cache, index)
        if hits is not None and positions[0] < start:
            logits = self._joined(hits, range(positions[0], start), states)
        else:
            logits = LazyLogits(self._head, *states.flattened())
        keys_values = [] if cache is None else [(one.keys, one.values) for one in cache.layers]
        # A layer with a sliding window may have dropped the first tokens
        whole = all(keys is not None and keys.shape[-2] == length for keys, _ in keys_values)
        return CachedPrefixes(keys_values if whole else (), positions, logits)

    def adopted(self, prefixes: CachedPrefixes) -> CachedPrefixes:
        found = super().adopted(prefixes)
        if found.logits is None:
            return found
        return replace(found, logits=found.logits.copied(self._head, self.device))

    def layers(self) -> Sequence[Any]:
        """Return the network's layers, in their order; none of one that keeps no list of them."""
        count = getattr(self.network.config.get_text_config(), "num_hidden_layers", 0)
        for module in self.network.get_decoder().modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == count:
                return list(module)
        return []

    def states(self, inputs: Inputs, module: Any) -> Float[Tensor, "b t d"]:
        """Return what a module of the network returns for each token of rows, read whole.

        Raises:
            FuseError: it does not return one vector for each.
        """
        found: list[Tensor] = []
        length = inputs.ids.shape[1]

        def keep(_: Any, __: Any, out: Any) -> None:
            found.append(out[0] if isinstance(out, tuple) else out)

        with module.register_forward_hook(keep):
            self._run_from(0, inputs, length, None, torch.arange(length))
        if self.pads:
            found = found[-1:]
        rows, lengths = len(inputs.ids), [one.shape[1] if one.ndim == 3 else 0 for one in found]
        if sum(map(len, found)) != rows or not all(lengths) or max(lengths) > length:
            kind = type(module).__name__
            raise FuseError(
                f"layer: this module ({kind}) does not return one vector for each token; choose "
                "another"
            )
        return torch.cat([pad_end(one, (0, 0, 0, length - one.shape[1])) for one in found])

    def _joined(self, hits: CacheHits, before: range, new: States) -> LazyLogits:
        """Join what the cache predicts after the positions `before`, and what was computed."""
        cached, positions = hits.prefixes.logits, hits.prefixes.positions
        assert cached is not None
        # States of the cache are numbered row after row, one for each of its positions  [b c]
        offset = torch.arange(before.start, before.stop, device=self.device) - positions[0]
        index = hits.row[:, None] * len(positions) + offset
        hidden = torch.cat([cached.hidden[index], new.hidden], 1)
        logits = new.logits
        if logits is not None:
            older = cached.logits(index.flatten()).unflatten(0, index.shape)
            logits = torch.cat([older, logits], 1)
        log_normaliser = cached.log_normaliser[index]
        unknown = log_normaliser.new_full(new.hidden.shape[:2], nan)
        log_normaliser = torch.cat([log_normaliser, unknown], 1).flatten()
        return LazyLogits(self._head, *States(hidden, logits).flattened(), log_normaliser)

    def _run_from(
        self, start: int, rows: Inputs, stop: int, cache: Any, index: Int[Tensor, " c"]
    ) -> States:
        """Read the tokens from `start` to `stop` of padded rows, those before from the cache.

        Returns:
            The states [u c] after the tokens at `index`, which is counted from `start`.
        """
        if not self.pads:
            return self._run_one_by_one(rows, stop, index)
        mask = rows.mask[:, start:stop]
        num_cached = 0 if cache is None else cache.get_seq_length()
        seen = torch.cat([mask.new_ones(len(mask), num_cached), mask], 1).long()
        options = {"attention_mask": seen} | ({} if cache is None else {self._cache_name: cache})
        embeddings = None if rows.embeddings is None else rows.embeddings[:, start:stop]
        return self._run(rows.ids[:, start:stop], embeddings, index, options)

    def _run_one_by_one(self, rows: Inputs, stop: int, index: Int[Tensor, " c"]) -> States:
        """Read the tokens up to `stop` of each row alone, without padding and without a mask.

        Returns:
            The states [u c] after the tokens at `index`; zero behind the end of a row.
        """
        found: list[States | None] = []
        for row, length in enumerate(rows.mask[:, :stop].sum(1).tolist()):
            ids, own = rows.ids[row : row + 1, :length], index[index < length]
            embeddings = None
            if rows.embeddings is not None:
                embeddings = rows.embeddings[row : row + 1, :length]
            found.append(self._run(ids, embeddings, own, {}) if len(own) else None)
        return States.stacked(found, len(index))

    def _run(
        self,
        ids: Int[Tensor, "u t"],
        embeddings: Float[Tensor, "u t d"] | None,
        index: Int[Tensor, " c"],
        options: dict[str, Any],
    ) -> States:
        """Run the network, its output layer for the tokens at `index` alone.

        If that is an `LMHead`, it is not run: there are no logits then.

        Args:
            options: further arguments of the network.
        """
        index = index.to(ids.device)
        hidden: list[Tensor] = []

        def select(states: Tensor) -> Tensor:
            if states.ndim != 3 and not self._narrows:
                return states  # the layer reads something else than states [u t d]
            hidden.append(states[:, index.to(states.device)])
            if self._head is not None:
                return states[:, :0]
            return hidden[0] if self._narrows else states

        layer = self.network.get_output_embeddings()
        if self._knows_cache:
            options = {"use_cache": self._cache_name in options, **options}
        with (
            changing_input(layer, select),
            self._last.only(slice(None), index),
            self.reading(embeddings),
        ):
            out = self.network(input_ids=ids.contiguous(), **options)
        if self._head is not None:
            return States(hidden[0], None)
        logits = widened(out.logits)
        logits = logits if self._narrows else logits[:, index]
        return States(hidden[0] if hidden else logits, logits)


def _cache_name(network: Any) -> str:
    """Return the name of the network's argument for a cache, which depends on its version."""
    names = {*signature(network.forward).parameters}
    if not names & {"cache", "past_key_values"}:  # it may take any arguments, and pass them on
        names = {*signature(network.get_decoder().forward).parameters}
    return "cache" if "cache" in names else "past_key_values"


def _output(
    network: Any, layer: Any, row: Ids, device: torch.device
) -> tuple[Float[Tensor, "t v"], Tensor, Tensor]:
    """Return the network's logits, and what its output layer is given and returns.

    Raises:
        FuseError: there is no such layer, or it is not called.
    """
    kind = type(network).__name__
    if layer is None:
        raise FuseError(f"network={kind}: it has no output layer; expected a causal language model")
    calls: list[tuple[Tensor, Tensor]] = []
    with layer.register_forward_hook(lambda _, given, out: calls.append((given[0], out))):
        logits = plain_logits(network, row, device)
    if not calls:
        raise FuseError(f"network={kind}: it does not call its output layer; choose another")
    return logits, *calls[-1]


def _is_linear(layer: Any, device: torch.device) -> bool:
    """Whether a layer is a plain linear one, whose weight is on the device of what it reads."""
    plain = type(layer) is torch.nn.Linear and type(layer.weight) is torch.nn.Parameter
    return plain and layer.weight.device == device


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same numbers, on the same device."""
    if left.shape != right.shape or left.device != right.device or left.is_meta:
        return False
    if left.dtype != right.dtype:
        left, right = widened(left), widened(right)
    return torch.equal(left, right)
