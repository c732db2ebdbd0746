"""The least-squares fit of maps between two embedding tables, over the words of a corpus."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapters.alignment import in_running_text
from fuse.adapters.tproduct import NormalEquations, tproduct
from fuse.errors import FuseError
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.types import Ids

Case = tuple[int, int]
"""A word's numbers of source and target tokens: the key of a map, fitted and looked up."""
Pair = tuple[Ids, Ids]
"""A word's source and target tokens."""

BATCH_WORDS = 1024
"""How many words are added to the normal equations at once."""
RIDGES = (0.01, 0.1, 1.0)
"""The ridges that are tried where none is set."""
LEFT_OUT_OF = 10
"""Of how many words one is left out of the fit, to choose the ridge by."""
MAX_LEFT_OUT = 512
"""How many words of a case are left out at most."""

log = logging.getLogger(__name__)


class CaseFit:
    """The fit of one case: its normal equations, and words left out to choose the ridge by."""

    def __init__(self, source: EmbeddedVocabulary, target: EmbeddedVocabulary, m: int) -> None:
        self.source, self.target, self.m = source, target, m
        widths = source.embedding.shape[1], target.embedding.shape[1]
        self.equations = NormalEquations(*widths, m)
        self.left_out: list[Pair] = []
        self.num_examples = 0

    def add(self, pairs: Sequence[Pair]) -> None:
        """Add words' source and target tokens; one of `LEFT_OUT_OF` is left out."""
        fitted: list[Pair] = []
        for i, pair in enumerate(pairs, self.num_examples):
            is_turn = i % LEFT_OUT_OF == LEFT_OUT_OF - 1
            leave_out = is_turn and len(self.left_out) < MAX_LEFT_OUT
            (self.left_out if leave_out else fitted).append(pair)
        self.num_examples += len(pairs)
        if fitted:
            self.equations.add(*tubes_of(self.source, self.target, fitted, self.m))

    def solve(self, case: Case, ridge: float) -> Float[Tensor, "d p m"]:
        """Return the map, by the best of `RIDGES` if `ridge` is 0.

        By the largest of them, where no words are left out to choose by.
        """
        if not self.left_out:
            return self.equations.solve(ridge or RIDGES[-1])
        x, y = tubes_of(self.source, self.target, self.left_out, self.m)
        found = []
        for tried in [ridge] if ridge else RIDGES:
            jacobian = self.equations.solve(tried)
            found.append((relative_error(jacobian.float(), x, y), tried, jacobian))
        error, best, jacobian = min(found, key=lambda one: one[0])
        log.info(
            "adapter=fuse: words of %d and %d tokens: %d, ridge %g, "
            "relative error on words left out %.3f",
            *case, self.num_examples, best, error,
        )  # fmt: skip
        return jacobian


def relative_error(
    jacobian: Float[Tensor, "d p m"], x: Float[Tensor, "n d m"], y: Float[Tensor, "n p m"]
) -> float:
    """Return |X * G - Y|^2 / |Y|^2: 0 is exact, 1 is what the zero map has."""
    return float((tproduct(x, jacobian) - y).square().sum() / y.square().sum())


def summed_cases(
    source: EmbeddedVocabulary,
    target: EmbeddedVocabulary,
    words: Iterable[str],
    options: Mapping[str, float],
) -> dict[Case, CaseFit]:
    """Return the fits of all cases with enough words, ready to be solved.

    Raises:
        FuseError: no word is short enough.
    """
    max_subtokens = int(options["max_subtokens"])
    at_most, at_least = (int(options[f"{end}_examples_per_case"]) for end in ("max", "min"))
    cases: dict[Case, CaseFit] = {}
    stream = iter(words)
    while batch := list(islice(stream, BATCH_WORDS)):
        for case, pairs in pairs_by_case(source, target, batch).items():
            if max(case) <= max_subtokens:
                if case not in cases:
                    cases[case] = CaseFit(source, target, max(case))
                cases[case].add(pairs[: at_most - cases[case].num_examples])
    if not cases:
        raise FuseError(
            f"adapter.max_subtokens={max_subtokens}: no word of the corpus is so short in both "
            "vocabularies; raise it"
        )
    needed = min(at_least, max(fit.num_examples for fit in cases.values()))
    return {case: fit for case, fit in cases.items() if fit.num_examples >= needed}


def pairs_by_case(
    source: EmbeddedVocabulary, target: EmbeddedVocabulary, words: Sequence[str]
) -> dict[Case, list[Pair]]:
    """Group the words' source and target tokens by how many they are.

    Words that have none on either side are left out.
    """
    grouped: dict[Case, list[Pair]] = {}
    by_source, by_target = in_running_text(source, words), in_running_text(target, words)
    for x, y in zip(by_source, by_target, strict=True):
        if x and y:
            grouped.setdefault((len(x), len(y)), []).append((x, y))
    return grouped


def tubes_of(
    source: EmbeddedVocabulary, target: EmbeddedVocabulary, pairs: Sequence[Pair], m: int
) -> tuple[Float[Tensor, "n d m"], Float[Tensor, "n p m"]]:
    """Return X and Y of words of one case, in float32 on the CPU."""
    return _stacked(source, [x for x, _ in pairs], m), _stacked(target, [y for _, y in pairs], m)


def _stacked(
    vocabulary: EmbeddedVocabulary, words: Sequence[Ids], m: int
) -> Float[Tensor, "n d m"]:
    """Stack the embeddings of words of one length, padded with zero slices to length m."""
    tubes = torch.zeros(len(words), vocabulary.embedding.shape[1], m)
    embeddings = vocabulary.embedding[torch.tensor(words)].float().cpu()  # [n, length, d]
    tubes[..., : len(words[0])] = embeddings.transpose(1, 2)
    return tubes
