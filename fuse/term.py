"""One summand of the objective: a model, a loss, the text around the prompt, and a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fuse.adapters import Adapter, Gradient
from fuse.engine import Engine
from fuse.errors import FuseError
from fuse.losses import Loss
from fuse.memo import Memo
from fuse.models import CausalLM, Model
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.text.template import AUTO, SPACE, Encoded, Template
from fuse.types import Ids


class Term:
    """One summand: a model, a loss on it, the fixed text around the prompt, and a weight.

    Args:
        model: the network and its vocabulary.
        loss: what is minimised.
        weight: the factor of the loss in the sum.
        prefix: fixed text before the prompt.
        suffix: that after it.
        start: the special tokens before all: "auto", what the tokenizer itself puts before a text,
            once where the prefix begins with it; "none"; or a text that spells them. Where the
            prompt's own likelihood is read, and nothing else stands before it, "auto" is BOS.
        join: "space" puts single spaces between prefix, prompt, suffix and label where words would
            touch; "none" nothing at all.
        adapter: carries a secondary's gradient to the primary's tokens; None where their tokens are
            the same.
        batch_size: how many rows a forward pass reads at most.
        precise: the same model in a finer type; it scores the best candidates again.
        prefix_cache: False to read every row whole; changes no result.
        packing: False to pad the rows of a batch; changes no result.
        replicas: copies of the model (`fuse.replica`) that score batches beside it.

    Raises:
        FuseError: prefix, suffix and label leave no room for a prompt; a weight that is no number
            of float32; a `start` that leaves nothing from which the first token is predicted.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss[Any],
        *,
        weight: float = 1.0,
        prefix: str = "",
        suffix: str = "",
        start: str = AUTO,
        join: str = SPACE,
        adapter: Adapter | None = None,
        batch_size: int = 128,
        precise: Model | None = None,
        prefix_cache: bool = True,
        packing: bool = True,
        replicas: Sequence[Model] = (),
    ) -> None:
        self.model = model
        self.loss = loss
        self.weight = _checked_weight(weight)
        predicts_first = isinstance(model, CausalLM) and loss.reads_prompt
        self.template = Template(prefix, suffix, loss.label, start, join, predicts_first)
        self.adapter = adapter
        self._encoded: Memo[str, Encoded] = Memo(lambda prompt, e: len(prompt) + e.num_bytes)
        self.surroundings = self.template.surroundings(self.vocabulary)
        if start != AUTO and predicts_first and self.surroundings.free == (0, 0):
            raise FuseError(
                f"start={start}: nothing then stands before the prompt, from which its first token "
                "is predicted; give start=auto, or a prefix"
            )

        def engine(model: Model, replicas: Sequence[Model] = ()) -> Engine:
            options: dict[str, Any] = {"prefix_cache": prefix_cache, "packing": packing}
            options["replicas"] = replicas
            return Engine(model, loss, self.surroundings, batch_size, **options)

        self.engine = engine(model, replicas)
        self.precise = self.engine if precise is None else engine(precise)
        fixed, limit = len(self.surroundings.ids), self.vocabulary.max_length
        if fixed >= limit:
            raise FuseError(
                f"prefix, suffix, label: they take {fixed} of the {limit} tokens that "
                "the model reads; shorten them"
            )
        if not self.vocabulary.knows(self.surroundings.ids):
            raise FuseError(
                f"prefix, suffix, label: they hold token {max(self.surroundings.ids)}, and the "
                f"network knows {len(self.vocabulary)} tokens; leave its special token out"
            )

    @property
    def max_free_tokens(self) -> int:
        """How many tokens of a prompt fit the model's context."""
        return self.vocabulary.max_length - len(self.surroundings.ids)

    @property
    def vocabulary(self) -> EmbeddedVocabulary:
        """The model's vocabulary."""
        return self.model.vocabulary

    def clear(self) -> None:
        """Forget what was computed of any text."""
        self.engine.clear()
        self.precise.clear()

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """Return what this term's model reads for each prompt."""
        make = self.template.encode
        return self._encoded.look_up(list(prompts), lambda new: make(self.vocabulary, new))

    def with_surroundings(self, rows: Sequence[Ids]) -> list[Encoded]:
        """Return rows of the term's own tokens within the fixed text.

        Character spans are not known.
        """
        return [self.surroundings.with_free_ids(tuple(row)) for row in rows]

    def fits(self, encoded: Sequence[Encoded]) -> list[bool]:
        """Whether each row has no more tokens than the model reads, and none that it lacks."""
        vocabulary, found = self.vocabulary, []
        for row in encoded:
            found.append(len(row.ids) <= vocabulary.max_length and vocabulary.knows(row.ids))
        return found

    def score(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """Return the loss of every row, without the weight."""
        return self.engine.score(rows)

    def gradient(
        self,
        rows: Sequence[Encoded],
        positions: Sequence[Sequence[int]],
        read: Sequence[Float[Tensor, "_ d"]] | None = None,
    ) -> Gradient:
        """Return gradients of the rows' losses at `positions`, as `Engine.gradient` has them."""
        return self.engine.gradient(rows, positions, read)

    def vector_gradient(self, rows: Sequence[Encoded]) -> Float[Tensor, "b e"] | None:
        """Return gradients of the rows' losses by the model's vectors; None where it makes none."""
        return self.engine.vector_gradient(rows)

    def token_gradient(
        self, rows: Sequence[Ids], positions: Sequence[int], point: str
    ) -> Float[Tensor, "b v"]:
        """Return the gradient by one-hot tokens: as input and, where they act as such, as labels.

        Args:
            rows: the term's own free tokens.
            positions: the position of the token in each row.
            point: what the model reads there, one of `fuse.nn.embedding_table.POINTS`.
        """
        encoded = self.with_surroundings(rows)
        at = [e.free[0] + position for e, position in zip(encoded, positions, strict=True)]
        if point == "current":
            gradient, row, column = self._gradient_at_own_tokens(encoded, at)
        else:
            read = [self.vocabulary.point(point)[None]] * len(rows)
            gradient = self.gradient(encoded, [[position] for position in at], read)
            row, column = torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.long)
        table = self.vocabulary.table
        by_embedding = gradient.embedding[row, column].to(table.weight)
        by_token = by_embedding.new_zeros(len(rows), len(table.weight))
        # At the end of a text nobody reads on
        if by_embedding.any():
            self.model.operations.add(by_token.numel(), by_embedding.shape[-1])
            by_token = table.inner_products(by_embedding)
        by_token = by_token.float()
        return by_token if gradient.labels is None else by_token + gradient.labels[row, column]

    def _gradient_at_own_tokens(
        self, encoded: Sequence[Encoded], positions: Sequence[int]
    ) -> tuple[Gradient, Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Return one gradient for all positions of equal rows, and where each asked one stands in
        it.
        """
        groups: dict[Encoded, list[int]] = {}
        row, column = [], []
        for e, position in zip(encoded, positions, strict=True):
            own = groups.setdefault(e, [])
            if position not in own:
                own.append(position)
            row.append(list(groups).index(e))
            column.append(own.index(position))
        gradient = self.gradient(list(groups), list(groups.values()))
        return gradient, torch.tensor(row), torch.tensor(column)

    def embedding_gradient(
        self, rows: Sequence[Ids], embeddings: Float[Tensor, "b s d"] | None
    ) -> Float[Tensor, "b s d"]:
        """Return the gradient at continuous prompts.

        Args:
            rows: the tokens nearest to them, which act as labels.
            embeddings: the continuous prompts; None for the rows' own embeddings, whose losses are
                then remembered.
        """
        encoded = self.with_surroundings(rows)
        positions = [range(*e.free) for e in encoded]
        if embeddings is None:
            gradient = self.engine.value_and_gradient(encoded, positions)[1]
        else:
            gradient = self.gradient(encoded, positions, list(embeddings))
        if gradient.labels is None:
            return gradient.embedding
        flat = self.vocabulary.as_embedding_gradient(gradient.labels.flatten(0, 1))
        return gradient.embedding + flat.reshape(gradient.embedding.shape)


def _checked_weight(weight: float) -> float:
    """Return a weight; raise FuseError where float32, in which losses are summed, has no such
    number.
    """
    largest = torch.finfo(torch.float32).max
    if not abs(weight) <= largest:
        raise FuseError(f"weight={weight}: expected a number of at most {largest:.1e} in size")
    return float(weight)
