"""Classifiers: every family of AutoModelForSequenceClassification, of one class or several."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fuse
from checkpoints import causal, masked, shrink, spelling
from checkpoints.compare import (
    PROMPTS,
    compare_longest,
    compare_search,
    compare_term,
    fast_ways,
)
from checkpoints.family import Family, Findings, NoReference
from checkpoints.reference import Reference, load_plainly
from checkpoints.weights import randomise
from fuse.text.template import Template

ROLE = "classifier"
NOT_TEXT = {
    **masked.NOT_TEXT,
    "layoutlmv2": "reads boxes",
    "layoutlmv3": "reads boxes",
    "lilt": "reads boxes",
    "markuplm": "reads markup",
    "canine": "reads characters by a tokenizer of its own",
}
ENDED = ("t5", "bart", "pegasus")
KINDS: dict[str, dict[str, Any]] = {
    "several at once": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "one output": {"num_labels": 1, "problem_type": "regression"},
}
OF_EACH_KIND = ("bert", "gpt2", "llama", "bart", "t5", "distilbert")
AROUND = {"alone": {}, "between": {"prefix": "She looks:", "suffix": "in the rain."}}


def families() -> Iterator[Family]:
    """Yield every family that transformers loads as a classifier, and other kinds of a few."""
    from transformers.models.auto import modeling_auto

    for name in sorted(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES):
        if name in NOT_TEXT:
            continue
        kind = tokenizer_kind(name)
        yield Family(name, ROLE, partial(build, name, kind, {"num_labels": 3}), check, kind)
        for told, more in KINDS.items() if name in OF_EACH_KIND else ():
            yield Family(f"{name}, {told}", ROLE, partial(build, name, kind, more), check, kind)


def tokenizer_kind(name: str) -> str:
    """Return the kind of tokenizer that a family's checkpoints are like."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked_

    if name in masked_:
        return masked.tokenizer_kind(name)
    if "gemma" in name or not any(part in name for part in ENDED):
        return causal.tokenizer_kind(name)
    return "unigram_end"


def build(name: str, kind: str, more: dict[str, Any], folder: Path) -> None:
    """Write a tiny checkpoint with random weights."""
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

    tokenizer = spelling.make(kind)
    config = shrink.tiny_config(CONFIG_MAPPING[name], tokenizer, **more)
    if getattr(config, "decoder_start_token_id", 0) is None or name.endswith("t5"):
        config.decoder_start_token_id = tokenizer.pad_token_id  # as T5 begins
    network = AutoModelForSequenceClassification.from_config(config)
    randomise(network)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class ClassifierReference(Reference):
    """The logits of a row."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        super().__init__(load_plainly(AutoModelForSequenceClassification, folder), tokenizer)
        self.kind = self.network.config.problem_type

    @torch.no_grad()
    def far_rating(self) -> float:
        """Return a rating that no text has: near its own the gradient is small, and rounded off."""
        found = []
        for prompt in PROMPTS:
            for around in AROUND.values():
                text = Template(**around).render(prompt)[0]
                found.append(float(self.run(self.tokenizer(text).input_ids).logits[0]))
        return 1.0 + max(found)

    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return -log p of the target, or the squared distance of one output from it."""
        (logits,) = self.run(row.ids, embeddings).logits.float()
        if self.kind == "regression":
            return (logits[0] - term.loss.target).square()
        if self.kind == "multi_label_classification":
            return -logits.sigmoid().log()[term.loss.target]
        return -logits.log_softmax(-1)[term.loss.target]


def check(folder: Path, findings: Findings) -> None:
    """Compare losses, gradients and a search with the family's own logits."""
    try:
        reference = ClassifierReference(folder)
        with torch.no_grad():
            reference.run(reference.tokenizer("a house").input_ids)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.Classifier.load(str(folder))
    findings.fast_ways = fast_ways(model)
    loss = fuse.ClassNLL(1)
    if reference.kind == "regression":
        loss = fuse.SquaredDistance(reference.far_rating())
    for name, around in AROUND.items():
        compare_term(reference, model, loss, around, findings, name)
    compare_longest(reference, model, loss, findings)
    method = fuse.GCG(steps=2, search_width=8, top_k=16, prompt_length=6)
    compare_search(reference, fuse.Term(model, loss), method, findings, "gcg")
