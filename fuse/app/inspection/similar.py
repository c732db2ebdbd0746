"""How similar sentences are in meaning, to a sentence encoder or the text side of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuse.app.inspection.view import View, plain
from fuse.models import EmbeddingModel

MAX_LABEL = 40
"""Characters of a sentence that stand beside the matrix."""


def similar(model: EmbeddingModel, texts: Sequence[str]) -> list[View]:
    """Show the cosine of each pair of texts.

    Raises:
        FuseError: a text is longer than the model reads.
    """
    vectors = model.embed_texts(list(texts)).float()
    cosines = (vectors @ vectors.T).tolist()
    rows = []
    for number, (text, values) in enumerate(zip(texts, cosines, strict=True)):
        cells = {str(i + 1): round(value, 4) for i, value in enumerate(values)}
        rows.append({"": number + 1, "text": text, **cells})

    def draw(axes: Any) -> None:
        axes.imshow(cosines, vmin=min(0.0, min(map(min, cosines))), vmax=1.0, cmap="viridis")
        labels = [plain(text[:MAX_LABEL]) for text in texts]
        axes.set_yticks(range(len(texts)), labels, fontsize=8)
        axes.set_xticks(range(len(texts)), [str(i + 1) for i in range(len(texts))], fontsize=8)
        for i, values in enumerate(cosines):
            for j, value in enumerate(values):
                colour = "black" if value > 0.6 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)

    side = 1.5 + 0.5 * len(texts)
    data = {"texts": list(texts), "cosines": cosines}
    return [View("Cosine of meanings", rows, draw, data, (side + 3.0, side))]
