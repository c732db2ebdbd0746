"""A memory to start from: the texts of a corpus that an objective's own models hold for nearest.

MeaCap (arXiv 2403.03715) retrieves captions in the same way; their words are offered to the search
in the place of its key concepts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from fuse.adapters import Progress
from fuse.adapters.store import write_tensors
from fuse.errors import FuseError
from fuse.losses import VectorLoss
from fuse.models import VectorModel
from fuse.objective import Objective
from fuse.term import Term
from fuse.text.corpus import texts

log = logging.getLogger(__name__)

BLOCK_TEXTS = 8192
"""Texts whose vectors are in memory at once, and in one file of the cache."""
PART_TEXTS = 256
"""Texts that are read between two steps of the bar."""
MAX_LOOKED_AT = 1000
"""How many of the nearest texts are looked through for those that can be a start."""
FORMAT = "1"
"""Changes whenever the same texts would get other vectors."""


def retrieve(
    objective: Objective,
    corpus: str,
    count: int = 16,
    *,
    max_tokens: int | None = None,
    folder: Path | None = None,
    progress: Progress = iter,
) -> list[str]:
    """Return texts of a corpus to start from, the nearest first.

    Near is what has a low sum of weight x loss over those terms whose model maps a text to one
    vector. A text is cut after the last word with which it fits every model and `max_tokens`; of
    what is then equal, or against the constraints, nothing is taken. The vectors of `BLOCK_TEXTS`
    texts at a time are in memory.

    Example::

        fuse.search(objective, method, init=fuse.retrieve(objective, "captions.txt"))

    Args:
        corpus: a text file of one text a line, or a `.jsonl` file of objects with a `text`.
        count: how many texts, at most.
        max_tokens: how many of the primary's tokens each has at most; None for its context.
        folder: where vectors are kept, under the content of texts and model; None to keep none.
        progress: shows how far the reading is, as `Adapter.fit` takes it.

    Raises:
        FuseError: no term makes vectors; the corpus cannot be read; nothing in it can be a start.
    """
    terms = []
    for term in objective.terms.values():
        vectors = isinstance(term.model, VectorModel) and isinstance(term.loss, VectorLoss)
        if vectors and term.weight:
            terms.append(term)
    if not terms:
        raise FuseError(
            "init=retrieve: no model of this run maps a text to one vector; add one, such as "
            "secondary=[clip] or secondary=[sentence]"
        )
    nearest = _nearest(terms, corpus, folder, progress)
    limit = objective.primary.max_free_tokens if max_tokens is None else max_tokens
    found: dict[str, None] = {}
    for text in nearest:
        start = _as_start(objective, text, limit)
        if start:
            found[start] = None
        if len(found) == count:
            break
    if not found:
        raise FuseError(
            f"corpus={corpus}: of its {len(nearest)} nearest texts none can be a start; check the "
            "constraints and prompt_length, or give another corpus"
        )
    return list(found)


def _nearest(
    terms: Sequence[Term], corpus: str, folder: Path | None, progress: Progress
) -> list[str]:
    """Return the texts with the lowest losses, the lowest first."""
    nearest: dict[str, float] = {}
    for block in _blocks(texts(corpus), BLOCK_TEXTS):
        total = torch.zeros(len(block))
        for term in terms:
            assert isinstance(term.loss, VectorLoss)
            total += term.weight * term.loss.at(_vectors(term, block, folder, progress))
        losses = total.nan_to_num(nan=torch.inf).tolist()
        nearest.update(zip(block, losses, strict=True))
        nearest = dict(sorted(nearest.items(), key=lambda pair: pair[1])[:MAX_LOOKED_AT])
    if not nearest:
        raise FuseError(f"corpus={corpus}: holds no text; give a file with some")
    return list(nearest)


def _blocks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the items in lists of `size`, the last one perhaps shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def _vectors(
    term: Term, block: Sequence[str], folder: Path | None, progress: Progress
) -> Float[Tensor, "n e"]:
    """Return the vector of each text, within the term's prefix and suffix, from disk if it is
    there.
    """
    template = json.dumps(asdict(term.template), sort_keys=True)
    key = json.dumps([FORMAT, term.model.fingerprint, template, *block])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    path = None if folder is None else folder / f"vectors-{fingerprint[:16]}.safetensors"
    kept = None if path is None else _kept(path, len(block), fingerprint)
    if kept is not None:
        return kept
    # Texts of about equal length make batches without much padding
    order = sorted(range(len(block)), key=lambda i: len(block[i]))
    parts = _blocks(progress([block[i] for i in order]), PART_TEXTS)
    vectors = torch.cat([_read(term, part) for part in parts])[torch.tensor(order).argsort()]
    if path is not None:
        write_tensors({"vectors": vectors}, path, {"fingerprint": fingerprint})
    return vectors


def _read(term: Term, part: Sequence[str]) -> Float[Tensor, "n e"]:
    """Return the vectors of texts, of those that are too long that of what fits."""
    rows = term.encode(part)
    for i, fits in enumerate(term.fits(rows)):
        if not fits:
            cut = _cut(part[i], lambda one: term.fits(term.encode([one]))[0])
            (rows[i],) = term.encode([cut])
    return term.engine.vectors(rows)


def _kept(path: Path, count: int, fingerprint: str) -> Float[Tensor, "n e"] | None:
    """Return the vectors of a file; None, with a warning, of one that cannot be trusted."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                raise ValueError("it belongs to other texts or another model")
            vectors: Tensor = file.get_tensor("vectors")
        if vectors.ndim != 2 or len(vectors) != count or vectors.dtype != torch.float32:
            raise ValueError(f"it holds {vectors.dtype} of the shape {list(vectors.shape)}")
    except Exception as error:  # what a damaged file raises depends on the damage
        reason = (str(error) or type(error).__name__).splitlines()[0]
        log.warning("%s cannot be used (%s); its texts are read anew", path, reason)
        return None
    return vectors


def _as_start(objective: Objective, text: str, limit: int) -> str:
    """Return the text, cut to what fits; empty where a search cannot start from it."""

    def fits(one: str) -> bool:
        primary = objective.primary
        if len(primary.encode([one])[0].free_ids) > limit:
            return False
        return all(term.fits(term.encode([one]))[0] for term in objective.terms.values())

    start = _cut(text, fits)
    try:
        objective.spell(start)
    except FuseError:
        return ""
    return start


def _cut(text: str, fits: Callable[[str], bool]) -> str:
    """Return the longest beginning of whole words that fits."""
    if fits(text):
        return text
    words = text.split()
    beginnings = [" ".join(words[:count]) for count in range(1, len(words) + 1)]
    count = bisect_left(beginnings, True, key=lambda one: not fits(one))
    return beginnings[count - 1] if count else ""
