"""Many rows through one model: what is known is not read again, similar work together, bounded batches. Gradients too."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter import Gradient
from fuse.batches import PACK, batches, packs
from fuse.errors import FuseError
from fuse.losses import Loss, VectorLoss
from fuse.models import CausalLM, Model, VectorModel
from fuse.roots import Overlap, Roots, known_places
from fuse.types import Branch, Ids, Inputs, Trunk
from fuse.vocabulary import MEMO, Encoded, pad

log = logging.getLogger(__name__)

WORTH = 2
"""From how many tokens on it pays to go on from what was read, rather than read it again."""
PASS = {"cpu": 5e8, "cuda": 5e11}
"""About how many operations take as long as what a forward pass costs beside its operations."""


Reuse = tuple[Trunk | None, list[Overlap]]
"""A trunk, and what each row need not read since it has that in common with it."""
NOTHING = Overlap(0, 0, 0, 0, 0)
"""What rows have in common where there is no trunk."""


class Scorer:
    """One model and one loss, for rows that stand in the same surroundings.

    A causal model reads the beginning that all rows share once, and the rows that a search expands once (`expand`);
    what candidates share with these is not read again. It changes no result, but for rounding.
    """

    def __init__(self, model: Model, loss: Loss[Any], surroundings: Encoded, batch_size: int = 128) -> None:
        self.model = model
        self.loss = loss
        self.batch_size = batch_size
        self._surroundings = surroundings
        self._prefix = surroundings.ids[: surroundings.free[0]]
        self._first = max(len(self._prefix) - 1, 0) if loss.reads_prompt else None
        """After which position a trunk has to foretell; None after its last ones alone."""
        self._spare = PASS.get(model.device.type, PASS["cuda"]) / (2 * model.size)
        """How many tokens may be read in vain in each batch, since another pass would cost as much."""
        self._losses: OrderedDict[tuple[Any, ...], float] = OrderedDict()
        self._fixed = Roots([self._prefix] if self._prefix else [], self._prefix)
        self._roots = Roots([])

    @property
    def alike(self) -> Hashable:
        """Equal for scorers that can share forward passes: of one model, in equal surroundings, with losses that read the same."""
        loss = type(self.loss) if isinstance(self.loss, VectorLoss) else self.loss
        return id(self.model), self._surroundings, loss if isinstance(loss, Hashable) else id(loss)

    def expand(self, rows: Sequence[Encoded]) -> None:
        """What comes next shares its beginnings with these rows. Nothing is read before it is needed."""
        expand_together([self], [rows])

    def score(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """The loss of every row, on the CPU in float32; what was scored lately is not scored again."""
        return score_together([self], [rows])[0]

    @torch.no_grad()
    def estimate(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """About what `score` says of rows that few tokens set apart from the expanded ones; exactly that of other models.

        A model that `packs` does not read what the rows have in common with the expanded ones by `fuse.roots.Overlap`: there
        stands what it has read of the latter, their keys, values and predictions.
        """
        if not self.model.packs or not self._roots.rows or not rows:
            return self.score(rows)
        self._grow(self._roots, self._first)
        if self._roots.trunk is None or not self._roots.trunk.states:
            return self.score(rows)
        reuse = self._roots.trunk, self._roots.overlaps(rows)
        (found,) = self._map(rows, reuse, lambda inputs, _: (self.loss(self.model, inputs),), guessed=True)
        return found.float().cpu()

    def gradient(
        self, rows: Sequence[Encoded], places: Sequence[Sequence[int]], read: Sequence[Float[Tensor, "_ d"]] | None = None
    ) -> Gradient:
        """The gradient of each row's own loss at its `places`, of which there may be more in one row than in another.

        By the embeddings there and, if the loss reads them, by the labels. Row i reads `read[i]` at its places instead of
        its own tokens' embeddings. Results are on the model's device, in float32, zero at places that a row lacks.
        The loss of a row that reads its own tokens is known then, and is not scored again.
        """
        table, width = self.model.vocabulary.embedding, max(map(len, places))
        by_labels = self.loss.reads_labels(self.model)

        def slopes(inputs: Inputs, batch: Sequence[int]) -> tuple[Tensor, ...]:
            # A row with fewer places repeats its first; what stands there is taken away below
            at = torch.tensor([[*places[i], *[places[i][0]] * (width - len(places[i]))] for i in batch], device=table.device)
            real = torch.arange(width, device=table.device) < torch.tensor([[len(places[i])] for i in batch], device=table.device)
            lines = torch.arange(len(batch), device=table.device)[:, None]
            embeddings = table[inputs.ids]
            if read is not None:
                for line, i in enumerate(batch):
                    embeddings[line, list(places[i])] = read[i].to(table)
            leaves = [embeddings.requires_grad_()]
            if by_labels:
                leaves.append(torch.zeros(*at.shape, len(table), device=table.device, requires_grad=True))
            with_leaves = replace(inputs, embeddings=embeddings, label_places=at, labels=leaves[1] if by_labels else None)
            losses = self.loss(self.model, with_leaves)
            found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
            own = (embeddings == table[inputs.ids]).flatten(1).all(1)
            for i, loss, known in zip(batch, losses.tolist(), own.tolist(), strict=True):
                if known:
                    self._losses.setdefault(_key(rows[i]), loss)
            return tuple(torch.where(real[..., None], slope, 0.0) for slope in (found[0][lines, at].float(), *found[1:]))

        found = self._map(rows, self._reuse(rows, [min(at) for at in places]), slopes)
        return Gradient(found[0], found[1] if by_labels else None)

    def vector_gradient(self, rows: Sequence[Encoded]) -> Float[Tensor, "b e"] | None:
        """The gradient of each row's loss by the vector that the model makes of it, in float32; None where it has none."""
        model, loss = self.model, self.loss
        if not isinstance(model, VectorModel) or not isinstance(loss, VectorLoss):
            return None

        def slopes(inputs: Inputs, _: Sequence[int]) -> tuple[Tensor, ...]:
            with torch.no_grad():
                vectors = model.vector(inputs).float()
            return torch.autograd.grad(loss.at(vectors.requires_grad_()).sum(), vectors)

        distinct = list(dict.fromkeys(rows))
        line = {row: i for i, row in enumerate(distinct)}
        (found,) = self._map(distinct, self._reuse(distinct), slopes)
        return found[[line[row] for row in rows]]

    def says(self, rows: Sequence[Encoded]) -> list[bool]:
        """Whether greedy decoding after each row's prompt says its label; False of a model that says nothing."""
        model = self.model
        if not isinstance(model, CausalLM) or not rows:
            return [False] * len(rows)
        (said,) = self._map(rows, self._reuse(rows), lambda inputs, _: (model.says(inputs),))
        return [bool(one) for one in said.tolist()]

    @torch.no_grad()
    def next_token_log_probs(self, rows: Sequence[Ids]) -> Float[Tensor, "b v"]:
        """log p(next token) after each row of ids, special tokens included.

        Raises:
            FuseError: an empty row, of a model that has no start token.
        """
        if not all(rows):
            raise FuseError("primary.prefix='': this model has no start token, so that an empty text has no next one; give a prefix")
        roots = self._roots
        if not roots.hold(rows):
            # A row that begins another one is read off the other's pass
            longest = sorted(set(rows), key=len, reverse=True)
            roots = Roots(
                [row for i, row in enumerate(longest) if not any(other[: len(row)] == row for other in longest[:i])], self._prefix
            )
        self._grow(roots, min([len(row) - 1 for row in rows] + ([] if self._first is None else [self._first])))
        trunk = roots.trunk
        assert trunk is not None
        assert trunk.contexts is not None
        line, _ = roots.shared(rows, [len(row) for row in rows])
        contexts = [i * len(trunk.columns) + trunk.columns.index(len(row) - 1) for i, row in zip(line, rows, strict=True)]
        return trunk.contexts.all_log_probs(torch.tensor(contexts, device=self.model.device)).float()

    def _map(
        self,
        rows: Sequence[Encoded],
        reuse: Reuse,
        function: Callable[[Inputs, Sequence[int]], tuple[Tensor, ...]],
        guessed: bool = False,
    ) -> tuple[Tensor, ...]:
        """`function` of batches of rows, as inputs and as indices; its results in the rows' order.

        What rows do not read is said by `reuse`, and whether it is only about right by `guessed`. A batch that does not fit
        into memory is halved, and so are all that follow.
        """
        trunk, overlaps = reuse
        sizes = [len(row.ids) - overlap.length for row, overlap in zip(rows, overlaps, strict=True)]
        if trunk is not None and self.model.packs:
            todo = packs(sizes, self.batch_size, PACK.get(self.model.device.type, PACK["cuda"]))
        else:
            todo = batches(sizes, self.batch_size, self._spare)
        order: list[int] = []
        found: list[tuple[Tensor, ...]] = []
        while todo:
            batch = todo.pop(0)
            try:
                inputs, own = pad([rows[i] for i in batch], self.model.device), [overlaps[i] for i in batch]
                if trunk is not None:
                    inputs = replace(inputs, branch=self._branch(trunk, own, inputs.ids.shape[1], guessed))
                found.append(function(inputs, batch))
                order += batch
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_size = (len(batch) + 1) // 2
                log.warning("out of memory with %d rows at once; going on with batch_size=%d", len(batch), self.batch_size)
                todo = [part[i : i + self.batch_size] for part in [batch, *todo] for i in range(0, len(part), self.batch_size)]
        back = torch.tensor(order).argsort().to(found[0][0].device)
        return tuple(torch.cat(parts)[back] for parts in zip(*found, strict=True))

    def _reuse(self, rows: Sequence[Encoded], limits: Sequence[int] | None = None) -> Reuse:
        """A trunk, if there is one that pays, and what each row begins with as it does, of at most `limits[i]` tokens.

        Without limits of all tokens but the prompt's last one, which is always read: what it is told by ends there.
        """
        if self.model.branches:
            limits = [max(row.free[1] - 1, 0) for row in rows] if limits is None else limits
            for roots in (self._roots, self._fixed):
                overlaps = roots.beginnings([row.ids for row in rows], limits)
                saved = sum(overlap.length for overlap in overlaps if overlap.length >= WORTH)
                # What the rows save has to outweigh what the trunk costs, unless it is there already
                if saved and (roots.trunk is not None or saved >= self._cost(roots)):
                    self._grow(roots, self._first)
                    if roots.trunk is not None and roots.trunk.states:
                        return roots.trunk, overlaps
        return None, [NOTHING] * len(rows)

    @torch.no_grad()
    def _grow(self, roots: Roots, first: int | None) -> None:
        """Read the roots, unless that is done, and keep what is foretold after position `first` and all that follow.

        None keeps the last ones alone.
        """
        first = _first_kept(roots, first)
        if roots.trunk is not None and roots.trunk.columns[0] <= first:
            return
        rows = [Encoded(ids, (), (0, 0), (0, 0)) for ids in roots.rows]
        inputs = pad(rows, self.model.device)
        trunk, overlaps = self._stem(roots, first)
        if trunk is not None:
            inputs = replace(inputs, branch=self._branch(trunk, overlaps, inputs.ids.shape[1]))
        roots.trunk = self.model.read(inputs, range(first, inputs.ids.shape[1]))

    def _stem(self, roots: Roots, first: int) -> Reuse:
        """Where roots branch off themselves: from those before them, which the search has expanded, or from the prefix."""
        if not self.model.branches:
            return None, [NOTHING] * len(roots.rows)
        limits = [len(row) - 1 for row in roots.rows]
        if roots is not self._fixed and len(self._prefix) >= WORTH:
            self._grow(self._fixed, None)
        for older in (roots.before, self._fixed):
            if older is None or older is roots or older.trunk is None or not older.trunk.states:
                continue
            # What is to be foretold within the stem has to be known there
            known = older.trunk.columns[0] <= first
            overlaps = older.beginnings(roots.rows, limits if known else [min(limit, first) for limit in limits])
            if min(overlap.length for overlap in overlaps) >= WORTH:
                return older.trunk, overlaps
        return None, [NOTHING] * len(roots.rows)

    def _cost(self, roots: Roots) -> int:
        """How many tokens are read to make a trunk of these roots."""
        _, overlaps = self._stem(roots, _first_kept(roots, self._first))
        return sum(map(len, roots.rows)) - sum(overlap.length for overlap in overlaps)

    def _branch(self, trunk: Trunk, overlaps: Sequence[Overlap], width: int, guessed: bool = False) -> Branch:
        """Where rows with these overlaps go on from, in a batch of this width."""
        lines, places = torch.tensor([overlap.root for overlap in overlaps]), known_places(overlaps, width)
        return Branch(trunk, lines.to(self.model.device), places.to(self.model.device), guessed)


