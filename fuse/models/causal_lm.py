"""Causal language models: how likely each token is after the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.models.base import Model, load_network, load_pretrained
from fuse.types import Branch, Inputs, Trunk

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}
"""How many logits are made and summed at once: as many as a cache holds, and enough to be worth a call."""
SHORTLIST = 1024
"""How many logits of each place an estimate looks at."""
FEW = 8
"""So many sums over the vocabulary are made as they are, where more are estimated."""


@dataclass(frozen=True)
class Predictions:
    """Last hidden states over u different contexts, and what follows from them; row i of the batch reads context `row[i]`.

    Column c foretells the token at position `first` + c.
    """

    model: CausalLM
    hidden: Float[Tensor, "u c d"]
    row: Int[Tensor, " b"]
    first: int
    last: int
    known_logits: Float[Tensor, "u c v"] | None = None
    known_normaliser: Float[Tensor, "u c"] | None = None

    @cached_property
    def logits(self) -> Float[Tensor, "u c v"]:
        return self.model.logits_of(self.hidden) if self.known_logits is None else self.known_logits

    @cached_property
    def normaliser(self) -> Float[Tensor, "u c"]:
        """log of the sum of exp(logits) over the vocabulary."""
        if self.known_normaliser is not None:
            return self.known_normaliser
        # A gradient wants all logits anyway
        whole = self.known_logits is not None or self.hidden.requires_grad
        return self.logits.logsumexp(-1) if whole else self.model.normaliser_of(self.hidden)

    def picked(self, labels: Int[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The logits of one token for each row and column."""
        if "logits" in self.__dict__ or self.known_logits is not None or self.hidden.requires_grad:
            return self.logits[self.row[:, None], torch.arange(labels.shape[1], device=labels.device), labels]
        return self.model.logits_of(self.hidden[self.row], labels)


def _has_context(read: Bool[Tensor, "b t"]) -> Bool[Tensor, " t"]:
    return torch.arange(read.shape[1], device=read.device) > 0


