"""Causal language models: how likely each token is after the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from math import nan
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fuse.models.attention import BRANCHING, branch_cache, whole_cache
from fuse.models.base import Model, load_network, load_pretrained
from fuse.models.layers import LastFeedForward
from fuse.models.output import Contexts, OutputLayer, widened
from fuse.products import Table
from fuse.types import Inputs, Trunk

States = tuple[Float[Tensor, "*c d"], Float[Tensor, "*c v"] | None]
"""Last hidden states, and the logits, unless these can be made of them."""


@dataclass(frozen=True)
class Predictions:
    """What is foretold of n tokens: of that at position `place[i]` of a batch's row `row[i]` after context `context[i]`."""

    contexts: Contexts
    context: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    place: Int[Tensor, " n"]


class CausalLM(Model):
    """A Hugging Face causal LM. Every context begins with its BOS (else EOS) token, where it has one."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        length = getattr(network.config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
        head = () if start is None else (int(start),)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length, head=head, tail=())
        self._head_is_last: bool | None = None
        """Whether the logits are what the output layer returns, with nothing done to them; seen at the first pass."""
        layers, decoder = DynamicCache(config=network.config).layers, network.get_decoder()
        # What a convolution has read stands in no cache of keys and values
        kept = not any(isinstance(module, torch.nn.Conv1d) for module in decoder.modules())
        self.branches = kept and all(isinstance(layer, DynamicLayer) for layer in layers)
        self._windows = [getattr(layer, "sliding_window", None) for layer in layers]
        text = network.config.get_text_config()
        # In chunks tokens see what stands in the same one, by the masks of the network itself
        chunks = "chunked_attention" in (getattr(text, "layer_types", None) or ())
        replaceable = network.config._attn_implementation == "sdpa" and network._supports_attention_backend and not chunks
        # Layers may share the keys and values of one
        self.packs = self.branches and replaceable and len(layers) == text.num_hidden_layers
        # Versions of transformers before `cache` know it by another name
        self._cache_name = "cache" if "cache" in signature(network.forward).parameters else "past_key_values"
        if self.packs:
            network.set_attn_implementation(BRANCHING)
        if getattr(text, "output_router_logits", False):
            text.output_router_logits = False  # of interest in training alone, where all of them are there
        some = torch.arange(4, device=self.device)[None]
        self._last = LastFeedForward(decoder, text.num_hidden_layers, lambda: network(input_ids=some, use_cache=False).logits[:, -1])
        # Whether the output table is the very table that the embedding layer returns
        head = network.get_output_embeddings()
        self.tied = head.weight.shape == self.vocabulary.embedding.shape and torch.equal(head.weight, self.vocabulary.embedding)
        self.output = OutputLayer(head, self.vocabulary.table if self.tied else Table(head.weight))

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> CausalLM:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id)
        return cls(load_network(AutoModelForCausalLM, model_id, dtype=dtype, **options).to(device), tokenizer)

    def predictions(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> list[Predictions]:
        """What the model says of every position that `read` marks, piece by piece.

        Only contexts that somebody reads are run, and each different one once: candidates that differ in their last
        token alone share one forward pass, and what they share with a trunk is taken from there. Position 0 has no
        context and is never read.
        """
        branch, columns = inputs.branch, torch.arange(read.shape[1], device=read.device)
        told = (read & (columns > 0)).roll(-1, 1)
        """After which positions somebody reads the prediction."""
        known = torch.full_like(inputs.ids, -1) if branch is None else branch.known
        if branch is not None:
            # A prediction that the trunk did not keep is made anew, and so is what no mask could tell apart
            known = torch.where(told & (known < branch.trunk.columns[0]), -1, known)
            known = known if self.packs else torch.where(columns < replace(branch, known=known).length, known, -1)
            inputs = replace(inputs, branch=replace(branch, known=known))
        pieces = []
        row, at = (told & (known >= 0)).nonzero(as_tuple=True)
        if branch is not None and len(row):
            contexts, first = branch.trunk.contexts, branch.trunk.columns[0]
            assert contexts is not None
            context = branch.row[row] * len(branch.trunk.columns) + known[row, at] - first
            pieces.append(Predictions(contexts, context, row, at + 1))
        # What comes after all that is told is read by nobody
        new = (known < 0) & (told.flip(1).cumsum(1).flip(1) > 0)
        if (told & new).any():
            pieces.append(self._read_on(inputs, new, told & new))
        return pieces

    def _read_on(self, inputs: Inputs, new: Bool[Tensor, "b t"], told: Bool[Tensor, "b t"]) -> Predictions:
        """The predictions after the positions `told`, for which the tokens at `new` are read."""
        branch = inputs.branch
        line = kept = torch.arange(len(new), device=new.device)
        if inputs.embeddings is None:
            # Rows that differ in nothing that is read are one
            taken = [] if branch is None else [branch.row[:, None], branch.known]
            keys, line = torch.cat([*taken, torch.where(new, inputs.ids, -1)], 1).unique(dim=0, return_inverse=True)
            kept = line.new_zeros(len(keys)).scatter_(0, line, kept)
        row, at = told.nonzero(as_tuple=True)
        asked = torch.zeros_like(told[kept]).index_put((line[row], at), told.new_ones(()))
        context = (asked.flatten().cumsum(0) - 1)[line[row] * told.shape[1] + at]
        rows = inputs.lines(kept)
        if branch is not None and self.packs:
            hidden, logits = self._run_packed(rows, new[kept], asked)
        else:
            hidden, logits = self._run_padded(rows, asked)
        normaliser = None
        if branch is not None and branch.guessed and logits is None:
            # States are much alike where the same token of the label follows the same token
            place = torch.where(rows.label, rows.label.cumsum(1), 0).roll(-1, 1)[asked]
            kind = torch.where(place > 0, torch.stack([place, rows.ids[asked]], 1).unique(dim=0, return_inverse=True)[1] + 1, 0)
            normaliser = self.output.estimated_normaliser(hidden, kind)
        return Predictions(Contexts(self.output, hidden, logits, normaliser), context, row, at + 1)

    def _run_packed(self, rows: Inputs, new: Bool[Tensor, "u t"], asked: Bool[Tensor, "u t"]) -> States:
        """The states after the positions `asked`: the tokens at `new` of all rows, one after another, are read as one row."""
        assert rows.branch is not None
        embeddings = None if rows.embeddings is None else rows.embeddings[new][None]
        cache = branch_cache(rows.branch, new, self._windows)
        hidden, logits = self._run(rows.ids[new][None], None, embeddings, cache, asked[new].nonzero()[:, 0], new.nonzero()[None, :, 1])
        return hidden[0], None if logits is None else logits[0]

    def _run_padded(self, rows: Inputs, asked: Bool[Tensor, "u t"]) -> States:
        """The states after the positions `asked`, of rows that are read from their branch on."""
        start = 0 if rows.branch is None else rows.branch.length
        first, last = (int(column) for column in asked.any(0).nonzero()[[0, -1]])
        part, asked = slice(start, last + 1), asked[:, first : last + 1]
        embeddings = None if rows.embeddings is None else rows.embeddings[:, part]
        cache = None if rows.branch is None else whole_cache(rows.branch, self.network.config)
        columns = torch.arange(first - start, last + 1 - start)
        hidden, logits = self._run(rows.ids[:, part], rows.mask[:, part], embeddings, cache, columns)
        return hidden[asked], None if logits is None else logits[asked]

    @torch.no_grad()
    def read(self, inputs: Inputs, columns: Sequence[int]) -> Trunk:
        """Keys and values of whole rows, and the predictions after `columns`, those before a branch from its trunk."""
        branch, start = inputs.branch, inputs.branch.length if inputs.branch else 0
        first, normaliser, cache = columns[0], None, whole_cache(branch, self.network.config) if self.branches else None
        new = torch.tensor([column - start for column in columns if column >= start])
        hidden, logits = self._run(inputs.ids[:, start:], inputs.mask[:, start:], None, cache, new)
        if branch is not None and first < start:
            trunk = branch.trunk
            assert trunk.contexts is not None
            older = branch.row[:, None] * len(trunk.columns) + torch.arange(first, start, device=self.device) - trunk.columns[0]
            hidden = torch.cat([trunk.contexts.hidden[older], hidden], 1)
            logits = None if logits is None else torch.cat([trunk.contexts.logits(older.flatten()).unflatten(0, older.shape), logits], 1)
            normaliser = trunk.contexts.normaliser[older]
            normaliser = torch.cat([normaliser, normaliser.new_full((len(older), len(new)), nan)], 1).flatten()
        contexts = Contexts(self.output, hidden.flatten(0, 1), None if logits is None else logits.flatten(0, 1), normaliser)
        states = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None else []
        # A layer with a sliding window may have let go of the first tokens
        whole = all(keys is not None and keys.shape[-2] == inputs.ids.shape[1] for keys, _ in states)
        return Trunk(states if whole else (), columns, contexts)

    def _run(
        self,
        ids: Int[Tensor, "u t"],
        mask: Bool[Tensor, "u t"] | None,
        embeddings: Float[Tensor, "u t d"] | None,
        cache: Any,
        columns: Int[Tensor, " c"],
        places: Int[Tensor, "u t"] | None = None,
    ) -> States:
        """The states after some of the columns.

        With a mask the tokens follow one another, and those in the cache, which all of them see. Without one they stand at
        `places`, and the cache knows what each of them sees.
        """
        columns = columns.to(ids.device)
        options: dict[str, Any] = {} if cache is None else {self._cache_name: cache}
        if mask is None:
            options |= {"branching": cache, "position_ids": places, "attention_mask": ids.new_ones(1, 1, 1, 1, dtype=torch.bool)}
        else:
            before = mask.new_ones(len(mask), 0 if cache is None else cache.get_seq_length())
            options["attention_mask"] = torch.cat([before, mask], 1).long()
        hidden: list[Tensor] = []
        head, said = self.network.get_output_embeddings(), []

        def catch(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(arguments[0])
            return (arguments[0][:, :0],) if self._head_is_last else arguments

        hear = head.register_forward_hook(lambda _, __, out: said.append(out))
        with head.register_forward_pre_hook(catch), hear, self.reading(embeddings), self._last.only(slice(None), columns):
            out = self.network(input_ids=ids, logits_to_keep=columns, use_cache=cache is not None, **options)
        if self._head_is_last:
            return hidden[0], None
        if self._head_is_last is None:
            here = type(head) is torch.nn.Linear and head.weight.device == hidden[0].device
            self._head_is_last = here and torch.equal(out.logits, said[0])
        return hidden[0], widened(out.logits)

    def label_log_probs(self, inputs: Inputs, read: Bool[Tensor, "b t"], *, as_embedding: bool = False) -> Float[Tensor, "b t"]:
        """log p(x_t | x_<t) where `read` is true, else 0.

        A shift `inputs.labels` adds labels . log p at its places, zero in value. With `as_embedding`, the label of
        position t is `inputs.embeddings` there: its shift from the table's row adds shift . h, zero in value at a token.
        """
        result = torch.zeros(read.shape, device=read.device)
        for out in self.predictions(inputs, read):
            at = out.row, out.place
            labels = inputs.ids[at]
            log_probs = out.contexts.log_probs(out.context, labels)
            if as_embedding and inputs.embeddings is not None:
                shift = inputs.embeddings[at] - self.vocabulary.embedding[labels]
                log_probs = log_probs + (shift * out.contexts.hidden[out.context]).sum(-1)
            result = result.to(log_probs).index_put(at, log_probs)
            if inputs.labels is not None and inputs.label_places is not None:
                # The context of each place of a label that is foretold here
                contexts = torch.full_like(inputs.ids, -1).index_put(at, out.context).gather(1, inputs.label_places)
                line, number = (contexts >= 0).nonzero(as_tuple=True)
                # The shift is zero, so that nothing goes back through what it is multiplied with
                chosen = out.contexts.all_log_probs(contexts[line, number]).detach()
                shift = (inputs.labels[line, number] * chosen).sum(-1)
                result = result.index_put((line, inputs.label_places[line, number]), shift, accumulate=True)
        return result

    @torch.no_grad()
    def says(self, inputs: Inputs) -> Bool[Tensor, " b"]:
        """Whether greedy decoding after each row's prompt says its label, token for token."""
        result = torch.ones(len(inputs.ids), dtype=torch.bool, device=self.device)
        for out in self.predictions(inputs, inputs.label):
            wrong = out.contexts.logits(out.context).argmax(-1) != inputs.ids[out.row, out.place]
            result[out.row[wrong]] = False
        return result
