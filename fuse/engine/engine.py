"""The one door to a model: losses, gradients, estimates and predictions of token sequences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.adapters import Gradient
from fuse.engine.runner import Batch, ModelRunner, is_out_of_memory
from fuse.errors import FuseError
from fuse.losses import Loss, VectorLoss
from fuse.memo import Memo
from fuse.models import CausalLM, MaskedLM, Model, VectorModel
from fuse.models.model_files import first_line
from fuse.models.reuse_trial import MAX_ERROR, own_tokens
from fuse.nn.batch import Inputs, pad
from fuse.text.template import Encoded
from fuse.types import Ids

Key = tuple[Ids, tuple[int, int], tuple[int, int]]
"""Whatever a row's loss depends on."""
Positions = Sequence[Sequence[int]]
"""Some positions of every row."""


class Engine:
    """Evaluate token sequences with one model and one loss.

    Batching, prefix cache, packing and the memo of losses lie behind it. They change no result, but
    for rounding.

    Args:
        model: the network and its vocabulary.
        loss: what is computed of the model's forward pass.
        surroundings: the encoded text around the prompt, the prompt left out.
        batch_size: how many rows a forward pass reads at most.
        prefix_cache: False to read every row whole.
        packing: False to pad the rows of a batch instead of reading them as one.
        replicas: copies of the model that score batches beside it, each in a thread of its own.

    Raises:
        FuseError: a replica has another loss than the model.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss[Any],
        surroundings: Encoded,
        batch_size: int = 128,
        *,
        prefix_cache: bool = True,
        packing: bool = True,
        replicas: Sequence[Model] = (),
    ) -> None:
        self.model = model
        self.loss = loss
        self.surroundings = surroundings
        self.runner = ModelRunner(
            model,
            surroundings.ids[: surroundings.free[0]],
            reads_prompt=loss.reads_prompt,
            batch_size=batch_size,
            prefix_cache=prefix_cache and not loss.reads_states,
            packing=packing,
            replicas=replicas,
        )
        if replicas:
            self._check_replicas()
        self._losses: Memo[Key, float] = Memo(lambda key, _: 16 * len(key[0]))

    @torch.no_grad()
    def _check_replicas(self) -> None:
        """Let the model and its replicas read a row at the same time."""
        workers, token = self.runner.workers, next(own_tokens(self.model))
        row = self.surroundings.with_free_ids((token,))

        def loss(number: int, _: int) -> Tensor:
            model = workers.models[number]
            return self.loss(model, pad([row], model.device)).float().cpu()

        expected, *others = workers.read(range(len(workers.models)), loss)
        for own in others:
            if not torch.allclose(own, expected, rtol=MAX_ERROR, atol=MAX_ERROR, equal_nan=True):
                kind = type(self.model.network).__name__
                raise FuseError(
                    f"network={kind}: a copy of it has another loss ({float(own):.4g}, "
                    f"not {float(expected):.4g}); give scoring.workers=1"
                )

    @property
    def group_key(self) -> Hashable:
        """Equal for engines that can share forward passes.

        They are of one model, in equal surroundings, with losses that read the same of it.
        """
        loss: Hashable = id(self.loss)
        if isinstance(self.loss, VectorLoss):
            loss = type(self.loss)
        elif isinstance(self.loss, Hashable):
            loss = self.loss
        options = self.runner.prefix_cache, self.runner.packing, len(self.runner.workers.models)
        return id(self.model), self.surroundings, loss, options

    def prefill(self, rows: Sequence[Encoded]) -> None:
        """Begin a step whose candidates share their beginnings with these rows.

        Nothing is read before it is needed. The losses of earlier steps are forgotten.
        """
        EngineGroup([self]).prefill([rows])

    def clear(self) -> None:
        """Forget all that was computed: prefix cache and losses."""
        self.runner.clear()
        self._losses.clear()

    def forget_losses(self) -> None:
        """Forget the losses of earlier steps."""
        self._losses.clear()

    def score(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """Return the loss of every row, on the CPU in float32.

        Equal rows are scored once, and what was scored since the last `prefill` is not scored
        again.
        """
        return EngineGroup([self]).score([rows])[0]

    def unknown(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Return the different rows whose losses are not remembered."""
        by_key = {(row.ids, row.free, row.label): row for row in rows}
        return [row for key, row in by_key.items() if key not in self._losses]

    def remember(self, rows: Sequence[Encoded], losses: Sequence[float]) -> None:
        """Keep losses that were asked for."""
        keys = [(row.ids, row.free, row.label) for row in rows]
        self._losses.update(zip(keys, losses, strict=True))

    def recall(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """Return losses that are remembered."""
        keys = [(row.ids, row.free, row.label) for row in rows]
        return torch.tensor(self._losses.get_all(keys))

    @torch.no_grad()
    def estimate(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """Return about what `score` returns, reading of each row little more than what changed.

        It is for rows that differ in few tokens from the prefilled ones: what they have in common
        with these at both ends is taken from the prefix cache. Models without packing are scored
        exactly.
        """

        def losses(model: Model, inputs: Inputs, _: Batch) -> tuple[Tensor, ...]:
            return (self.loss(model, inputs),)

        found = self.runner.run_approximately(rows, losses)
        return self.score(rows) if found is None else found[0].float().cpu()

    def gradient(
        self,
        rows: Sequence[Encoded],
        positions: Positions,
        read: Sequence[Float[Tensor, "_ d"]] | None = None,
    ) -> Gradient:
        """Return the gradient of each row's own loss at some of its positions.

        Args:
            positions: those of each row; there may be more in one row than in another.
            read: what row i reads at its positions, instead of its own tokens' embeddings.

        Returns:
            The gradients by the embeddings there and, if the loss reads them, by the labels; on the
            model's device, in float32, zero at positions that a row lacks.
        """
        return self._value_and_gradient(rows, positions, read)[1]

    def value_and_gradient(
        self, rows: Sequence[Encoded], positions: Positions
    ) -> tuple[Float[Tensor, " n"], Gradient]:
        """Return the losses of rows, which are not scored again in this step, and `gradient` of
        them.
        """
        losses, gradient = self._value_and_gradient(rows, positions, None)
        self.remember(rows, losses.tolist())
        return losses, gradient

    def _value_and_gradient(
        self, rows: Sequence[Encoded], positions: Positions, read: Sequence[Tensor] | None
    ) -> tuple[Float[Tensor, " n"], Gradient]:
        """Return the losses of rows, and their gradients."""
        by_labels = self.loss.reads_labels(self.model)

        @torch.enable_grad()
        def gradients(model: Model, inputs: Inputs, batch: Batch) -> tuple[Tensor, ...]:
            own = [positions[i] for i in batch]
            at, real = self._padded_positions(own, max(map(len, positions)))
            leaves = self._leaves(inputs, own, None if read is None else [read[i] for i in batch])
            if by_labels:
                size = len(self.model.vocabulary)
                leaves.append(torch.zeros(*at.shape, size, device=at.device, requires_grad=True))
            labels = leaves[1] if by_labels else None
            with_leaves = replace(inputs, embeddings=leaves[0], label_positions=at, labels=labels)
            losses = self.loss(model, with_leaves)
            by_leaf = _gradients(model, losses, leaves)
            row = torch.arange(len(batch), device=at.device)[:, None]
            found = [by_leaf[0][row, at].float(), *by_leaf[1:]]
            found = [torch.where(real[..., None], one, 0.0) for one in found]
            return losses.detach().float(), *found

        losses, *found = self.runner.run(rows, gradients, [min(own) for own in positions])
        return losses.cpu(), Gradient(found[0], found[1] if by_labels else None)

    def _padded_positions(
        self, positions: Positions, width: int
    ) -> tuple[Int[Tensor, "b p"], Bool[Tensor, "b p"]]:
        """Return the positions of every row, filled up to `width` by its first, and which of them
        are its own.
        """
        device = self.model.device
        filled = [[*own, *[own[0]] * (width - len(own))] for own in positions]
        counts = torch.tensor([[len(own)] for own in positions], device=device)
        return torch.tensor(filled, device=device), torch.arange(width, device=device) < counts

    def _leaves(
        self, inputs: Inputs, positions: Positions, read: Sequence[Tensor] | None
    ) -> list[Float[Tensor, "b t d"]]:
        """Return the embeddings that a batch reads, as a leaf for the gradient."""
        embeddings = self.model.vocabulary.embedding[inputs.ids]
        for row, own in enumerate(positions if read is not None else ()):
            assert read is not None
            embeddings[row, list(own)] = read[row].to(embeddings)
        return [embeddings.requires_grad_()]

    def vector_gradient(self, rows: Sequence[Encoded]) -> Float[Tensor, "b e"] | None:
        """Return the gradient of each row's loss by the vector that the model makes of it, in
        float32.

        None where the model makes no vectors.
        """
        model, loss = self.model, self.loss
        if not isinstance(model, VectorModel) or not isinstance(loss, VectorLoss):
            return None

        @torch.enable_grad()
        def gradients(_: Model, inputs: Inputs, __: Batch) -> tuple[Tensor, ...]:
            with torch.no_grad():
                vectors = model.vector(inputs).float()
            return torch.autograd.grad(loss.at(vectors.requires_grad_()).sum(), vectors)

        distinct = list(dict.fromkeys(rows))
        index = {row: i for i, row in enumerate(distinct)}
        (found,) = self.runner.run(distinct, gradients)
        return found[[index[row] for row in rows]]

    @torch.no_grad()
    def vectors(self, rows: Sequence[Encoded]) -> Float[Tensor, "b e"]:
        """Return the vectors that a model makes of rows, on the CPU in float32."""
        model = self.model
        assert isinstance(model, VectorModel)
        (found,) = self.runner.run(rows, lambda _, inputs, __: (model.vector(inputs),))
        return found.float().cpu()

    def says(self, rows: Sequence[Encoded]) -> list[bool]:
        """Whether greedy decoding after each row's prompt says its label; False of a model that
        says nothing.
        """
        model = self.model
        if not isinstance(model, CausalLM) or not rows:
            return [False] * len(rows)
        (said,) = self.runner.run(rows, lambda _, inputs, __: (model.says(inputs),))
        return [bool(one) for one in said.tolist()]

    @torch.no_grad()
    def next_token_log_probs(self, rows: Sequence[Ids]) -> Float[Tensor, "b v"]:
        """Return log p(next token) after each row of ids, special tokens included.

        Raises:
            FuseError: an empty row, of a model that has no start token.
        """
        if not all(rows):
            raise FuseError(
                "primary.prefix='': this model has no start token, "
                "so that an empty text has no next one; give a prefix"
            )
        try:
            prefixes, index = self.runner.predictions_after(rows)
        except (MemoryError, RuntimeError) as error:
            if len(rows) == 1 or not is_out_of_memory(error):
                raise
            self.runner.clear()
            half = len(rows) // 2
            parts = [self.next_token_log_probs(part) for part in (rows[:half], rows[half:])]
            return torch.cat(parts)
        assert prefixes.logits is not None
        log_probs = prefixes.logits.all_log_probs(torch.tensor(index, device=self.model.device))
        return log_probs[:, : len(self.model.vocabulary)].float()

    @torch.no_grad()
    def masked_log_probs(
        self, rows: Sequence[Encoded], positions: Sequence[int]
    ) -> Float[Tensor, "b v"]:
        """Return a masked LM's log p(token | all others) at one position of each row."""
        model, size = self.model, len(self.model.vocabulary)
        assert isinstance(model, MaskedLM)

        def log_probs(_: Model, inputs: Inputs, batch: Batch) -> tuple[Tensor, ...]:
            at = torch.tensor([positions[i] for i in batch], device=model.device)
            found = torch.zeros(len(batch), size, device=model.device)
            for position in at.unique().tolist():
                chosen = (at == position).nonzero().flatten()
                found[chosen] = model.position_log_probs(inputs, chosen, position)[:, :size].float()
            return (found,)

        return self.runner.run(rows, log_probs)[0]


def _gradients(
    model: Model, losses: Float[Tensor, " b"], leaves: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients of the sum of losses; zero by what they do not depend on.

    Raises:
        FuseError: the network has none.
    """
    try:
        return torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise FuseError(
            f"network={type(model.network).__name__}: no gradient goes through it "
            f"({first_line(error)}); choose a method that needs none, such as random"
        ) from error


class EngineGroup:
    """Engines with equal `group_key` that share forward passes and one prefix cache, for searches
    side by side.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = list(engines)
        self.runner = engines[0].runner
        for engine in engines:
            engine.runner = self.runner

    def prefill(self, rows: Sequence[Sequence[Encoded]]) -> None:
        """Do `Engine.prefill` for each engine, with rows of its own; the cache serves all."""
        for engine in self.engines:
            engine.forget_losses()
        self.runner.prefill(list(chain.from_iterable(rows)))

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[Encoded]]) -> list[Float[Tensor, " n"]]:
        """Do `Engine.score` for each engine, with rows of its own, in shared forward passes."""
        new = [engine.unknown(own) for engine, own in zip(self.engines, rows, strict=True)]
        counts = [len(own) for own in new]
        owner = torch.arange(len(new)).repeat_interleave(torch.tensor(counts))
        asked = list(chain.from_iterable(new))
        if asked:

            def losses_of(model: Model, inputs: Inputs, batch: Batch) -> tuple[Tensor, ...]:
                return self._losses(model, inputs, owner[batch])

            (losses,) = self.runner.run(asked, losses_of, together=True)
            by_engine = losses.float().cpu().split(counts)
            for engine, own, values in zip(self.engines, new, by_engine, strict=True):
                engine.remember(own, values.tolist())
        return [engine.recall(own) for engine, own in zip(self.engines, rows, strict=True)]

    def _losses(
        self, model: Model, inputs: Inputs, owner: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"]]:
        """Return the loss of each row by the engine that owns it."""
        first = self.engines[0]
        if not isinstance(model, VectorModel) or not isinstance(first.loss, VectorLoss):
            return (first.loss(model, inputs),)
        vectors = model.vector(inputs)
        found = vectors.new_zeros(len(vectors))
        for number in owner.unique().tolist():
            own = (owner == number).to(vectors.device)
            loss = self.engines[number].loss
            assert isinstance(loss, VectorLoss)
            found[own] = loss.at(vectors[own])
        return (found,)
