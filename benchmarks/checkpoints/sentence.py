"""Sentence encoders: folders of sentence-transformers, and networks without such a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import fuse
from checkpoints import causal, masked, shrink, spelling
from checkpoints.compare import compare_longest, compare_search, compare_term, fast_ways
from checkpoints.family import Family, Findings, NoReference
from checkpoints.reference import Reference
from checkpoints.weights import randomise

ROLE = "sentence encoder"
DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma3_text", "phi3", "gpt2", "gpt_neo")
ENCODERS = ("t5", "mt5", "umt5", "longt5")
OUTDATED = "sentence_transformers.models"
FOLDERS: dict[str, dict[str, Any]] = {
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "mean_sqrt_len_tokens": {"pooling": "mean_sqrt_len_tokens"},
    "weightedmean": {"pooling": "weightedmean"},
    "lasttoken": {"pooling": "lasttoken"},
    "cls and mean": {"pooling": ["cls", "mean"]},
    "normalize": {"normalize": True},
    "dense": {"dense": True},
    "dense and normalize": {"dense": True, "normalize": True},
    "default prompt": {"prompt": "query: "},
    "default prompt not pooled": {"prompt": "query: ", "include_prompt": False},
    "short texts": {"max_seq_length": 40},
    "lower case": {"do_lower_case": True},
    "another folder": {"renamed": True},
    "former module names": {"former": True},
    "no folder": {"plain": True},
}
"""Kinds of folders around a BERT."""
AROUND = {"alone": {}, "between": {"prefix": "She looks:", "suffix": "in the rain."}}


def families() -> Iterator[Family]:
    """Yield every encoder of text, pooled by the mean, and kinds of folders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as encoders

    for name in sorted(set(encoders) - set(masked.NOT_TEXT)) + list(ENCODERS):
        kind = "unigram_end" if name in ENCODERS else masked.tokenizer_kind(name)
        yield Family(name, ROLE, partial(build, name, kind, {}), check, kind)
    for name in DECODERS:
        kind = "llama" if causal.tokenizer_kind(name) == "llama" else "byte_bpe_bos"  # it pads
        more = {"pooling": "lasttoken"}
        yield Family(f"{name}, lasttoken", ROLE, partial(build, name, kind, more), check, kind)
    for told, more in FOLDERS.items():
        yield Family(
            f"bert, {told}", ROLE, partial(build, "bert", "wordpiece", more), check, "wordpiece"
        )


def build(name: str, kind: str, options: dict[str, Any], folder: Path) -> None:
    """Write a folder of sentence-transformers around a network with random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import CONFIG_MAPPING, AutoModel

    inner = folder if options.get("plain") else folder / "network"
    tokenizer = spelling.make(kind)
    network = AutoModel.from_config(shrink.tiny_config(CONFIG_MAPPING[name], tokenizer))
    randomise(network)
    network.save_pretrained(inner)
    tokenizer.save_pretrained(inner)
    if options.get("plain"):
        return
    settings = {key: options[key] for key in ("max_seq_length", "do_lower_case") if key in options}
    transformer = modules.Transformer(str(inner), **settings)
    width = transformer.get_embedding_dimension()
    pooling = modules.Pooling(
        width, options.get("pooling", "mean"), include_prompt=options.get("include_prompt", True)
    )
    parts: list[Any] = [transformer, pooling]
    if options.get("dense"):
        parts.append(modules.Dense(pooling.get_embedding_dimension(), 24))
        torch.nn.init.normal_(parts[-1].linear.weight, std=0.3)
    if options.get("normalize"):
        parts.append(modules.Normalize())
    prompts = {}
    if options.get("prompt"):
        prompts = {"prompts": {"query": options["prompt"]}, "default_prompt_name": "query"}
    SentenceTransformer(modules=parts, device="cpu", **prompts).save(str(folder))
    _as_others_save(folder, options)


def _as_others_save(folder: Path, options: dict[str, Any]) -> None:
    """Change a folder to one of another version, or with other names of its parts."""
    file = folder / "modules.json"
    listed = json.loads(file.read_text())
    for module in listed:
        if options.get("former"):
            module["type"] = f"{OUTDATED}.{module['type'].rpartition('.')[2]}"
        if options.get("renamed") and module["path"]:
            (folder / module["path"]).rename(folder / f"part_{module['path']}")
            module["path"] = f"part_{module['path']}"
    file.write_text(json.dumps(listed))


class SentenceReference(Reference):
    """The vectors of sentence-transformers, compared with that of a target text."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        options = {"device": "cpu", "model_kwargs": {"attn_implementation": "eager"}}
        try:
            self.encoder = SentenceTransformer(str(folder), **options)
        except ValueError:
            self.encoder = SentenceTransformer(str(folder), device="cpu")
        self.encoder.eval()
        super().__init__(self.encoder[0].auto_model, self.encoder.tokenizer)
        self.target = self.encoder.encode("The old man reads", convert_to_tensor=True)

    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return 1 - cos of the text's vector and the target's."""
        text = term.template.render(prompt)[0]
        if embeddings is None and max(row.ids) < len(self.tokenizer):
            vector = self.encoder.encode(text, convert_to_tensor=True)
        else:  # for gradients: other ids, or other embeddings, in the place of the text's own
            features = self._features(text) | {"input_ids": torch.tensor([row.ids])}
            hook = (lambda *_: embeddings[None]) if embeddings is not None else (lambda *_: None)
            with self.layer.register_forward_hook(hook):
                vector = self.encoder(features)["sentence_embedding"][0]
        return 1 - normalize(vector, dim=-1) @ normalize(self.target, dim=-1)

    def ids(self, term: fuse.Term, prompt: str) -> tuple[int, ...]:
        features = self._features(term.template.render(prompt)[0])
        return tuple(features["input_ids"][0].tolist())

    def _features(self, text: str) -> dict[str, Any]:
        """Return what the network is given for a text."""
        instruction = self.encoder.prompts.get(self.encoder.default_prompt_name)
        return dict(self.encoder.preprocess([text], prompt=instruction))


def check(folder: Path, findings: Findings) -> None:
    """Compare losses, gradients and a search with the library's own vectors."""
    try:
        reference = SentenceReference(folder)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.SentenceEncoder.load(str(folder))
    findings.fast_ways = fast_ways(model)
    loss = fuse.CosineDistance(reference.target.float())
    own = model.embed_texts(["The old man reads"])[0]
    findings.compare("vector", own, normalize(reference.target, dim=-1), "of a target")
    for name, around in AROUND.items():
        compare_term(reference, model, loss, around, findings, name)
    compare_longest(reference, model, loss, findings)
    method = fuse.GCG(steps=2, search_width=8, top_k=16, prompt_length=6)
    compare_search(reference, fuse.Term(model, loss), method, findings, "gcg")
