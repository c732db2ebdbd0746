"""The FUSE adapter (arXiv 2408.04816): a linear map between two embedding tables, word by word.

Words of j source and k target tokens are tubes of length m = max(j, k), the shorter side padded
with
zero slices at its end: X [n, d_source, m], Y [n, d_target, m]. One map G per case (j, k) solves X *
G ~ Y in least squares under the t-product. The backward pass is the adjoint: the gradient g of a
word's target tokens becomes g * G^T, and each word takes its own slice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from fuse.adapters.alignment import Word, in_running_text, words_at
from fuse.adapters.base import Adapter, Progress
from fuse.adapters.checks import checked_floats
from fuse.adapters.target import Target
from fuse.adapters.tproduct import tproduct, ttranspose
from fuse.adapters.tproduct_fit import Case, pairs_by_case, relative_error, summed_cases, tubes_of
from fuse.errors import FuseError
from fuse.models import Model
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.options import Count, NotNegative
from fuse.text.template import Encoded
from fuse.types import Ids


@dataclass(frozen=True)
class FuseSettings:
    """What the maps are fitted on."""

    max_subtokens: Annotated[
        Count, Doc("longest words, in tokens, that get a map of their own")
    ] = 4
    max_examples_per_case: Annotated[Count, Doc("words for each map, at most")] = 100_000
    min_examples_per_case: Annotated[Count, Doc("and at least")] = 32
    ridge: Annotated[
        NotNegative,
        Doc(
            "of the least squares, as a share of the mean diagonal; "
            "0: chosen by words left out of the fit"
        ),
    ] = 0.0


class FuseAdapter(Adapter):
    """Carries gradients back through `jacobians[j, k]`, the maps G [d_source, d_target, max(j, k)].

    Rule for words whose case has no map (too long, or hardly seen): the nearest case by |j - j'| +
    |k - k'|; the gradient of target tokens beyond k' is left out, source tokens beyond j' take the
    gradient of slice j' - 1.
    """

    settings = FuseSettings

    def __init__(
        self,
        source: EmbeddedVocabulary,
        target: EmbeddedVocabulary,
        jacobians: Mapping[Case, Float[Tensor, "d p m"]],
    ) -> None:
        super().__init__(source, target)
        device = target.embedding.device
        self.jacobians: dict[Case, Float[Tensor, "d p m"]] = {}
        for case, jacobian in jacobians.items():
            self.jacobians[case] = jacobian.float().to(device)

    @classmethod
    def fit(
        cls,
        source: EmbeddedVocabulary,
        target: Model,
        words: Iterable[str] = (),
        progress: Progress = iter,
        **settings: float,
    ) -> FuseAdapter:
        """Fit all maps in one pass over the words, each read as in running text, after a space.

        Settings:
            max_subtokens: the most tokens, on either side, of a word with a map of its own.
            max_examples_per_case: how many words a map is fitted on.
            min_examples_per_case: how many words a case needs to have a map; the most frequent case
                has one anyway.
            ridge: as `NormalEquations.solve` takes it, or 0 for that of `RIDGES` which predicts
                words left out of the fit best, case by case.

        Raises:
            FuseError: no word can be used, or the ridge is too small.
        """
        options = {**cls.defaults(), **settings}
        ridge = options["ridge"]
        cases = summed_cases(source, target.vocabulary, progress(list(words)), options)
        try:
            jacobians = {case: fit.solve(case, ridge) for case, fit in cases.items()}
        except torch.linalg.LinAlgError as error:
            raise FuseError(
                f"adapter.ridge={ridge}: too small for this corpus ({error}); raise it"
            ) from error
        return cls(source, target.vocabulary, jacobians)

    @classmethod
    def from_tensors(
        cls, source: EmbeddedVocabulary, target: Model, tensors: Mapping[str, Tensor]
    ) -> FuseAdapter:
        if not tensors:
            raise ValueError("it holds no maps")
        widths = source.embedding.shape[1], target.vocabulary.embedding.shape[1]
        jacobians = {}
        for name in tensors:
            numbers = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", name)
            if numbers is None:
                raise ValueError(f"it holds {name!r}, expected names such as 1x2")
            case = (int(numbers[1]), int(numbers[2]))
            jacobians[case] = checked_floats(tensors, name, (*widths, max(case)))
        return cls(source, target.vocabulary, jacobians)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{j}x{k}": jacobian.cpu() for (j, k), jacobian in self.jacobians.items()}

    def covers(self, words: Sequence[str]) -> list[bool]:
        by_source, by_target = (in_running_text(of, words) for of in (self.source, self.target))
        cases = [(len(x), len(y)) for x, y in zip(by_source, by_target, strict=True)]
        return [case in self.jacobians for case in cases]

    def fit_errors(self, words: Sequence[str]) -> dict[str, float]:
        errors = {}
        for (j, k), pairs in pairs_by_case(self.source, self.target, words).items():
            if (j, k) in self.jacobians:
                x, y = tubes_of(self.source, self.target, pairs, max(j, k))
                errors[f"{j}x{k}"] = relative_error(self.jacobians[j, k].cpu(), x, y)
        return errors

    def token_scores(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        point: str = "current",
    ) -> Float[Tensor, "b v"]:
        gradient = self.embedding_gradient(rows, positions, target, point)
        return self.source.table.inner_products(gradient.to(self.source.embedding))

    def embedding_gradient(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        target: Target,
        point: str = "current",
    ) -> Float[Tensor, "b d"]:
        """Return the gradient of each row's loss, through the adjoint of the word's map."""
        encoded = target.encode(self.source.decode(rows))
        words = words_at(self.source, rows, positions, encoded)
        by_target = self._target_gradients(encoded, words, target, point)
        by_source = self.pull_back(by_target, [word.num_source_tokens for word in words])
        found = []
        for slices, word, position in zip(by_source, words, positions, strict=True):
            found.append(slices[position - word.source[0]])
        return torch.stack(found)

    def _target_gradients(
        self, encoded: Sequence[Encoded], words: Sequence[Word], target: Target, point: str
    ) -> list[Float[Tensor, "_ p"]]:
        """Return the gradient of each row's loss by the embeddings of its word's target tokens.

        A word that several rows have in common is read once.
        """
        keys = [(row, word.target) for row, word in zip(encoded, words, strict=True)]
        different = list(dict.fromkeys(keys))
        # The target needs a position of each row, even where its tokenizer drops the word
        positions = [list(range(*span)) or [0] for _, span in different]
        read = None
        if point != "current":
            neutral = self.target.point(point)
            read = [neutral.expand(len(own), -1) for own in positions]
        found = target.gradient([row for row, _ in different], positions, read).embedding
        by_key = dict(zip(different, found, strict=True))
        return [by_key[key][: key[1][1] - key[1][0]] for key in keys]

    def pull_back(
        self, gradients: Sequence[Float[Tensor, "_ p"]], lengths: Sequence[int]
    ) -> list[Float[Tensor, "_ d"]]:
        """Carry the gradients [k p] of words by their target tokens back to their source tokens.

        Args:
            gradients: one gradient for each word.
            lengths: the number j of each word's source tokens.

        Returns:
            The gradients [j d].
        """
        by_case: dict[Case, list[int]] = {}
        for i, (gradient, length) in enumerate(zip(gradients, lengths, strict=True)):
            by_case.setdefault(self._nearest_case(length, len(gradient)), []).append(i)
        found: dict[int, Float[Tensor, "_ d"]] = {}
        for case, words in by_case.items():
            slices = self._through_map(case, [gradients[i] for i in words])
            for i, of_word in zip(words, slices, strict=True):
                found[i] = of_word[torch.arange(lengths[i]).clamp_max(case[0] - 1)]
        return [found[i] for i in range(len(gradients))]

    def _nearest_case(self, j: int, k: int) -> Case:
        return min(self.jacobians, key=lambda case: (abs(case[0] - j) + abs(case[1] - k), case))

    def _through_map(
        self, case: Case, gradients: Sequence[Float[Tensor, "_ p"]]
    ) -> Float[Tensor, "n m d"]:
        """Return g * G^T for gradients by target tokens, as one vector for each slice."""
        jacobian = self.jacobians[case]
        tubes = gradients[0].new_zeros(len(gradients), jacobian.shape[1], jacobian.shape[-1])
        for tube, gradient in zip(tubes, gradients, strict=True):
            kept = gradient[: case[1]]
            tube[:, : len(kept)] = kept.T
        return tproduct(tubes, ttranspose(jacobian)).mT
