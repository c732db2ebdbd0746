"""The output layer of a language model: logits and normalisers of last hidden states, and no more of them than is read."""

from __future__ import annotations

from math import nan
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from fuse.products import Table

LINES = 256
"""How many states are summed over the vocabulary at once on a CPU, whose cache holds their logits piece by piece."""
SHORTLIST = 1024
"""How many logits of each state an estimate looks at."""
ALONE = 8
"""Up to how many states that are alike are summed over the vocabulary as they are."""


class OutputLayer:
    """A linear layer from last hidden states to logits, which come in float32 at least."""

    def __init__(self, layer: Any, table: Table) -> None:
        self.table = table
        self.weight: Float[Tensor, "v d"] = layer.weight
        self.bias: Float[Tensor, " v"] | None = getattr(layer, "bias", None)

    def logits(self, hidden: Float[Tensor, "*u d"]) -> Float[Tensor, "*u v"]:
        logits = self.table.inner_products(hidden)
        return widened(logits if self.bias is None else logits + self.bias)

    def some_logits(self, hidden: Float[Tensor, "u d"], tokens: Int[Tensor, " k"]) -> Float[Tensor, "u k"]:
        """Those of the same few tokens for each state."""
        return widened(linear(hidden, self.weight[tokens], None if self.bias is None else self.bias[tokens]))

    def picked(self, hidden: Float[Tensor, "u d"], tokens: Int[Tensor, " u"]) -> Float[Tensor, " u"]:
        """The logit of one token for each state."""
        found = (hidden * self.weight[tokens]).sum(-1)
        return widened(found if self.bias is None else found + self.bias[tokens])

    def normaliser(self, hidden: Float[Tensor, "u d"]) -> Float[Tensor, " u"]:
        """log of the sum of exp(logits) over the vocabulary, without ever holding all logits. No gradient goes through it."""
        found = []
        for states in hidden.split(LINES if hidden.device.type == "cpu" else max(1, len(hidden))):
            parts = []
            for part, block in self.table.pieces(states):
                logits = widened(block if self.bias is None else block.add_(self.bias[part]))
                # The least number in the place of -inf, where all of them are
                top = logits.amax(-1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
                parts.append(logits.sub_(top).exp_().sum(-1).log_() + top[:, 0])
            found.append(torch.stack(parts).logsumexp(0))
        return torch.cat(found)

    def estimated_normaliser(self, hidden: Float[Tensor, "u d"], kind: Int[Tensor, " u"]) -> Float[Tensor, " u"]:
        """About `normaliser`, and just that for kind 0; states of another kind lie near one another.

        The `SHORTLIST` likeliest tokens after the mean state are summed as they are, and the log of the sum over all others
        is linearised at that state.
        """
        result = hidden.new_zeros(len(hidden), dtype=torch.float32)
        numbers, counts = kind.unique(return_counts=True)
        worth = (numbers > 0) & (counts > ALONE) & (len(self.weight) > 2 * SHORTLIST)
        alone = ~torch.isin(kind, numbers[worth])
        result[alone] = self.normaliser(hidden[alone])
        if not worth.any():
            return result
        means = torch.stack([hidden[kind == number].mean(0) for number in numbers[worth]])
        logits = self.logits(means)
        top = logits.topk(SHORTLIST).indices
        rest = logits.scatter(1, top, -torch.inf)
        slopes = rest.softmax(1).to(self.weight) @ self.weight
        for i, number in enumerate(numbers[worth]):
            states = hidden[kind == number]
            others = rest[i].logsumexp(0) + widened((states - means[i]) @ slopes[i])
            result[kind == number] = torch.logaddexp(self.some_logits(states, top[i]).logsumexp(-1), others)
        return result


class Contexts:
    """Last hidden states after u different contexts; what follows from them is computed when it is asked for.

    `logits` are those of a network that does something to what its output layer returns; without them `normaliser` is what is
    known of it, or guessed, and nan elsewhere.
    """

    def __init__(
        self,
        output: OutputLayer,
        hidden: Float[Tensor, "u d"],
        logits: Float[Tensor, "u v"] | None = None,
        normaliser: Float[Tensor, " u"] | None = None,
    ) -> None:
        self.hidden = hidden
        self._output = output
        # A gradient wants all logits anyway
        self._logits = output.logits(hidden) if logits is None and hidden.requires_grad else logits
        if self._logits is not None:
            normaliser = self._logits.logsumexp(-1)
        self.normaliser = widened(hidden.new_full((len(hidden),), nan)) if normaliser is None else normaliser
        """log of the sum of exp(logits) over the vocabulary, as far as it was asked for; nan elsewhere."""
        self._asked: tuple[Tensor, Tensor] | None = None
        """Contexts that were asked for all tokens last, and the answer."""

    def logits(self, contexts: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        return self._output.logits(self.hidden[contexts]) if self._logits is None else self._logits[contexts]

    def all_log_probs(self, contexts: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """log p of every token after these contexts; not to be written to."""
        if self._logits is not None:
            return self._logits[contexts] - self.normaliser[contexts][:, None]
        # Whoever draws the next tokens asks for it, and so does the gradient by them
        if self._asked is None or not torch.equal(self._asked[0], contexts):
            self._asked = None  # so that its memory can be had
            logits = self.logits(contexts)
            self.normaliser[contexts] = logits.logsumexp(-1)
            self._asked = contexts, logits.sub_(self.normaliser[contexts][:, None])
        return self._asked[1]

    def log_probs(self, contexts: Int[Tensor, " n"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log p of one token after each of these contexts."""
        if self._logits is not None:
            return self._logits[contexts, tokens] - self.normaliser[contexts]
        unknown = contexts.unique()
        unknown = unknown[self.normaliser[unknown].isnan()]
        if len(unknown):
            self.normaliser[unknown] = self._output.normaliser(self.hidden[unknown])
        # Rows that go on from one trunk ask for the same again and again
        size = len(self._output.weight)
        pairs, which = (contexts * size + tokens).unique(return_inverse=True)
        after = pairs // size
        return (self._output.picked(self.hidden[after], pairs % size) - self.normaliser[after])[which]


def widened(logits: Tensor) -> Tensor:
    """Half types are too coarse for the sum over the vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
