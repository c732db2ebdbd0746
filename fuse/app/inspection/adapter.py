"""What an adapter makes of words: their tokens on both sides, and how far its ranking is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapters import Adapter, FuseAdapter, SemanticAdapter
from fuse.adapters.alignment import in_running_text
from fuse.adapters.tproduct import tproduct
from fuse.app.inspection.neighbours import nearest
from fuse.app.inspection.tokens import shown
from fuse.app.inspection.view import View, plain
from fuse.errors import FuseError
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.search.search import Search
from fuse.types import Ids


def adapters(search: Search, words: Sequence[str], top_k: int) -> list[View]:
    """Show for each secondary which target tokens stand for some words, and the adapter's fidelity.

    Raises:
        FuseError: no secondary has an adapter.
    """
    views, fidelities = [], []
    for name, term in search.objective.secondaries.items():
        if term.adapter is not None:
            views.append(View(f"{name}: words", _of_words(term.adapter, words, top_k)))
            for point, fidelity in term.adapter.fidelities.items():
                fidelities.append({"secondary": name, "linearised at": point, **asdict(fidelity)})
    if not views:
        raise FuseError("secondary=[]: there is no adapter to look at; choose a secondary")

    def draw(axes: Any) -> None:
        labels = [plain(f"{row['secondary']}, {row['linearised at']}") for row in fidelities]
        for shift, measure in enumerate(("spearman", "recall", "cosine")):
            places = [i + 0.27 * (shift - 1) for i in range(len(fidelities))]
            axes.bar(places, [row[measure] for row in fidelities], 0.25, label=measure)
        axes.set_xticks(range(len(fidelities)), labels, fontsize=8)
        axes.legend(fontsize=8)

    if fidelities:
        views.append(View("Fidelity of the ranking", fidelities, draw))
    return views


def _of_words(adapter: Adapter, words: Sequence[str], top_k: int) -> list[dict[str, str]]:
    """Return a row for each word: its tokens on both sides, and what the adapter finds near it."""
    by_source = in_running_text(adapter.source, words)
    by_target = in_running_text(adapter.target, words)
    rows = []
    for word, own, other in zip(words, by_source, by_target, strict=True):
        row = {
            "word": word,
            "source tokens": _spelled(adapter.source, own),
            "target tokens": _spelled(adapter.target, other),
        }
        if isinstance(adapter, FuseAdapter):
            row["nearest to its map"] = _mapped(adapter, own, other, top_k)
        if isinstance(adapter, SemanticAdapter):
            row["words of like meaning"] = _alike(adapter, own, top_k)
        rows.append(row)
    return rows


def _spelled(vocabulary: EmbeddedVocabulary, ids: Ids) -> str:
    return ", ".join(f"{shown(vocabulary.token_texts[token])} {token}" for token in ids)


def _mapped(adapter: FuseAdapter, own: Ids, other: Ids, top_k: int) -> str:
    """Return the target tokens nearest to where the map puts each slice of a word."""
    case = len(own), len(other)
    if case not in adapter.jacobians:
        return f"no map for {case[0]}x{case[1]}"
    tubes = _tubes(adapter.source, own, max(case))
    slices = tproduct(tubes, adapter.jacobians[case].to(tubes))[0].T[: case[1]]
    found = nearest(adapter.target, slices, top_k)
    return "; ".join(_listed(adapter.target.token_texts, near) for near in found)


def _tubes(vocabulary: EmbeddedVocabulary, ids: Ids, width: int) -> Float[Tensor, "1 d m"]:
    """Return a word's token embeddings as tubes, filled up with zero slices at the end."""
    embeddings = vocabulary.embedding[list(ids)].float()
    tubes = embeddings.new_zeros(1, embeddings.shape[1], width)
    tubes[0, :, : len(ids)] = embeddings.T
    return tubes


def _alike(adapter: SemanticAdapter, own: Ids, top_k: int) -> str:
    """Return the words whose vectors have the largest cosine with that of a word."""
    if own not in adapter.words:
        return "it has no vector"
    vectors = torch.nn.functional.normalize(adapter.vectors.float(), dim=1)
    index = adapter.words.index(own)
    cosines = vectors @ vectors[index]
    best = cosines.topk(min(3 * top_k, len(cosines)))
    texts = adapter.source.decode([adapter.words[i] for i in best.indices.tolist()])
    by_text = dict(zip(reversed(texts), reversed(best.values.tolist()), strict=True))
    by_text.pop(adapter.source.decode([own])[0])
    found = sorted(by_text.items(), key=lambda pair: -pair[1])[:top_k]
    return ", ".join(f"{text} {cosine:.2f}" for text, cosine in found)


def _listed(texts: Sequence[str], near: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{shown(texts[token])} {cosine:.2f}" for token, cosine in near)
