"""The FUSE adapter of arXiv 2408.04816: a linear map between two embedding tables, word by word, under the t-product.

Words of j source and k target tokens are tubes of length m = max(j, k), the shorter side padded with zero slices at its
end: X [n, d_source, m], Y [n, d_target, m]. One map G per case (j, k) solves X * G ~ Y in least squares. The backward
pass is the adjoint: the gradient g of a word's target tokens becomes g * G^T, and each word takes its own slice.
"""

from __future__ import annotations

import logging
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
RIDGES = (0.01, 0.1, 1.0)
LEFT_OUT, MOST_LEFT_OUT = 10, 512
"""Of how many words one is left out of the fit, and how many at most."""

log = logging.getLogger(__name__)


class FuseAdapter(Adapter):
    """`jacobians[j, k]` is G [d_source, d_target, max(j, k)].

    Rule for words whose case has no map (too long, or hardly seen): the nearest case by |j - j'| + |k - k'|; target
    tokens beyond k' have no say, source tokens beyond j' take the gradient of slice j' - 1.
    """

    defaults: ClassVar[dict[str, int | float]] = {
        "max_subtokens": 4,
        "max_examples_per_case": 100_000,
        "min_examples_per_case": 32,
        "ridge": 0.0,
    }

    def __init__(self, source: Vocabulary, target: Vocabulary, jacobians: dict[Case, Float[Tensor, "d p m"]]) -> None:
        super().__init__(source, target)
        device = target.embedding.device
        self.jacobians = {case: jacobian.float().to(device) for case, jacobian in jacobians.items()}

    @classmethod
    def fit(cls, source: Vocabulary, target: Model, words: Iterable[str] = (), progress: Progress = iter, **settings: float) -> FuseAdapter:
        """One pass over the words; each is read as in running text, with its leading space.

        Settings: `max_subtokens`, the most tokens, on either side, of a word with a map of its own;
        `max_examples_per_case`, the words that a map is fitted on; `min_examples_per_case`, how many a case needs to have
        a map (the most frequent case has one anyway); `ridge`, as `NormalEquations.solve` takes it, or 0 for that of
        `RIDGES` which tells words left out of the fit best, case by case.

        Raises:
            FuseError: no word can be used.
        """
        options = {**cls.defaults, **settings}
        max_subtokens, at_most, at_least = (
            int(options[name]) for name in ("max_subtokens", "max_examples_per_case", "min_examples_per_case")
        )
        cases: dict[Case, _CaseFit] = {}
        stream = iter(progress(list(words)))
        while batch := list(islice(stream, BATCH)):
            for (j, k), pairs in _by_case(source, target.vocabulary, batch).items():
                if max(j, k) > max_subtokens:
                    continue
                case = cases.setdefault((j, k), _CaseFit(source, target.vocabulary, max(j, k)))
                case.add(pairs[: at_most - case.examples])
        if not cases:
            raise FuseError(f"adapter.max_subtokens={max_subtokens}: no word of the corpus is so short in both vocabularies; raise it")
        most = max(case.examples for case in cases.values())
        kept = {key: case for key, case in cases.items() if case.examples >= min(at_least, most)}
        try:
            return cls(source, target.vocabulary, {key: case.solve(key, options["ridge"]) for key, case in kept.items()})
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
                errors[f"{j}x{k}"] = relative_error(self.jacobians[j, k].cpu(), x, y)
        return errors

    def token_scores(self, rows: Sequence[Ids], positions: Sequence[int], target: Target, point: str = "current") -> Float[Tensor, "b v"]:
        gradient = self.embedding_gradient(rows, positions, target, point)
        return self.source.table.inner_products(gradient.to(self.source.embedding))

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
        by_target = [gradient[e, word.target][: word.target[1] - word.target[0]] for e, word in zip(encoded, words, strict=True)]
        by_source = self.pull_back(by_target, [word.source[1] - word.source[0] for word in words])
        return torch.stack([slices[position - word.source[0]] for slices, word, position in zip(by_source, words, positions, strict=True)])

    def pull_back(self, gradients: Sequence[Float[Tensor, "_ p"]], lengths: Sequence[int]) -> list[Float[Tensor, "_ d"]]:
        """The gradients [k p] of words by their target tokens, as those [j d] by their source tokens, with j of `lengths`."""
        near = [
            min(self.jacobians, key=lambda case: (abs(case[0] - j) + abs(case[1] - len(gradient)), case))
            for gradient, j in zip(gradients, lengths, strict=True)
        ]
        found: dict[int, Float[Tensor, "_ d"]] = {}
        for case in dict.fromkeys(near):
            words = [i for i, other in enumerate(near) if other == case]
            jacobian = self.jacobians[case]
            tubes = gradients[0].new_zeros(len(words), jacobian.shape[1], jacobian.shape[-1])
            for tube, i in zip(tubes, words, strict=True):
                kept = gradients[i][: case[1]]
                tube[:, : len(kept)] = kept.T
            slices = tproduct(tubes, ttranspose(jacobian)).mT
            found |= {i: of[torch.arange(lengths[i]).clamp_max(case[0] - 1)] for i, of in zip(words, slices, strict=True)}
        return [found[i] for i in range(len(near))]


class _CaseFit:
    """The fit of one case: its normal equations, and some words left out of them to choose the ridge by."""

    def __init__(self, source: Vocabulary, target: Vocabulary, m: int) -> None:
        self.source, self.target, self.m = source, target, m
        self.equations = NormalEquations(source.embedding.shape[1], target.embedding.shape[1], m)
        self.left_out: list[tuple[Ids, Ids]] = []
        self.examples = 0

    def add(self, pairs: Sequence[tuple[Ids, Ids]]) -> None:
        """Add words' source and target tokens; every `LEFT_OUT`-th is left out."""
        fitted: list[tuple[Ids, Ids]] = []
        for i, pair in enumerate(pairs, self.examples):
            leave_out = i % LEFT_OUT == LEFT_OUT - 1 and len(self.left_out) < MOST_LEFT_OUT
            (self.left_out if leave_out else fitted).append(pair)
        self.examples += len(pairs)
        if fitted:
            self.equations.add(*self.tubes(fitted))

    def tubes(self, pairs: Sequence[tuple[Ids, Ids]]) -> tuple[Float[Tensor, "n d m"], Float[Tensor, "n p m"]]:
        """X and Y of some words."""
        return _tubes(self.source, [x for x, _ in pairs], self.m), _tubes(self.target, [y for _, y in pairs], self.m)

    def solve(self, case: Case, ridge: float) -> Float[Tensor, "d p m"]:
        """The map, by the best of `RIDGES` if `ridge` is 0; the largest, where there is nothing to choose it by."""
        tried = [ridge] if ridge else RIDGES if self.left_out else RIDGES[-1:]
        maps = [self.equations.solve(r) for r in tried]
        if not self.left_out:
            return maps[0]
        errors = [relative_error(jacobian.float(), *self.tubes(self.left_out)) for jacobian in maps]
        best = errors.index(min(errors))
        told = (*case, self.examples, tried[best], errors[best])
        log.info("adapter=fuse: words of %d and %d tokens: %d, ridge %g, relative error on words left out %.3f", *told)
        return maps[best]


def relative_error(jacobian: Float[Tensor, "d p m"], x: Float[Tensor, "n d m"], y: Float[Tensor, "n p m"]) -> float:
    """|X * G - Y|^2 / |Y|^2: 0 is exact, 1 is what the zero map has."""
    return float((tproduct(x, jacobian) - y).square().sum() / y.square().sum())


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