def expand_together(scorers: Sequence[Scorer], rows: Sequence[Sequence[Encoded]]) -> None:
    """`Scorer.expand` of scorers that are alike, each for rows of its own: what is read of them is there for all."""
    beginnings = [ids for ids in dict.fromkeys(row.up_to_prompt().ids for of in rows for row in of) if ids]
    present = scorers[0]._roots
    if beginnings != present.rows or any(scorer._roots is not present for scorer in scorers):
        older = present if present.trunk is not None else present.before
        if older is not None:
            older.before = None
        roots = Roots(beginnings, scorers[0]._prefix, older)
        for scorer in scorers:
            scorer._roots, scorer._fixed = roots, scorers[0]._fixed


@torch.no_grad()
def score_together(scorers: Sequence[Scorer], rows: Sequence[Sequence[Encoded]]) -> list[Float[Tensor, " n"]]:
    """`Scorer.score` of scorers that are alike, each for rows of its own, in shared forward passes."""
    keys = [[_key(row) for row in of] for of in rows]
    new = {
        (number, key): row
        for number, scorer in enumerate(scorers)
        for key, row in zip(keys[number], rows[number], strict=True)
        if key not in scorer._losses
    }
    owners = torch.tensor([number for number, _ in new])

    def losses(inputs: Inputs, batch: Sequence[int]) -> tuple[Tensor, ...]:
        model, loss = scorers[0].model, scorers[0].loss
        if not isinstance(model, VectorModel) or not isinstance(loss, VectorLoss):
            return (loss(model, inputs),)
        vectors, owner = model.vector(inputs), owners[batch]
        found = vectors.new_zeros(len(vectors))
        for number in owner.unique().tolist():
            own = (owner == number).to(vectors.device)
            found[own] = scorers[number].loss.at(vectors[own])
        return (found,)

    if new:
        asked = list(new.values())
        (values,) = scorers[0]._map(asked, scorers[0]._reuse(asked), losses)
        for (number, key), value in zip(new, values.float().tolist(), strict=True):
            scorers[number]._losses[key] = value
    found = []
    for scorer, own in zip(scorers, keys, strict=True):
        found.append(torch.tensor([scorer._losses[key] for key in own]))
        while len(scorer._losses) > MEMO:
            scorer._losses.popitem(last=False)
    return found


def _first_kept(roots: Roots, first: int | None) -> int:
    """`first`; in the place of None the position of the last token of the shortest root."""
    return min(map(len, roots.rows)) - 1 if first is None else max(first, 0)


def _key(row: Encoded) -> tuple[Ids, tuple[int, int], tuple[int, int]]:
    """Whatever a row's loss depends on."""
    return row.ids, row.free, row.label
