"""Causal language models: every family of AutoModelForCausalLM."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fuse
from checkpoints import shrink, spelling
from checkpoints.compare import (
    PROMPTS,
    compare_longest,
    compare_search,
    compare_term,
    fast_ways,
)
from checkpoints.family import Family, Findings, NoReference, relative
from checkpoints.reference import Reference, load_plainly
from checkpoints.weights import randomise

ROLE = "causal LM"
TERMS: dict[str, tuple[Any, dict[str, str]]] = {
    "fluency": (fuse.NLL(), {}),
    "fluency between": (fuse.NLL(), {"prefix": "She looks:", "suffix": "in the rain."}),
    "label": (fuse.CrossEntropy("in the snow."), {"prefix": "The man reads an old book."}),
}
MAX_CAUSAL_ERROR = 1e-2
SEARCHES: dict[str, tuple[Any, str]] = {
    "gcg": (fuse.GCG(steps=2, search_width=8, top_k=16, prompt_length=6), "label"),
    "autodan": (fuse.AutoDAN(steps=3, search_width=8), "fluency between"),
}
NOT_TEXT = {
    "moshi": "speaks",
    "musicgen": "makes music",
    "musicgen_melody": "makes music",
    "gemma4_assistant": "drafts for another network",
    "gemma4_unified_assistant": "drafts for another network",
}
"""What some families of the mapping are for, which read no text alone."""
WORDPIECE = ("bert", "electra", "ernie", "former", "roc_bert", "big_bird", "rembert", "mpnet")
SENTENCEPIECE = (
    "llama", "mistral", "gemma", "phi", "xglm", "xlm", "camembert", "mixtral", "internlm",
    "minicpm", "marian", "pegasus", "mbart", "t5", "xlnet", "deepseek", "cohere", "ministral",
)  # fmt: skip
PLAIN = ("gpt", "opt", "codegen", "ctrl", "bloom", "mpt", "falcon", "mamba", "rwkv", "qwen", "olmo")


def families() -> Iterator[Family]:
    """Yield every family that transformers loads as a causal language model."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names

    for name in sorted(names):
        if name in NOT_TEXT:
            continue
        kind = tokenizer_kind(name)
        yield Family(name, ROLE, partial(build, name, kind), check, kind)
        if "is_decoder" in shrink.names(CONFIG_MAPPING[name]):
            see_all = partial(build, name, kind, is_decoder=False)
            yield Family(f"{name} as an encoder", ROLE, see_all, check, kind)
    for kind in spelling.KINDS:
        yield Family(f"llama, {kind}", ROLE, partial(build, "llama", kind), check, kind)


def tokenizer_kind(name: str) -> str:
    """Return the kind of tokenizer that a family's checkpoints are like."""
    for kind, parts in (
        ("byte_bpe", PLAIN),
        ("wordpiece", WORDPIECE),
        ("llama", SENTENCEPIECE),
    ):
        if any(part in name for part in parts):
            return kind
    return "byte_bpe_bos"


def build(name: str, kind: str, folder: Path, *, is_decoder: bool = True) -> None:
    """Write a tiny checkpoint with random weights."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    tokenizer = spelling.make(kind)
    config_class = CONFIG_MAPPING[name]
    decoder = {"is_decoder": is_decoder} if "is_decoder" in shrink.names(config_class) else {}
    config = shrink.tiny_config(config_class, tokenizer, **decoder)
    network = AutoModelForCausalLM.from_config(config)
    randomise(network)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class CausalReference(Reference):
    """Predictions of each token from those before it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        super().__init__(load_plainly(AutoModelForCausalLM, folder), tokenizer)

    def logits(self, ids: tuple[int, ...], embeddings: Tensor | None = None) -> Tensor:
        """Return the logits [t v] of one row."""
        return self.run(ids, embeddings, use_cache=False).logits[0].float()

    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the mean of -log p over prompt or label."""
        start, end = row.label if term.loss.label else row.free
        log_probs = self.logits(row.ids, embeddings).log_softmax(-1)
        targets = torch.tensor(row.ids[start:end])
        return -log_probs[start - 1 : end - 1].gather(1, targets[:, None]).mean()

    def ids(self, term: fuse.Term, prompt: str) -> tuple[int, ...]:
        """Return the ids of a text by the tokenizer alone, with BOS where nothing stands before."""
        tokenizer, text = self.tokenizer, term.template.render(prompt)[0]
        ids = tuple(tokenizer(text).input_ids)
        body = tuple(tokenizer(text, add_special_tokens=False).input_ids)
        start = next(i for i in range(len(ids)) if ids[i : i + len(body)] == body)
        head = ids[:start]
        if not head and term.loss.reads_prompt and not term.template.prefix:
            bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
            head = (eos if bos is None else bos,)
        return head + body

    def is_causal(self, ids: tuple[int, ...]) -> bool:
        """Whether predictions depend on nothing that stands after them."""
        with torch.no_grad():
            whole = self.logits(ids)
            for end in range(1, len(ids)):
                if relative(whole[end - 1], self.logits(ids[:end])[-1]) > MAX_CAUSAL_ERROR:
                    return False
        return True


def check(folder: Path, findings: Findings) -> None:
    """Compare losses, gradients and searches with the family's own predictions."""
    try:
        reference = CausalReference(folder)
        causal = reference.is_causal(tuple(reference.tokenizer(PROMPTS[-1]).input_ids))
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.CausalLM.load(str(folder))
    findings.require("causal", causal, "its predictions depend on later tokens; to be refused")
    findings.fast_ways = fast_ways(model)
    for name, (loss, around) in TERMS.items():
        compare_term(reference, model, loss, around, findings, name)
    compare_longest(reference, model, fuse.NLL(), findings)
    _compare_next_tokens(reference, model, findings)
    for name, (method, kind) in SEARCHES.items():
        loss, around = TERMS[kind]
        compare_search(reference, fuse.Term(model, loss, **around), method, findings, name)


def _compare_next_tokens(
    reference: CausalReference, model: fuse.CausalLM, findings: Findings
) -> None:
    """Compare what comes next after a few rows of ids."""
    term = fuse.Term(model, fuse.NLL(), prefix="The")
    rows = [row.ids for row in term.encode(PROMPTS)]
    found = term.engine.next_token_log_probs(rows)
    with torch.no_grad():
        for row, own in zip(rows, found, strict=True):
            expected = reference.logits(row)[-1].log_softmax(-1)
            findings.compare("next token", own, expected, "next_token_log_probs")