class CausalLM(Model):
    """A Hugging Face causal LM. Every context begins with its BOS (else EOS) token, where it has one."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        from fuse.models.attention import BRANCHING

        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        length = getattr(network.config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
        head = () if start is None else (int(start),)
        super().__init__(network, tokenizer, network.get_input_embeddings(), length, head=head, tail=())
        self._head_is_last: bool | None = None
        """Whether the logits are what the output layer returns, with nothing done to them; seen at the first pass."""
        layers = DynamicCache(config=network.config).layers
        self.branches = all(isinstance(layer, DynamicLayer) for layer in layers)
        self._shares = self.branches and network.config._attn_implementation == "sdpa" and network._supports_attention_backend
        """Whether rows of a batch can read one trunk without a copy of it."""
        # A sliding window counts the tokens that stand between two
        self.estimates = self._shares and all(type(layer) is DynamicLayer for layer in layers)
        # Versions of transformers before `cache` know it by another name
        self._cache_name = "cache" if "cache" in signature(network.forward).parameters else "past_key_values"
        if self._shares:
            network.set_attn_implementation(BRANCHING)
        # Whether the output table is the very table that the embedding layer returns
        head_table = network.get_output_embeddings().weight
        self.tied = head_table.shape == self.vocabulary.embedding.shape and torch.equal(head_table, self.vocabulary.embedding)

    @classmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> CausalLM:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = load_pretrained(AutoTokenizer, model_id)
        return cls(load_network(AutoModelForCausalLM, model_id, dtype=dtype, **options).to(device), tokenizer)

    def predictions(self, inputs: Inputs, read: Bool[Tensor, "b t"]) -> list[Predictions]:
        """What the model says of every position from the first to the last that `read` marks, piece by piece.

        Only contexts that somebody reads are run, and each different one once: candidates that differ in their last
        token alone share one forward pass, and what they share with a trunk is taken from there. Position 0 has no
        context and is never read.
        """
        columns = (read & _has_context(read)).any(0).nonzero()
        if not len(columns):
            return []
        first, last = int(columns[0]), int(columns[-1]) + 1
        branch, start, pieces = inputs.branch, 0, []
        if branch is not None and branch.stale is not None:
            branch = None  # who reads whole predictions gets true ones
        if branch is not None:
            start = branch.length
            if first <= start:
                pieces.append(self._from_trunk(branch, first, min(last, start + 1)))
                first = start + 1
            if first >= last:
                return pieces
        ids, row = inputs.ids[:, start : last - 1], torch.arange(len(inputs.ids), device=inputs.ids.device)
        mask, embeddings, distinct = inputs.mask[:, start : last - 1], inputs.embeddings, row
        if embeddings is None:
            # A row's own last token is not read by itself: blank it, so that rows that differ only there are equal
            ends = (inputs.mask.sum(1, keepdim=True) - 1).clamp_min(1)
            mask = mask & (torch.arange(start, last - 1, device=ids.device) < ends)
            parent = row[:, None] * 0 if branch is None else branch.row[:, None]
            keys, row = torch.cat([parent, torch.where(mask, ids, -1)], 1).unique(dim=0, return_inverse=True)
            distinct = row.new_zeros(len(keys)).scatter_(0, row, torch.arange(len(row), device=row.device))
            ids, mask = ids[distinct], mask[distinct]
        else:
            embeddings = embeddings[:, start : last - 1]
        cache = None if branch is None else self._cache_of(branch, distinct)
        hidden, logits = self._run(ids, mask, embeddings, cache, range(first - 1 - start, last - 1 - start))
        return [*pieces, Predictions(self, hidden, row, first, last, logits)]

    @torch.no_grad()
    def read(self, inputs: Inputs, columns: Sequence[int]) -> Trunk:
        """Keys and values of whole rows, and the predictions after `columns`, those before a branch from its trunk."""
        branch, start = inputs.branch, inputs.branch.length if inputs.branch else 0
        rows = torch.arange(len(inputs.ids), device=self.device)
        cache = self._cache_of(branch, rows, whole=True) if self.branches else None
        new = [column - start for column in columns if column >= start]
        hidden, logits = self._run(inputs.ids[:, start:], inputs.mask[:, start:], None, cache, new)
        out = Predictions(self, hidden, rows, columns[-1] + 2 - len(new), columns[-1] + 2, logits)
        found = [out.logits, out.logits.logsumexp(-1), hidden]
        if branch is not None and len(new) < len(columns):
            known = self._from_trunk(branch, columns[0] + 1, start + 1)
            older = [known.logits, known.normaliser, known.hidden]
            found = [torch.cat([old[branch.row], of], 1) for old, of in zip(older, found, strict=True)]
        states = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None else []
        # A layer with a sliding window may have let go of the first tokens
        whole = all(keys is not None and keys.shape[-2] == inputs.ids.shape[1] for keys, _ in states)
        return Trunk(states if whole else (), columns, *found)

    def _cache_of(self, branch: Branch | None, rows: Int[Tensor, " u"], *, whole: bool = False) -> Any:
        """What these rows of a batch go on from; `whole` where it is to hold their keys and values from the first on."""
        from fuse.models.attention import branch_cache, whole_cache

        if branch is not None and self._shares and not whole:
            return branch_cache(branch, rows)
        return whole_cache(branch, rows, self.network.config)

    def _run(
        self,
        ids: Int[Tensor, "u t"],
        mask: Bool[Tensor, "u t"] | Bool[Tensor, "u 1 t k"],
        embeddings: Float[Tensor, "u t d"] | None,
        cache: Any,
        columns: Sequence[int],
        places: Int[Tensor, "u t"] | None = None,
    ) -> tuple[Float[Tensor, "u c d"], Float[Tensor, "u c v"] | None]:
        """Last hidden states after some of the columns, of which the first is the first that the cache lacks.

        And the logits, unless these can be made of them. `places` are the tokens' positions, where they do not follow one
        another; `mask` then says of each what it sees, in the cache and in the batch.
        """
        if cache is not None and places is None:
            mask = torch.cat([mask.new_ones(len(mask), cache.get_seq_length()), mask], 1)
        mask = mask.long() if places is None else mask
        keep = torch.tensor(columns, device=self.device)
        hidden: list[Tensor] = []
        head, said = self.network.get_output_embeddings(), []
        options = {} if cache is None else {self._cache_name: cache, **({"branching": cache} if self._shares else {})}
        if places is not None:
            options["position_ids"] = places

        def before(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(arguments[0])
            return (arguments[0][:, :0],) if self._head_is_last else arguments

        hooks = head.register_forward_pre_hook(before), head.register_forward_hook(lambda _, __, out: said.append(out))
        try:
            with self.reading(embeddings):
                out = self.network(input_ids=ids, attention_mask=mask, logits_to_keep=keep, use_cache=cache is not None, **options)
        finally:
            for hook in hooks:
                hook.remove()
        if self._head_is_last:
            return hidden[0], None
        if self._head_is_last is None:
            here = type(head) is torch.nn.Linear and head.weight.device == hidden[0].device
            self._head_is_last = here and torch.equal(out.logits, said[0])
        return hidden[0], _widened(out.logits)

    def logits_of(self, hidden: Float[Tensor, "b c d"], tokens: Int[Tensor, "b c"] | slice | None = None) -> Float[Tensor, "b c *v"]:
        """What the output layer makes of last hidden states: of all tokens, of some, or of one at each place."""
        head = self.network.get_output_embeddings()
        if isinstance(tokens, Tensor):
            found = (hidden * head.weight[tokens]).sum(-1)
            return _widened(found if head.bias is None else found + head.bias[tokens])
        chosen = slice(None) if tokens is None else tokens
        return _widened(torch.nn.functional.linear(hidden, head.weight[chosen], None if head.bias is None else head.bias[chosen]))

    def normaliser_of(self, hidden: Float[Tensor, "u c d"]) -> Float[Tensor, "u c"]:
        """log of the sum of exp(logits) over the vocabulary, without ever holding all logits."""
        lines = max(1, hidden.shape[0] * hidden.shape[1])
        width = max(1024, BLOCK.get(self.device.type, BLOCK["cuda"]) // lines)
        size = len(self.network.get_output_embeddings().weight)
        parts = []
        for start in range(0, size, width):
            logits = self.logits_of(hidden, slice(start, start + width))
            top = logits.amax(-1, keepdim=True)
            parts.append(logits.sub_(top).exp_().sum(-1).log_() + top[..., 0])  # in place: no second block
        return torch.stack(parts).logsumexp(0)

    def label_log_probs(self, inputs: Inputs, read: Bool[Tensor, "b t"], *, as_embedding: bool = False) -> Float[Tensor, "b t"]:
        """log p(x_t | x_<t) where `read` is true, else 0.

        A shift `inputs.labels` adds labels . log p at its places, zero in value. With `as_embedding`, the label of
        position t is `inputs.embeddings` there: its shift from the table's row adds shift . h, zero in value at a token.
        """
        if inputs.branch is not None and inputs.branch.stale is not None:
            return self._estimated_log_probs(inputs, inputs.branch, inputs.branch.stale, read & _has_context(read))
        result = torch.zeros(read.shape, device=read.device)
        for out in self.predictions(inputs, read):
            row, normaliser = out.row[:, None], out.normaliser
            labels = inputs.ids[:, out.first : out.last]
            picked = out.picked(labels) - normaliser[out.row]
            if as_embedding and inputs.embeddings is not None:
                shift = inputs.embeddings[:, out.first : out.last] - self.vocabulary.embedding[labels]
                picked = picked + (shift * out.hidden[out.row]).sum(-1)
            result = torch.cat([result[:, : out.first].to(picked), picked, result[:, out.last :].to(picked)], 1)
            if inputs.labels is not None and inputs.label_places is not None:
                near = (inputs.label_places - out.first).clamp(0, labels.shape[1] - 1)
                # The shift is zero, so that nothing goes back through what it is multiplied with
                log_probs = (out.logits[row, near] - normaliser[row, near][..., None]).detach()
                here = (inputs.label_places >= out.first) & (inputs.label_places < out.last)
                shift = torch.where(here, (inputs.labels * log_probs).sum(-1), 0.0)
                result = result.scatter_add(1, inputs.label_places, shift)
        return torch.where(read & _has_context(read), result, 0.0)

    def _estimated_log_probs(
        self, inputs: Inputs, branch: Branch, stale: Int[Tensor, "b t"], read: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t"]:
        """`label_log_probs`, where much of a trunk stands for what the rows would be like."""
        # Positions that the trunk stands for, and positions whose prediction is read
        kept, told = stale >= 0, torch.cat([read[:, 1:], read.new_zeros(len(read), 1)], 1)
        result, trunk, place = torch.zeros(read.shape, device=read.device), branch.trunk, torch.arange(read.shape[1], device=read.device)
        line, at = (told & kept).nonzero(as_tuple=True)
        if len(line):
            assert trunk.logits is not None
            assert trunk.normaliser is not None
            root, column = branch.row[line], stale[line, at] - trunk.columns[0]
            result[line, at + 1] = trunk.logits[root, column, inputs.ids[line, at + 1]] - trunk.normaliser[root, column]
        # Who comes after all that is told is read by nobody
        new = ~kept & (told.flip(1).cumsum(1).flip(1) > 0)
        line, at = (told & new).nonzero(as_tuple=True)
        if len(line):
            columns = new.long().argsort(dim=1, descending=True, stable=True)[:, : int(new.sum(1).max())]
            # Where in the row each token of the trunk stands, if anywhere
            where = torch.full((len(read), branch.length + 1), len(place), device=read.device)
            where = where.scatter(1, torch.where(kept, stale, branch.length), place.expand_as(stale))[:, :-1]
            among = new.gather(1, columns)[:, None] & (columns[:, None] <= columns[..., None])
            seen = torch.cat([where[:, None] < columns[..., None], among], 2)[:, None]
            rows = torch.arange(len(read), device=read.device)
            hidden, logits = self._run(
                inputs.ids.gather(1, columns), seen, None, self._cache_of(branch, rows), range(columns.shape[1]), columns
            )
            slot, labels = new.cumsum(1)[line, at] - 1, inputs.ids[line, at + 1]
            if logits is None:
                chosen = hidden[line, slot]
                # States are much alike where the same token of the label follows the same token
                place = torch.where(inputs.label, inputs.label.cumsum(1), 0)[line, at + 1]
                follows = torch.stack([place, inputs.ids[line, at]], 1).unique(dim=0, return_inverse=True)[1]
                kind = torch.where(place > 0, follows + 1, 0)
                picked = self.logits_of(chosen[:, None], labels[:, None])[:, 0] - self._estimated_normaliser(chosen, kind)
            else:
                picked = logits[line, slot].log_softmax(-1).gather(1, labels[:, None])[:, 0]
            result[line, at + 1] = picked.to(result)
        return result

    def _estimated_normaliser(self, hidden: Float[Tensor, "n d"], kind: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """About `normaliser_of`, and just that for kind 0; states of another kind lie near one another.

        The `SHORTLIST` likeliest tokens after the mean state are summed as they are, and the log of the sum over all others
        is linearised at that state.
        """
        head, result = self.network.get_output_embeddings(), hidden.new_zeros(len(hidden), dtype=torch.float32)
        numbers, counts = kind.unique(return_counts=True)
        many = [number for number, count in zip(numbers.tolist(), counts.tolist(), strict=True) if number and count > FEW]
        if len(head.weight) <= 2 * SHORTLIST:
            many = []
        alone = ~torch.isin(kind, kind.new_tensor(many))
        result[alone] = self.normaliser_of(hidden[alone][:, None])[:, 0]
        if not many:
            return result
        means = torch.stack([hidden[kind == number].mean(0) for number in many])
        logits = self.logits_of(means[None])[0]
        top = logits.topk(SHORTLIST).indices
        rest = logits.scatter(1, top, -torch.inf)
        slopes = rest.softmax(1).to(head.weight) @ head.weight
        for i, number in enumerate(many):
            states = hidden[kind == number]
            likeliest = torch.nn.functional.linear(states, head.weight[top[i]], None if head.bias is None else head.bias[top[i]])
            others = rest[i].logsumexp(0) + _widened((states - means[i]) @ slopes[i])
            result[kind == number] = torch.logaddexp(_widened(likeliest).logsumexp(-1), others)
        return result

    @torch.no_grad()
    def says(self, inputs: Inputs) -> Bool[Tensor, " b"]:
        """Whether greedy decoding after each row's prompt says its label, token for token."""
        result = torch.ones(len(inputs.ids), dtype=torch.bool, device=self.device)
        for out in self.predictions(inputs, inputs.label):
            said = out.logits.argmax(-1)[out.row] == inputs.ids[:, out.first : out.last]
            result &= (said | ~inputs.label[:, out.first : out.last]).all(1)
        return result

    def _from_trunk(self, branch: Branch, first: int, last: int) -> Predictions:
        """What a trunk foretells of the positions from `first` to `last`."""
        at, trunk = branch.trunk.columns.index(first - 1), branch.trunk
        part = slice(at, at + last - first)
        assert trunk.logits is not None
        assert trunk.normaliser is not None
        assert trunk.hidden is not None
        return Predictions(self, trunk.hidden[:, part], branch.row, first, last, trunk.logits[:, part], trunk.normaliser[:, part])


def _widened(logits: Tensor) -> Tensor:
    """Half types are too coarse for the sum over the vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
