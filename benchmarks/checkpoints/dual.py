"""Dual encoders: every family whose network has features of texts and of images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

import fuse
from checkpoints import shrink, spelling
from checkpoints.compare import compare_longest, compare_search, compare_term, fast_ways
from checkpoints.family import Family, Findings, NoReference
from checkpoints.reference import Reference, load_plainly
from checkpoints.weights import SPREADS, randomise

ROLE = "dual encoder"
PICTURE = Image.effect_noise((40, 40), 80).convert("RGB")
EDGE = 32
"""The edge, in pixels, that pictures are brought to."""
TOKENIZERS = {
    "aimv2": "clip",
    "align": "wordpiece",
    "altclip": "roberta",
    "blip": "wordpiece",
    "chinese_clip": "wordpiece",
    "clip": "clip",
    "clipseg": "clip",
    "flava": "wordpiece",
    "groupvit": "clip",
    "metaclip_2": "roberta",
    "owlv2": "clip",  # it reads 16 tokens
    "owlvit": "clip",
    "siglip": "siglip",
    "siglip2": "siglip2",
    "tipsv2": "unigram_end",
}
"""The kind of tokenizer of each family."""
PADDED = ("siglip", "siglip2", "tipsv2", "owlvit", "owlv2", "clipseg")
"""Families whose processors pad every text to the longest length."""
MIXED = {
    "vit and bert": ("vit", "bert", "wordpiece"),
    "clip and roberta": ("clip_vision_model", "roberta", "roberta"),
}
"""A picture's and a text's network of VisionTextDualEncoder, and the tokenizer."""
AROUND = {"alone": {}, "between": {"prefix": "She looks:", "suffix": "in the rain."}}


def families() -> Iterator[Family]:
    """Yield every family, and pairs of networks of two families."""
    for name, kind in TOKENIZERS.items():
        run = partial(check, padded=name in PADDED)
        yield Family(name, ROLE, partial(build, name, kind, {}), run, kind)
    former = {"text_config": {"eos_token_id": 2}}
    yield Family("clip, former config", ROLE, partial(build, "clip", "clip", former), check, "clip")
    for told, (vision, text, kind) in MIXED.items():
        name = f"vision-text-dual-encoder, {told}"
        yield Family(name, ROLE, partial(build_mixed, vision, text, kind), check, kind)


def build(name: str, kind: str, more: dict[str, Any], folder: Path) -> None:
    """Write a tiny checkpoint with random weights, a tokenizer and an image processor."""
    from transformers import CONFIG_MAPPING, AutoModel

    tokenizer = spelling.make(kind, max_length=16 if name.startswith("owl") else 64)
    config_class = CONFIG_MAPPING[name]
    fields = shrink.tiny_fields(config_class, tokenizer)
    for part, entries in more.items():
        fields[part] |= entries
    _save(AutoModel.from_config(config_class(**fields)), tokenizer, name, folder)


def build_mixed(vision: str, text: str, kind: str, folder: Path) -> None:
    """Write a tiny checkpoint of two networks."""
    from transformers import CONFIG_MAPPING, AutoModel, VisionTextDualEncoderConfig

    tokenizer = spelling.make(kind, max_length=64)
    parts = {}
    for part, name in (("vision_config", vision), ("text_config", text)):
        parts[part] = shrink.tiny_config(CONFIG_MAPPING[name], tokenizer).to_dict()
    config = VisionTextDualEncoderConfig(**parts, projection_dim=16)
    _save(AutoModel.from_config(config), tokenizer, "clip", folder)


def _save(network: Any, tokenizer: Any, name: str, folder: Path) -> None:
    """Write a network with random weights, its tokenizer and its image processor."""
    randomise(network, spreads=(0.05,) if name == "align" else SPREADS)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor(name).save_pretrained(folder)


def image_processor(name: str) -> Any:
    """Return a family's image processor, for small pictures."""
    import transformers
    from transformers.models.auto.image_processing_auto import (
        IMAGE_PROCESSOR_MAPPING_NAMES as known,
    )

    names = known.get(name) or known["clip"]
    kind = getattr(transformers, names["torchvision"] if isinstance(names, dict) else names[-1])
    size = dict(getattr(kind, "size", None) or {})
    small = dict.fromkeys(size, EDGE) or {"height": EDGE, "width": EDGE}
    options: dict[str, Any] = {"size": small}
    if getattr(kind, "crop_size", None):
        options["crop_size"] = {"height": EDGE, "width": EDGE}
    if name == "siglip2":
        options = {"patch_size": 8, "max_num_patches": 16}
    return kind(**options)


class DualReference(Reference):
    """The family's own features of texts, compared with those of a picture."""

    def __init__(self, folder: Path, padded: bool) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        network = load_plainly(AutoModel, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        super().__init__(network, tokenizer, _text_layer(network))
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        self.padding: Any = "max_length" if padded else False
        with torch.no_grad():
            pixels = processor(images=PICTURE, return_tensors="pt")
            self.target = _features(network.get_image_features(**pixels))
            self.text_vector("a house")

    def text_vector(
        self, text: str, ids: tuple[int, ...] = (), embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the features of a text; with other ids or embeddings in the place of its own."""
        given = self.tokenizer(text, padding=self.padding, truncation=True, return_tensors="pt")
        row = given["input_ids"][0].clone()
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        given["input_ids"] = row[None]

        def read(_: Any, __: Any, out: Tensor) -> Tensor | None:
            if embeddings is None:
                return None
            return torch.cat([embeddings[None], out[:, len(embeddings) :]], 1)

        with self.layer.register_forward_hook(read):
            return _features(self.network.get_text_features(**given))

    def loss(
        self, term: fuse.Term, prompt: str, row: Any, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return 1 - cos of the text's vector and the picture's."""
        text, own = term.template.render(prompt)[0], ()
        if embeddings is not None or max(row.ids) >= self.layer.num_embeddings:
            own = row.ids
        vector = self.text_vector(text, own, embeddings)
        return 1 - normalize(vector, dim=-1) @ normalize(self.target, dim=-1)


def _features(out: Any) -> Tensor:
    """Return the vector of one text or picture."""
    vectors = out if isinstance(out, Tensor) else out.pooler_output
    return vectors.flatten(0, -2)[0].float()


def _text_layer(network: Any) -> Any:
    """Return what looks a text's tokens up."""
    for name in ("text_model", "text_encoder", "language_model"):
        tower = getattr(network, name, None)
        for module in () if tower is None else tower.modules():
            if isinstance(module, torch.nn.Embedding):  # the first one that is made
                return module
    return network.get_input_embeddings()


def check(folder: Path, findings: Findings, *, padded: bool = False) -> None:
    """Compare vectors of pictures and texts, gradients and a search with the family's own."""
    try:
        reference = DualReference(folder, padded)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    model = fuse.CLIP.load(str(folder))
    findings.fast_ways = fast_ways(model)
    own = model.embed_images([PICTURE])[0]
    findings.compare("picture", own, normalize(reference.target, dim=-1), "of a picture")
    loss = fuse.CosineDistance(reference.target)
    for name, around in AROUND.items():
        compare_term(reference, model, loss, around, findings, name)
    compare_longest(reference, model, loss, findings)
    method = fuse.GCG(steps=2, search_width=8, top_k=16, prompt_length=6)
    compare_search(reference, fuse.Term(model, loss), method, findings, "gcg")
