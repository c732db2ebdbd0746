"""Many rows through one model: duplicates scored once, similar lengths together, bounded batches. Gradients too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter import Gradient
from fuse.losses import Loss, VectorLoss
from fuse.models import CausalLM, Model, VectorModel
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


def gradient(
    model: Model,
    loss: Loss[Any],
    rows: Sequence[Encoded],
    batch_size: int,
    places: Sequence[Sequence[int]],
    read: Sequence[Float[Tensor, "_ d"]] | None = None,
) -> Gradient:
    """The gradient of each row's own loss at its `places`, of which there may be more in one row than in another.

    By the embeddings there and, if the loss reads them, by the labels. Row i reads `read[i]` at its places instead of
    its own tokens' embeddings. Results are on the model's device, in float32, zero at places that a row lacks.
    """
    table, width = model.vocabulary.embedding, max(map(len, places))
    by_labels = loss.reads_labels(model)
    found: list[Gradient] = []
    for batch in _batches(range(len(rows)), [1] * len(rows), batch_size):
        inputs = pad([rows[i] for i in batch], model.device)
        # A row with fewer places repeats its first; what stands there is taken away below
        at = torch.tensor([[*places[i], *[places[i][0]] * (width - len(places[i]))] for i in batch], device=model.device)
        real = torch.arange(width, device=model.device) < torch.tensor([[len(places[i])] for i in batch], device=model.device)
        lines = torch.arange(len(batch), device=model.device)[:, None]
        embeddings = table[inputs.ids]
        if read is not None:
            for line, i in enumerate(batch):
                embeddings[line, list(places[i])] = read[i].to(table)
        leaves = [embeddings.requires_grad_()]
        if by_labels:
            leaves.append(torch.zeros(*at.shape, len(table), device=model.device, requires_grad=True))
        with_leaves = replace(inputs, embeddings=embeddings, label_places=at, labels=leaves[1] if by_labels else None)
        slopes = torch.autograd.grad(loss(model, with_leaves).sum(), leaves)
        kept = [torch.where(real[..., None], slope, 0.0) for slope in (slopes[0][lines, at].float(), *slopes[1:])]
        found.append(Gradient(kept[0], kept[1] if by_labels else None))
    labels = [g.labels for g in found if g.labels is not None]
    return Gradient(torch.cat([g.embedding for g in found]), torch.cat(labels) if labels else None)


def vector_gradient(model: VectorModel, loss: VectorLoss, rows: Sequence[Encoded], batch_size: int) -> Float[Tensor, "b e"]:
    """The gradient of each row's loss by the vector that the model makes of it, in float32; equal rows share a pass."""
    distinct = list(dict.fromkeys(rows))
    found = []
    for batch in _batches(range(len(distinct)), [1] * len(distinct), batch_size):
        with torch.no_grad():
            vectors = model.vector(pad([distinct[i] for i in batch], model.device)).float()
        (slope,) = torch.autograd.grad(loss.at(vectors.requires_grad_()).sum(), vectors)
        found.append(slope)
    line = {row: i for i, row in enumerate(distinct)}
    return torch.cat(found)[[line[row] for row in rows]]


def says(model: CausalLM, rows: Sequence[Encoded], batch_size: int) -> Iterator[bool]:
    """Whether greedy decoding after each row's prompt says its label."""
    for batch in _batches(range(len(rows)), [1] * len(rows), batch_size):
        yield from model.says(pad([rows[i] for i in batch], model.device)).tolist()


def _batches(order: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """At most `size` rows at a time, none much longer than the first of its batch, so that padding stays small."""
    start = 0
    while start < len(order):
        limit = 1.25 * lengths[order[start]] + 1
        end = next((i for i in range(start, len(order)) if i - start == size or lengths[order[i]] > limit), len(order))
        yield order[start:end]
        start = end
