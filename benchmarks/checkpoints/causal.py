"""Causal language models: every family of AutoModelForCausalLM."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checkpoints import shrink, spelling
from checkpoints.family import Family, Findings, NoReference, relative
from checkpoints.weights import randomise
from torch import Tensor

import fuse

ROLE = "causal LM"
PROMPTS = (
    "a red house stands",
    "a red house lies",
    "the dog sleeps by the sea",
    "two boats",
    "a red house stands in the snow",
    "a book about the old man and the blue guitar",
)
TERMS: dict[str, tuple[Any, dict[str, str]]] = {
    "fluency": (fuse.NLL(), {}),
    "fluency between": (fuse.NLL(), {"prefix": "She looks:", "suffix": "in the rain."}),
    "label": (fuse.CrossEntropy("in the snow."), {"prefix": "The man reads an old book."}),
}
REUSE = {"all": (True, True), "no packing": (True, False), "none": (False, False)}
"""Whether the prefix cache and packing are on."""
SEARCHES: dict[str, tuple[Any, str]] = {
    "gcg": (fuse.GCG(steps=2, search_width=12, top_k=16, prompt_length=6), "label"),
    "autodan": (fuse.AutoDAN(steps=3, search_width=12), "fluency between"),
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


def load_plainly(auto_class: Any, folder: Path) -> Any:
    """Load a network by transformers alone, with eager attention where it has that."""
    options = {"dtype": torch.float32, "trust_remote_code": False}
    try:
        network = auto_class.from_pretrained(folder, attn_implementation="eager", **options)
    except ValueError:
        network = auto_class.from_pretrained(folder, **options)
    return network.eval()


class Reference:
    """The family's own predictions: one row at a time, without a cache."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.network = load_plainly(AutoModelForCausalLM, folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.layer = self.network.get_input_embeddings()
        if self.layer is None:
            raise NoReference("it has no embedding layer")

    def logits(self, ids: tuple[int, ...], embeddings: Tensor | None = None) -> Tensor:
        """Return the logits [t v] of one row."""
        row = torch.tensor([ids])
        hook = None
        if embeddings is not None:
            hook = self.layer.register_forward_hook(lambda *_: embeddings[None])
        try:
            return self.network(input_ids=row, use_cache=False).logits[0]
        finally:
            if hook is not None:
                hook.remove()

    def loss(self, term: fuse.Term, row: Any, embeddings: Tensor | None = None) -> Tensor:
        """Return the loss of an encoded text: the mean of -log p over prompt or label."""
        start, end = row.label if term.loss.label else row.free
        log_probs = self.logits(row.ids, embeddings).float().log_softmax(-1)
        targets = torch.tensor(row.ids[start:end])
        return -log_probs[start - 1 : end - 1].gather(1, targets[:, None]).mean()

    def gradient(self, term: fuse.Term, row: Any) -> Tensor:
        """Return the gradient by the embeddings of the prompt."""
        with torch.no_grad():
            embeddings = self.layer(torch.tensor(row.ids))
        embeddings = embeddings.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(term, row, embeddings), embeddings)
        return gradient[slice(*row.free)]

    def is_causal(self, ids: tuple[int, ...]) -> bool:
        """Whether predictions depend on nothing that stands after them."""
        with torch.no_grad():
            whole = self.logits(ids)
            for end in range(1, len(ids)):
                if relative(whole[end - 1], self.logits(ids[:end])[-1]) > 1e-2:
                    return False
        return True


def check(folder: Path, findings: Findings) -> None:
    """Compare losses, gradients and searches with the family's own predictions."""
    try:
        reference = Reference(folder)
        plain = tuple(reference.tokenizer(PROMPTS[-1]).input_ids)
        causal = reference.is_causal(plain)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.CausalLM.load(str(folder))
    findings.require("causal", causal, "its predictions depend on later tokens; to be refused")
    ways = {"cache": model.supports_prefix_cache, "packing": model.supports_packing}
    findings.fast_ways = "+".join(way for way, taken in ways.items() if taken) or "none"
    for name, (loss, around) in TERMS.items():
        for reuse, (cached, packed) in REUSE.items():
            term = fuse.Term(model, loss, **around, prefix_cache=cached, packing=packed)
            _check_losses(reference, term, findings, f"{name}, reuse: {reuse}")
        _check_gradient(reference, term, findings, name)
    _check_predictions(reference, model, findings)
    for method in SEARCHES:
        _check_search(reference, model, method, findings)


