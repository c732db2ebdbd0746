"""The FUSE adapter of arXiv 2408.04816: a linear map between two embedding tables, word by word, under the t-product.

Words of j source and k target tokens are tubes of length m = max(j, k), the shorter side padded with zero slices at its
end: X [n, d_source, m], Y [n, d_target, m]. One map G per case (j, k) solves X * G ~ Y in least squares. The backward
pass is the adjoint: the gradient g of a word's target tokens becomes g * G^T, and each word takes its own slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter.base import Adapter, Progress, Target, in_running_text, words_at
from fuse.errors import FuseError
from fuse.models import Model
from fuse.tproduct import NormalEquations, tproduct, ttranspose
from fuse.types import Ids
from fuse.vocabulary import Vocabulary

Case = tuple[int, int]
"""Numbers of source and target tokens of a word: the key of a map, when it is fitted and when it is looked up."""

BATCH = 1024


class FuseAdapter(Adapter):
    """`jacobians[j, k]` is G [d_source, d_target, max(j, k)].

    Rule for words whose case has no map (too long, or never seen): the nearest case by |j - j'| + |k - k'|; target
    tokens beyond k' have no say, source tokens beyond j' take the gradient of slice j' - 1.
    """

    defaults: ClassVar[dict[str, int | float]] = {"max_subtokens": 4, "max_examples_per_case": 100_000, "ridge": 0.1}

    def __init__(self, source: Vocabulary, target: Vocabulary, jacobians: dict[Case, Float[Tensor, "d p m"]]) -> None:
        super().__init__(source, target)
        device = target.embedding.device
        self.jacobians = {case: jacobian.float().to(device) for case, jacobian in jacobians.items()}

    @classmethod
    def fit(cls, source: Vocabulary, target: Model, words: Iterable[str] = (), progress: Progress = iter, **settings: float) -> FuseAdapter:
        """One pass over the words; each is read as in running text, with its leading space.

        Settings: `max_subtokens`, the most tokens, on either side, of a word with a map of its own;
        `max_examples_per_case`, the words that a map is fitted on; `ridge`, as `NormalEquations.solve` takes it.

        Raises:
            FuseError: no word can be used.
        """
        options = {**cls.defaults, **settings}
        max_subtokens, max_examples = int(options["max_subtokens"]), int(options["max_examples_per_case"])
        cases: dict[Case, NormalEquations] = {}
        stream = iter(progress(list(words)))
        while batch := list(islice(stream, BATCH)):
            for (j, k), pairs in _by_case(source, target.vocabulary, batch).items():
                m = max(j, k)
                if m > max_subtokens:
                    continue
                if (j, k) not in cases:
                    cases[j, k] = NormalEquations(source.embedding.shape[1], target.vocabulary.embedding.shape[1], m)
                kept = pairs[: max_examples - cases[j, k].examples]
                if kept:
                    cases[j, k].add(_tubes(source, [x for x, _ in kept], m), _tubes(target.vocabulary, [y for _, y in kept], m))
        if not cases:
            raise FuseError(f"adapter.max_subtokens={max_subtokens}: no word of the corpus is so short in both vocabularies; raise it")
        try:
            return cls(source, target.vocabulary, {case: equations.solve(options["ridge"]) for case, equations in cases.items()})
        except torch.linalg.LinAlgError as error:
            raise FuseError(f"adapter.ridge={options['ridge']}: too small for this corpus ({error}); raise it") from error

    @classmethod
    def from_tensors(cls, source: Vocabulary, target: Vocabulary, tensors: dict[str, Tensor]) -> FuseAdapter:
        jacobians = {}
        for name, jacobian in tensors.items():
            j, k = (int(part) for part in name.split("x"))
            if jacobian.shape != (source.embedding.shape[1], target.embedding.shape[1], max(j, k)):
                raise ValueError(f"{name} has shape {tuple(jacobian.shape)}")
            jacobians[j, k] = jacobian
        return cls(source, target, jacobians)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{j}x{k}": jacobian.cpu() for (j, k), jacobian in self.jacobians.items()}

    def covers(self, words: Sequence[str]) -> list[bool]:
        pairs = zip(in_running_text(self.source, words), in_running_text(self.target, words), strict=True)
        return [(len(x), len(y)) in self.jacobians for x, y in pairs]

    def fit_errors(self, words: Sequence[str]) -> dict[str, float]:
        errors = {}
        for (j, k), pairs in _by_case(self.source, self.target, words).items():
            if (j, k) in self.jacobians:
                m = max(j, k)
                x, y = _tubes(self.source, [x for x, _ in pairs], m), _tubes(self.target, [y for _, y in pairs], m)
                errors[f"{j}x{k}"] = float((tproduct(x, self.jacobians[j, k].cpu()) - y).square().sum() / y.square().sum())
        return errors

    def token_scores(self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current") -> Float[Tensor, "b v"]:
        return self.embedding_gradient(rows, positions, target, point).to(self.source.embedding) @ self.source.embedding.T

    def embedding_gradient(
        self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current"
    ) -> Float[Tensor, "b d"]:
        """The gradient of each row's loss by the source embedding at its position, through the adjoint of the word's map."""
        encoded = target.encode(self.source.decode(rows))
        words = words_at(self.source, rows, positions, encoded)
        places = {(e, word.target): list(range(*word.target)) or [0] for e, word in zip(encoded, words, strict=True)}
        read = None if point == "current" else [self.target.point(point).expand(len(place), -1) for place in places.values()]
        found = target.gradient([e for e, _ in places], list(places.values()), read).embedding
        gradient = dict(zip(places, found, strict=True))
        return torch.stack(
            [
                self.pull_back(gradient[e, word.target][: word.target[1] - word.target[0]], word.source[1] - word.source[0])[
                    position - word.source[0]
                ]
                for e, word, position in zip(encoded, words, positions, strict=True)
            ]
        )

    def pull_back(self, gradient: Float[Tensor, "k p"], j: int) -> Float[Tensor, "j d"]:
        """A word's gradient by its k target tokens, as its gradient by its j source tokens."""
        near = min(self.jacobians, key=lambda case: (abs(case[0] - j) + abs(case[1] - len(gradient)), case))
        jacobian = self.jacobians[near]
        tube = gradient.new_zeros(1, gradient.shape[1], jacobian.shape[-1])
        kept = gradient[: near[1]]
        tube[0, :, : len(kept)] = kept.T
        slices = tproduct(tube, ttranspose(jacobian))[0].T[: near[0]]
        return slices[torch.arange(j).clamp_max(len(slices) - 1)]


def _by_case(source: Vocabulary, target: Vocabulary, words: Sequence[str]) -> dict[Case, list[tuple[Ids, Ids]]]:
    """The words' source and target tokens, by how many they are; without those that lack any."""
    grouped: dict[Case, list[tuple[Ids, Ids]]] = {}
    for x, y in zip(in_running_text(source, words), in_running_text(target, words), strict=True):
        if x and y:
            grouped.setdefault((len(x), len(y)), []).append((x, y))
    return grouped


def _tubes(vocabulary: Vocabulary, words: Sequence[Ids], m: int) -> Float[Tensor, "n d m"]:
    """Stacked embeddings of words of one length, padded with zero slices to length m."""
    tubes = torch.zeros(len(words), vocabulary.embedding.shape[1], m)
    tubes[..., : len(words[0])] = vocabulary.embedding[torch.tensor(words)].float().cpu().transpose(1, 2)
    return tubes
