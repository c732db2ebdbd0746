"""Token embeddings: products with a whole table, and a vocabulary whose tokens have embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.nn.prepacked import Prepacked
from fuse.text.vocabulary import Vocabulary
from fuse.types import Ids

POINTS = ("current", "mask", "mean")
"""What is read where a loss is linearised: the token there, the mask token, the mean embedding."""
MAX_PREPACKED_TABLE = 1 << 26
"""Up to how many numbers a table is prepacked: a matter of memory."""
BLOCK_ROWS = 1024
"""How many rows of a table are multiplied at once, so that a CPU's cache holds the products."""
BLOCK_PRODUCTS = 1 << 26
"""How many inner products are made at once on other devices."""


class EmbeddingTable:
    """A table of vectors [v d], and inner products with all of them."""

    def __init__(self, weight: Float[Tensor, "v d"]) -> None:
        self.weight = weight
        self._prepacked = Prepacked()

    def inner_products(self, points: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """Return points @ weight.T. A gradient goes the plain way."""
        serves = self._prepacked.serves(points, self.weight, MAX_PREPACKED_TABLE)
        if points.requires_grad or not serves:
            return points @ self.weight.T
        out = points.new_empty(*points.shape[:-1], len(self.weight))
        for block, products in self.blocks(points):
            out[..., block] = products
        return out

    def blocks(
        self, points: Float[Tensor, "*n d"]
    ) -> Iterator[tuple[slice, Float[Tensor, "*n _"]]]:
        """Yield points @ weight[block].T, block after block. No gradient goes through them."""
        serves = self._prepacked.serves(points, self.weight, MAX_PREPACKED_TABLE)
        rows = BLOCK_ROWS
        if points.device.type != "cpu":
            rows = max(BLOCK_ROWS, BLOCK_PRODUCTS // max(1, points.shape[:-1].numel()))
        for start in range(0, len(self.weight), rows):
            block = slice(start, min(start + rows, len(self.weight)))
            if serves:
                yield block, self._prepacked.linear(points, self.weight, None, False, block)
            else:
                yield block, points @ self.weight[block].T


class EmbeddedVocabulary(Vocabulary):
    """A vocabulary with the embedding [v d] that the model's embedding layer returns for each id.

    Args:
        embedding: the table; rows without a token are never allowed.
        tokenizer, max_length, head, tail: as `Vocabulary` takes them.
    """

    def __init__(
        self,
        tokenizer: Any,
        embedding: Float[Tensor, "v d"],
        max_length: int,
        head: Ids | None = None,
        tail: Ids | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length, len(embedding), head, tail)
        self.table = EmbeddingTable(embedding)

    @property
    def embedding(self) -> Float[Tensor, "v d"]:
        """The table itself."""
        return self.table.weight

    @embedding.setter
    def embedding(self, embedding: Float[Tensor, "v d"]) -> None:
        self.table = EmbeddingTable(embedding)

    @cached_property
    def allowed(self) -> Bool[Tensor, " v"]:
        """As `Vocabulary.allowed`, on the table's device."""
        return super().allowed.to(self.embedding.device)

    @cached_property
    def mean_embedding(self) -> Float[Tensor, " d"]:
        """The mean of the allowed tokens' embeddings: a point for no word in particular."""
        return self.embedding[self.allowed].mean(0)

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token; None where there is none."""
        mask = getattr(self.tokenizer, "mask_token_id", None)
        return None if mask is None else int(mask)

    def point(self, name: str) -> Float[Tensor, " d"]:
        """Return the embedding of the neutral point "mask" or "mean".

        Raises:
            FuseError: "mask", where there is no mask token.
        """
        if name == "mean":
            return self.mean_embedding
        if self.mask_id is None:
            kind = type(self.tokenizer).__name__
            raise FuseError(
                f"linearise={name}: this {kind} has no mask token; give linearise=[mean]"
            )
        return self.embedding[self.mask_id]

    @cached_property
    def _covariance_factor(self) -> Float[Tensor, "d d"]:
        """The Cholesky factor of the allowed embeddings' covariance, in float64."""
        centred = in_double(self.embedding[self.allowed] - self.mean_embedding)
        covariance = centred.T @ centred / len(centred)
        ridge = 1e-3 * covariance.diagonal().mean().clamp_min(1e-12)
        return torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(covariance))

    def as_embedding_gradient(self, scores: Float[Tensor, "b v"]) -> Float[Tensor, "b d"]:
        """Return the vectors g whose products g . E_v come nearest to centred scores.

        Nearest in least squares over the allowed tokens.
        """
        kept = in_double(scores[:, self.allowed])
        centred = in_double(self.embedding[self.allowed]) - in_double(self.mean_embedding)
        by_embedding = (kept - kept.mean(1, keepdim=True)) @ centred / len(centred)
        found = torch.cholesky_solve(by_embedding.T, self._covariance_factor).T
        return found.float().to(scores.device)

    def nearest(
        self, points: Float[Tensor, "*b d"], allowed: Bool[Tensor, " v"]
    ) -> Int[Tensor, "*b"]:
        """Return the allowed token whose embedding is the closest to each point."""
        # The smallest |p - e|^2 is the largest p . e - |e|^2 / 2
        handicap = torch.where(allowed, -self._half_squares, -torch.inf)
        points = points.float()
        if self.embedding.dtype == torch.float32:
            products = self.table.inner_products(points)
        else:
            products = points @ self.embedding.float().T
        return products.add_(handicap).argmax(-1)

    @cached_property
    def _half_squares(self) -> Float[Tensor, " v"]:
        return self.embedding.float().square().sum(-1) / 2

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer and of every number in the table."""
        digest = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode())
        digest.update(self.embedding.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def in_double(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU where their device has no such type."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