def _check_losses(reference: Reference, term: fuse.Term, findings: Findings, place: str) -> None:
    """Compare the losses of prompts, before and after a step that fills the cache."""
    part = "reuse" if term.engine.runner.prefix_cache else "loss"
    rows = term.encode(PROMPTS)
    with torch.no_grad():
        expected = [float(reference.loss(term, row)) for row in rows]
    findings.compare(part, term.score(rows), expected, place)
    term.engine.prefill(rows[:2])
    findings.compare(part, term.score(rows), expected, f"{place}, after a step")
    for row, prompt in zip(rows, PROMPTS, strict=True):
        own = _own_ids(reference, term, prompt)
        findings.require("ids", own == row.ids, f"{row.ids} for {own}")


def _own_ids(reference: Reference, term: fuse.Term, prompt: str) -> tuple[int, ...]:
    """Return the ids of a text by the tokenizer alone: its start token, BOS where there is none."""
    tokenizer = reference.tokenizer
    text = term.template.render(prompt)[0]
    ids = tuple(tokenizer(text).input_ids)
    body = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    start = next(i for i in range(len(ids)) if ids[i : i + len(body)] == body)
    head = ids[:start]
    if not head and term.loss.reads_prompt and not term.template.prefix:
        bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        head = (bos,)
    return head + body


def _check_gradient(reference: Reference, term: fuse.Term, findings: Findings, place: str) -> None:
    """Compare gradients by the embeddings of prompts of unlike lengths, in one batch."""
    rows = term.encode(PROMPTS[2:5])
    found = term.gradient(rows, [range(*row.free) for row in rows]).embedding
    for row, own in zip(rows, found, strict=True):
        expected = reference.gradient(term, row)
        own = own[: len(expected)].reshape(expected.shape)
        findings.compare("gradient", relative(own, expected), 0.0, place)


def _check_predictions(reference: Reference, model: fuse.CausalLM, findings: Findings) -> None:
    """Compare what comes next after a few rows of ids."""
    term = fuse.Term(model, fuse.NLL(), prefix="The")
    rows = [row.ids for row in term.encode(PROMPTS)]
    found = term.engine.next_token_log_probs(rows)
    with torch.no_grad():
        for row, own in zip(rows, found, strict=True):
            expected = reference.logits(row)[-1].float().log_softmax(-1)
            findings.compare("next token", own, expected, "next_token_log_probs")


def _check_search(
    reference: Reference, model: fuse.CausalLM, name: str, findings: Findings
) -> None:
    """Compare the losses of all candidates of a search, and of its result."""
    method, kind = SEARCHES[name]
    loss, around = TERMS[kind]
    term = fuse.Term(model, loss, **around)
    search = fuse.Search(fuse.Objective(term), method)
    state = search.start()
    with torch.no_grad():
        while not state.ended:
            candidates = search.propose(state)
            evaluated = search.evaluate(state, candidates)
            _check_candidates(reference, term, evaluated, findings, name)
            state = search.accept(state, evaluated)
        result = search.result(state)
        (row,) = term.encode([result.prompt])
        expected = float(reference.loss(term, row))
        findings.compare("search", result.loss, expected, f"{name}: result")


def _check_candidates(
    reference: Reference, term: fuse.Term, evaluated: Any, findings: Findings, place: str
) -> None:
    """Compare the losses of one step's candidates."""
    ids = evaluated.candidates.ids
    prompts = term.vocabulary.decode(ids)
    findings.require("search", bool(evaluated.valid.any()), f"{place}: no valid candidate")
    for prompt, loss, valid in zip(prompts, evaluated.loss, evaluated.valid, strict=True):
        if valid:
            (row,) = term.encode([prompt])
            expected = float(reference.loss(term, row))
            findings.compare("search", float(loss), expected, f"{place}: candidate")
