"""Many rows through one model: duplicates scored once, similar lengths together, bounded batches. Gradients too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter import Gradient
from fuse.losses import Loss
from fuse.models import Model
from fuse.vocabulary import Encoded, pad


@torch.no_grad()
def score(model: Model, loss: Loss[Any], rows: Sequence[Encoded], batch_size: int) -> Float[Tensor, " n"]:
    """The loss of every row, on the CPU in float32; equal rows are scored once."""
    distinct = {row.ids: i for i, row in reversed(list(enumerate(rows)))}
    # Stable by length: little padding, and rows of one parent stay together
    order = sorted(distinct.values(), key=lambda i: (len(rows[i].ids), i))
    losses: dict[tuple[int, ...], float] = {}
    for batch in _batches(order, [len(row.ids) for row in rows], batch_size):
        values = loss(model, pad([rows[i] for i in batch], model.device))
        losses.update(zip((rows[i].ids for i in batch), values.float().tolist(), strict=True))
    return torch.tensor([losses[row.ids] for row in rows])


def gradient(model: Model, loss: Loss[Any], rows: Sequence[Encoded], batch_size: int, neutral: Sequence[int] | None = None) -> Gradient:
    """The gradient of each row's own loss by its input embeddings and, if the loss reads them, by its labels.

    `neutral[i]` is a position of row i at which the model reads the mean token embedding. Result on the model's device,
    in float32, zero at padding.
    """
    width = max(len(row.ids) for row in rows)
    table = model.vocabulary.embedding
    by_embedding = table.new_zeros(len(rows), width, table.shape[1], dtype=torch.float32)
    by_labels = table.new_zeros(len(rows), width, len(table), dtype=torch.float32) if loss.reads_labels else None
    for batch in _batches(range(len(rows)), [width] * len(rows), batch_size):
        inputs = pad([rows[i] for i in batch], model.device)
        embeddings = table[inputs.ids]
        if neutral is not None:
            embeddings[torch.arange(len(batch)), [neutral[i] for i in batch]] = model.vocabulary.mean_embedding
        embeddings.requires_grad_()
        leaves = [embeddings]
        if loss.reads_labels:
            leaves.append(torch.zeros(*inputs.ids.shape, len(table), device=model.device, requires_grad=True))
        values = loss(model, replace(inputs, embeddings=embeddings, labels=leaves[1] if loss.reads_labels else None))
        found = torch.autograd.grad(values.sum(), leaves)
        place = slice(batch[0], batch[-1] + 1), slice(inputs.ids.shape[1])
        by_embedding[place] = found[0].float()
        if by_labels is not None:
            by_labels[place] = found[1]
    return Gradient(by_embedding, by_labels)


def _batches(order: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """At most `size` rows at a time, none much longer than the first of its batch, so that padding stays small."""
    start = 0
    while start < len(order):
        limit = 1.25 * lengths[order[start]] + 1
        end = next((i for i in range(start, len(order)) if i - start == size or lengths[order[i]] > limit), len(order))
        yield order[start:end]
        start = end
