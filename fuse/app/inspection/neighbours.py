"""The tokens whose embeddings are the closest to a token, a text or a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.app.inspection.tokens import shown
from fuse.app.inspection.view import View, plain
from fuse.app.vectors import read_vector
from fuse.errors import FuseError
from fuse.nn.embedding_table import EmbeddedVocabulary

Measure = Literal["cosine", "euclidean"]
Near = list[tuple[int, float]]
"""Tokens and how close they are, the closest first."""


@torch.no_grad()
def nearest(
    vocabulary: EmbeddedVocabulary,
    points: Float[Tensor, "n d"],
    top_k: int,
    measure: Measure = "cosine",
    left_out: Sequence[int] = (),
) -> list[Near]:
    """Return the tokens that spell text and are the closest to each point.

    Args:
        measure: cosine: the cosine of the angle, the largest first; euclidean: the distance, the
            smallest first.
        left_out: tokens that are none of them, such as the one asked about.
    """
    table, points = vocabulary.embedding.float(), points.float().to(vocabulary.embedding.device)
    if measure == "cosine":
        lengths = table.norm(dim=1) * points.norm(dim=1, keepdim=True)
        closeness = points @ table.T / lengths.clamp_min(1e-12)
    else:
        closeness = -torch.cdist(points, table)
    allowed = vocabulary.allowed.clone()
    allowed[list(left_out)] = False
    best = closeness.masked_fill(~allowed, -torch.inf).topk(min(top_k, int(allowed.sum())))
    sign = 1 if measure == "cosine" else -1
    pairs = zip(best.indices.tolist(), (sign * best.values).tolist(), strict=True)
    return [list(zip(tokens, values, strict=True)) for tokens, values in pairs]


def neighbours(
    vocabulary: EmbeddedVocabulary, text: str | None, vector: str | None, top_k: int
) -> list[View]:
    """Show the tokens that are the closest, by cosine and by distance.

    Args:
        text: one token, or a text, for which the mean of its tokens' embeddings stands.
        vector: a file with an embedding, in the text's place; it is read as a direction, so that
            only angles count.

    Raises:
        FuseError: the text has no token; the vector cannot be read, or has another width.
    """
    point, asked, left_out = _point(vocabulary, text, vector)
    by_cosine = nearest(vocabulary, point, top_k, "cosine", left_out)[0]
    by_distance = nearest(vocabulary, point, top_k, "euclidean", left_out)[0]
    if vector is not None:
        by_distance = []  # a direction has no place
    texts = vocabulary.token_texts
    rows = []
    for rank, (token, cosine) in enumerate(by_cosine):
        row = {"rank": rank + 1, "by cosine": shown(texts[token]), "id": token, "cosine": cosine}
        if by_distance:
            other, distance = by_distance[rank]
            row |= {"by distance": shown(texts[other]), "its id": other, "distance": distance}
        rows.append(row)

    def draw(axes: Any) -> None:
        labels = [plain(shown(texts[token])) for token, _ in by_cosine]
        axes.barh(range(len(labels)), [cosine for _, cosine in by_cosine], color="#4c78a8")
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("cosine", fontsize=8)

    return [View(f"Tokens near {asked}", rows, draw, size=(6.0, 0.8 + 0.25 * len(rows)))]


def _point(
    vocabulary: EmbeddedVocabulary, text: str | None, vector: str | None
) -> tuple[Float[Tensor, "1 d"], str, Sequence[int]]:
    """Return the point that is asked about, its name, and the tokens that are no answer."""
    width = vocabulary.embedding.shape[1]
    if vector is not None:
        point = read_vector(vector)
        if len(point) != width:
            raise FuseError(
                f"--vector={vector}: it has {len(point)} numbers; expected {width}, the width of "
                "the token embeddings"
            )
        return point[None], vector, ()
    if not text:
        raise FuseError("TEXT: nothing to look for; give a text, or --vector FILE")
    (ids,) = vocabulary.encode_ids([text])
    if not ids:
        raise FuseError(f"TEXT={text!r}: the tokenizer makes no token of it; give another text")
    point = vocabulary.embedding[list(ids)].float().mean(0, keepdim=True)
    return point, repr(text), ids
