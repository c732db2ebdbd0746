"""Models of open_clip: towers of several kinds, with its own tokenizer or one of transformers."""

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
from checkpoints import shrink, spelling
from checkpoints.compare import compare_longest, compare_search, compare_term, fast_ways
from checkpoints.dual import AROUND, EDGE, PICTURE
from checkpoints.family import Family, Findings, NoReference
from checkpoints.reference import Reference
from checkpoints.weights import SPREADS, randomise

ROLE = "open_clip"
LENGTH = 48
TEXT = {"context_length": LENGTH, "width": 32, "heads": 4, "layers": 2}
VISION = {"image_size": EDGE, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
OWN = {"vocab_size": 400, "hf_tokenizer_name": "own"}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", **OWN}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("", {"text_cfg": TEXT}),
    "custom text tower": ("", {"text_cfg": {**TEXT, "pool_type": "argmax"}, "custom_text": True}),
    "quick gelu": ("", {"text_cfg": TEXT, "quick_gelu": True}),
    "siglip": (
        "siglip",
        {
            "text_cfg": {**TEXT, **SIGLIP, "tokenizer_kwargs": {"clean": "canonicalize"}},
            "custom_text": True,
            "init_logit_bias": -10,
        },
    ),
    "clipa": (
        "wordpiece",
        {
            "text_cfg": {**TEXT, **SIGLIP, "tokenizer_kwargs": {"strip_sep_token": True}},
            "custom_text": True,
        },
    ),
    "coca": (
        "",
        {
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": TEXT,
            "custom_text": True,
        },
    ),
    "bert": (
        "wordpiece",
        {
            "text_cfg": {
                "hf_model_name": "own",
                "hf_tokenizer_name": "own",
                "context_length": LENGTH,
                "hf_proj_type": "linear",
            }
        },
    ),
}
"""The kind of tokenizer ("" for open_clip's own), and the config, of each kind of tower."""


def families() -> Iterator[Family]:
    """Yield every kind of tower."""
    for name, (kind, config) in KINDS.items():
        run = partial(build, name, kind, config)
        yield Family(name, ROLE, run, check, kind or "open_clip's own")


def build(name: str, kind: str, given: dict[str, Any], folder: Path) -> None:
    """Write a folder of open_clip with random weights."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import CONFIG_MAPPING

    config = json.loads(json.dumps(given))
    vision = {**VISION, "output_tokens": name == "coca"}
    config = {"embed_dim": 16, "vision_cfg": vision, **config}
    if kind:
        tokenizer = spelling.make(kind, max_length=LENGTH)
        tokenizer.save_pretrained(folder)
    if name == "bert":
        shrink.tiny_config(CONFIG_MAPPING["bert"], tokenizer).save_pretrained(folder)
        config["text_cfg"]["hf_model_name"] = str(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    network = open_clip.create_model(
        f"local-dir:{folder}", load_weights=False, pretrained_text=False
    )
    randomise(network, spreads=SPREADS[:1])
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


class OpenCLIPReference(Reference):
    """The library's own features of texts, compared with those of a picture."""

    def __init__(self, folder: Path) -> None:
        import open_clip

        name = f"local-dir:{folder}"
        network, preprocess = open_clip.create_model_from_pretrained(name)
        tower = getattr(network, "text", network)
        layer = getattr(tower, "token_embedding", None)
        if layer is None:
            layer = tower.transformer.get_input_embeddings()
        super().__init__(network.eval(), open_clip.get_tokenizer(name), layer)
        with torch.no_grad():
            self.target = network.encode_image(preprocess(PICTURE)[None])[0]

    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return 1 - cos of the text's vector and the picture's."""
        ids = self.tokenizer([term.template.render(prompt)[0]])

        def read(_: Any, __: Any, out: Tensor) -> Tensor | None:
            if embeddings is None:
                return None
            start, end = row.free  # some tokenizers write padding over the closing token
            return torch.cat([out[:, :start], embeddings[None, start:end], out[:, end:]], 1)

        with self.layer.register_forward_hook(read):
            vector = self.network.encode_text(ids)[0]
        return 1 - normalize(vector, dim=-1) @ normalize(self.target, dim=-1)

    def ids(self, term: fuse.Term, prompt: str) -> tuple[int, ...]:
        """Return the row's own ids: those of the library are padded, and compared by vectors."""
        return term.encode([prompt])[0].ids


def check(folder: Path, findings: Findings) -> None:
    """Compare vectors of pictures and texts, gradients and a search with the library's own."""
    try:
        reference = OpenCLIPReference(folder)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.OpenCLIP.load(str(folder))
    findings.fast_ways = fast_ways(model)
    own = model.embed_images([PICTURE])[0]
    findings.compare("picture", own, normalize(reference.target, dim=-1), "of a picture")
    loss = fuse.CosineDistance(reference.target)
    for name, around in AROUND.items():
        compare_term(reference, model, loss, around, findings, name)
    compare_longest(reference, model, loss, findings)
    method = fuse.GCG(steps=2, search_width=8, top_k=16, prompt_length=6)
    compare_search(reference, fuse.Term(model, loss), method, findings, "gcg")
