"""Masked language models: every family of AutoModelForMaskedLM."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fuse
from checkpoints import shrink, spelling
from checkpoints.compare import compare_longest, compare_search, compare_term, fast_ways
from checkpoints.family import Family, Findings, NoReference
from checkpoints.reference import Reference, load_plainly
from checkpoints.weights import randomise

ROLE = "masked LM"
NOT_TEXT = {
    "esm": "reads proteins",
    "esmc": "reads proteins",
    "layoutlm": "reads boxes",
    "tapas": "reads tables",
    "perceiver": "reads bytes by a tokenizer of its own",
    "ultravbert": "reads pictures",
    "modernvbert": "reads pictures",
    "neomme": "reads pictures",
}
ROBERTA = ("roberta", "bart", "camembert", "data2vec", "longformer", "luke", "mvp", "xmod", "ibert")
AROUND = {"alone": {}, "between": {"prefix": "She looks:", "suffix": "in the rain."}}


def families() -> Iterator[Family]:
    """Yield every family that transformers loads as a masked language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as names

    for name in sorted(names):
        if name not in NOT_TEXT:
            kind = tokenizer_kind(name)
            yield Family(name, ROLE, partial(build, name, kind), check, kind)


def tokenizer_kind(name: str) -> str:
    """Return the kind of tokenizer that an encoder's checkpoints are like."""
    return "roberta" if any(part in name for part in ROBERTA) else "wordpiece"


def build(name: str, kind: str, folder: Path) -> None:
    """Write a tiny checkpoint with random weights, whose tokenizer tells no length."""
    from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

    tokenizer = spelling.make(kind, max_length=None)
    network = AutoModelForMaskedLM.from_config(shrink.tiny_config(CONFIG_MAPPING[name], tokenizer))
    randomise(network)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class MaskedReference(Reference):
    """Predictions of each token from all others, one pass a token."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        super().__init__(load_plainly(AutoModelForMaskedLM, folder), tokenizer)

    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean of -log p over the prompt: the pseudo log-likelihood."""
        mask_id, labels = self.tokenizer.mask_token_id, term.encode([prompt])[0].ids
        found = []
        for position in range(*row.free):
            ids = torch.tensor(row.ids)
            here = torch.arange(len(ids)) == position
            read = None
            if embeddings is not None:
                mask = self.layer(torch.full((1, len(ids)), mask_id))[0].detach()
                read = torch.where(here[:, None], mask, embeddings)
            logits = self.run(torch.where(here, mask_id, ids), read).logits[0, position]
            found.append(-logits.float().log_softmax(-1)[labels[position]])
        return torch.stack(found).mean()


def check(folder: Path, findings: Findings) -> None:
    """Compare losses, gradients and a search with the family's own predictions."""
    try:
        reference = MaskedReference(folder)
        reference.run(reference.tokenizer("a house").input_ids)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.MaskedLM.load(str(folder))
    findings.fast_ways = fast_ways(model)
    for name, around in AROUND.items():
        compare_term(reference, model, fuse.NLL(), around, findings, name)
    compare_longest(reference, model, fuse.NLL(), findings)
    method = fuse.GCG(steps=2, search_width=6, top_k=16, prompt_length=5)
    compare_search(reference, fuse.Term(model, fuse.NLL()), method, findings, "gcg")
