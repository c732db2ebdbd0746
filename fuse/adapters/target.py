"""What an adapter asks of a secondary: the losses of texts, and gradients in its own space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.text.template import Encoded


@dataclass(frozen=True)
class Gradient:
    """The gradient of each row's loss at p of its positions.

    Args:
        embedding: by the embeddings that are read there.
        labels: by the one-hot labels there; None where no token acts as a label.
    """

    embedding: Float[Tensor, "b p d"]
    labels: Float[Tensor, "b p v"] | None = None


@runtime_checkable
class Scored(Protocol):
    """A secondary that scores texts."""

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """Return what it reads for each prompt."""
        ...

    def fits(self, encoded: Sequence[Encoded]) -> list[bool]:
        """Return whether each row has no more tokens than the secondary reads."""
        ...

    def score(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """Return the loss of every row."""
        ...


@runtime_checkable
class Target(Scored, Protocol):
    """A secondary as an adapter sees it: it scores texts, and differentiates its losses."""

    @property
    def vocabulary(self) -> EmbeddedVocabulary:
        """The secondary's vocabulary."""
        ...

    def gradient(
        self,
        rows: Sequence[Encoded],
        positions: Sequence[Sequence[int]],
        read: Sequence[Float[Tensor, "_ d"]] | None = None,
    ) -> Gradient:
        """Return the gradients of the rows' losses at `positions`.

        Where `read` is given, row i reads the embeddings `read[i]` there instead of its own.
        """
        ...

    def vector_gradient(self, rows: Sequence[Encoded]) -> Float[Tensor, "b e"] | None:
        """Return the gradients of the rows' losses by the vectors that the secondary makes of them.

        None where it makes none.
        """
        ...
