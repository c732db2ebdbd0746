"""How good texts are by models. They are to be other models than those that were optimised, whose
own similarity says little of a text that was made for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

import fuse
from evaluation.records import Record
from fuse.term import Term

BATCH = 64
CLIP_SCALE = 2.5
"""arXiv 2104.08718, section 3."""


def similarity(model_id: str, records: Sequence[Record]) -> list[float]:
    """Return the cosine of each text and the nearest of its references, by a sentence encoder."""
    model = fuse.SentenceEncoder.load(model_id)
    texts = normalize(_embedded(model, [record.text for record in records]), dim=-1)
    found = []
    for text, record in zip(texts, records, strict=True):
        references = normalize(_embedded(model, record.references), dim=-1)
        found.append(float((references @ text).max()))
    return found


def clip_score(model_id: str, records: Sequence[Record]) -> list[float]:
    """Return the CLIPScore of each text and its picture: 2.5 max(cos, 0) (arXiv 2104.08718)."""
    model = fuse.CLIP.load(model_id)
    found = []
    for record in records:
        image = model.embed_images([fuse.open_image(str(record.picture))])
        both = normalize(torch.cat([image, model.embed_texts([record.text])]), dim=-1)
        found.append(CLIP_SCALE * max(float(both[0] @ both[1]), 0.0))
    return found


def nll(model_id: str, records: Sequence[Record]) -> list[float]:
    """Return -log p a token of each text under a language model, whose exp is its perplexity."""
    term = Term(fuse.CausalLM.load(model_id), fuse.NLL())
    encoded = term.encode([record.text for record in records])
    return [float(loss) for loss in term.score(encoded)]


def _embedded(model: fuse.SentenceEncoder, texts: Sequence[str]) -> torch.Tensor:
    parts = []
    for start in range(0, len(texts), BATCH):
        parts.append(model.embed_texts(list(texts[start : start + BATCH])))
    return torch.cat(parts).float().cpu()
