"""The output layer of a language model: logits and log-normalisers, only those that are read.

A log-normaliser is the log of the sum of exp(logit) over the vocabulary, so that log p(token) is
the token's logit minus the log-normaliser.

Shape letters: u last hidden states, n of them, k tokens, v vocabulary, d width.
"""

from __future__ import annotations

import copy
from math import nan
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from fuse.nn.embedding_table import EmbeddingTable
from fuse.nn.operations import OperationCounter

MAX_CPU_STATES = 256
"""How many states' logits are summed at once on a CPU, so that its caches hold a block of them."""
SHORTLIST_TOKENS = 1024
"""How many logits of each state an estimate computes."""
MAX_EXACT_STATES = 8
"""Up to how many states of one kind get their exact log-normalisers in an estimate."""


class LMHead:
    """A linear layer from last hidden states to logits, which come in float32 at least.

    Args:
        layer: a module with a `weight` [v d] and perhaps a `bias` [v].
        table: computes products with the weight.
        operations: counts them; None where nobody asks.
    """

    def __init__(
        self, layer: Any, table: EmbeddingTable, operations: OperationCounter | None = None
    ) -> None:
        self.table = table
        self._operations = operations
        self.weight: Float[Tensor, "v d"] = layer.weight
        self.bias: Float[Tensor, " v"] | None = getattr(layer, "bias", None)

    def logits(self, hidden: Float[Tensor, "*u d"]) -> Float[Tensor, "*u v"]:
        """Return the logits of all tokens."""
        self._count(hidden, len(self.weight))
        logits = self.table.inner_products(hidden)
        return widened(logits if self.bias is None else logits + self.bias)

    def some_logits(
        self, hidden: Float[Tensor, "u d"], tokens: Int[Tensor, " k"]
    ) -> Float[Tensor, "u k"]:
        """Return the logits of the same few tokens for each state."""
        self._count(hidden, len(tokens))
        bias = None if self.bias is None else self.bias[tokens]
        return widened(linear(hidden, self.weight[tokens], bias))

    def picked(
        self, hidden: Float[Tensor, "u d"], tokens: Int[Tensor, " u"]
    ) -> Float[Tensor, " u"]:
        """Return the logit of one token for each state."""
        found = (hidden * self.weight[tokens]).sum(-1)
        return widened(found if self.bias is None else found + self.bias[tokens])

    def log_normaliser(self, hidden: Float[Tensor, "u d"]) -> Float[Tensor, " u"]:
        """Return the log-normaliser of each state without holding all logits.

        No gradient goes through it.
        """
        self._count(hidden, len(self.weight))
        on_cpu = hidden.device.type == "cpu"
        count = MAX_CPU_STATES if on_cpu else max(1, len(hidden))
        return torch.cat([self._log_sum_exp(states) for states in hidden.split(count)])

    def _count(self, hidden: Float[Tensor, "*u d"], num_tokens: int) -> None:
        """Count the products of states with the weights of so many tokens."""
        if self._operations is not None:
            num_states = hidden.shape[:-1].numel()
            self._operations.add(num_states * num_tokens, hidden.shape[-1], hidden.requires_grad)

    def _log_sum_exp(self, hidden: Float[Tensor, "u d"]) -> Float[Tensor, " u"]:
        """Return the log-normaliser of each state, one block of the vocabulary after another."""
        parts = []
        for block, products in self.table.blocks(hidden):
            logits = widened(products if self.bias is None else products.add_(self.bias[block]))
            # The lowest number instead of -inf, where all of them are
            top = logits.amax(-1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
            parts.append(logits.sub_(top).exp_().sum(-1).log_() + top[:, 0])
        return torch.stack(parts).logsumexp(0)

    def estimated_log_normaliser(
        self, hidden: Float[Tensor, "u d"], kind: Int[Tensor, " u"]
    ) -> Float[Tensor, " u"]:
        """Estimate the log-normaliser of each state; exact for states of kind 0.

        Args:
            kind: equal for states that lie near one another.
        """
        result = hidden.new_zeros(len(hidden), dtype=torch.float32)
        kinds, counts = kind.unique(return_counts=True)
        large = len(self.weight) > 2 * SHORTLIST_TOKENS
        kinds = kinds[(kinds > 0) & (counts > MAX_EXACT_STATES) & large]
        exact = ~torch.isin(kind, kinds)
        result[exact] = self.log_normaliser(hidden[exact])
        if len(kinds):
            groups = [kind == one for one in kinds]
            found = self._linearised_log_normaliser([hidden[group] for group in groups])
            for group, values in zip(groups, found, strict=True):
                result[group] = values
        return result

    def _linearised_log_normaliser(
        self, groups: list[Float[Tensor, "_ d"]]
    ) -> list[Float[Tensor, " _"]]:
        """Estimate the log-normalisers of states that lie near the mean of their group.

        The `SHORTLIST_TOKENS` likeliest tokens after the mean state are summed exactly, and the log
        of the sum over all others is linearised at that state.
        """
        means = torch.stack([states.mean(0) for states in groups])
        logits = self.logits(means)
        shortlist = logits.topk(SHORTLIST_TOKENS).indices
        rest = logits.scatter(1, shortlist, -torch.inf)
        gradient = rest.softmax(1).to(self.weight) @ self.weight
        found = []
        for i, states in enumerate(groups):
            others = rest[i].logsumexp(0) + widened((states - means[i]) @ gradient[i])
            likely = self.some_logits(states, shortlist[i]).logsumexp(-1)
            found.append(torch.logaddexp(likely, others))
        return found


class LazyLogits:
    """Logits and log-probabilities of the tokens after u states, computed when they are asked for.

    Args:
        head: the output layer; None if it cannot be used apart from its network. Then `logits` are
            needed.
        hidden: the last hidden states.
        logits: those of a network that changes what its output layer returns.
        log_normaliser: what is known or estimated of it, nan elsewhere. Not read where there are
            logits.
    """

    def __init__(
        self,
        head: LMHead | None,
        hidden: Float[Tensor, "u d"],
        logits: Float[Tensor, "u v"] | None = None,
        log_normaliser: Float[Tensor, " u"] | None = None,
    ) -> None:
        self.hidden = hidden
        self._head = head
        if logits is None and hidden.requires_grad:
            logits = self._lm_head.logits(hidden)  # a gradient needs all of them
        self._logits = logits
        if logits is not None:
            log_normaliser = logits.logsumexp(-1)
        elif log_normaliser is None:
            log_normaliser = widened(hidden.new_full((len(hidden),), nan))
        self.log_normaliser = log_normaliser
        """The log-normalisers that were asked for so far; nan elsewhere."""
        self._last: tuple[Tensor, Tensor] | None = None
        """The indices of the last call of `all_log_probs`, and its answer."""

    def settle(self) -> None:
        """Compute all log-normalisers that are not known, so that what threads read is there."""
        unknown = self.log_normaliser.isnan().nonzero()[:, 0]
        if self._logits is None and len(unknown):
            self.log_normaliser[unknown] = self._lm_head.log_normaliser(self.hidden[unknown])

    def copied(self, head: LMHead | None, device: torch.device) -> LazyLogits:
        """Return the same for a copy of the network, with the output layer of that."""
        found = copy.copy(self)
        found._head, found._last = head, None
        found.hidden = self.hidden.to(device)
        found._logits = None if self._logits is None else self._logits.to(device)
        found.log_normaliser = self.log_normaliser.to(device, copy=True)
        return found

    @property
    def _lm_head(self) -> LMHead:
        assert self._head is not None
        return self._head

    def logits(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Return the logits of all tokens after some of the states."""
        if self._logits is None:
            return self._lm_head.logits(self.hidden[index])
        return self._logits[index]

    def all_log_probs(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Return log p of every token after some of the states. Do not write to it."""
        if self._logits is not None:
            return self._logits[index] - self.log_normaliser[index][:, None]
        # Whoever draws next tokens asks for it, and then again for the gradient by labels
        if self._last is None or not torch.equal(self._last[0], index):
            self._last = None  # frees its memory first
            logits = self.logits(index)
            self.log_normaliser[index] = logits.logsumexp(-1)
            self._last = index, logits.sub_(self.log_normaliser[index][:, None])
        return self._last[1]

    def log_probs(self, index: Int[Tensor, " n"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return log p of one token after each of these states."""
        if self._logits is not None:
            return self._logits[index, tokens] - self.log_normaliser[index]
        unknown = index.unique()
        unknown = unknown[self.log_normaliser[unknown].isnan()]
        if len(unknown):
            self.log_normaliser[unknown] = self._lm_head.log_normaliser(self.hidden[unknown])
        # Rows that go on from one cached prefix ask for the same pairs
        size = len(self._lm_head.weight)
        pairs, inverse = (index * size + tokens).unique(return_inverse=True)
        states = pairs // size
        logits = self._lm_head.picked(self.hidden[states], pairs % size)
        return (logits - self.log_normaliser[states])[inverse]


def widened(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: half types are too coarse to sum over the vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
