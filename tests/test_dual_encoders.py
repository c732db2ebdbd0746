"""Dual encoders of every family: their vectors are the networks' own, or they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from test_models_kinds import WORDS, batch, bert_tokenizer, double, with_embeddings, word_tokenizer
from torch.nn.functional import normalize
from worlds import greedy_tokenizer

from fuse.errors import FuseError
from fuse.losses import CosineDistance
from fuse.models import CLIP
from fuse.term import Term

TEXTS = ["a red house in the snow", "dog", "the blue cup", "a dog in a house !"]
IMAGE = Image.effect_noise((40, 40), 80).convert("RGB")
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "vocab_size": 64,
}
ENDS = {"bos_token_id": 17, "eos_token_id": 18, "pad_token_id": 18}
"""Of `clip_tokenizer`: the end token is padding, too, as in CLIP."""
ALIGN_VISION = {
    "image_size": 32,
    "width_coefficient": 0.1,
    "depth_coefficient": 0.1,
    "hidden_dim": 32,
    "num_hidden_layers": 2,
    "kernel_sizes": [3],
    "in_channels": [8],
    "out_channels": [8],
    "depthwise_padding": [],
    "strides": [1],
    "num_block_repeats": [1],
    "expand_ratios": [1],
}


def clip_tokenizer() -> Any:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return word_tokenizer("<s>", "</s>", ("[UNK]", "[MASK]"), **names)


def siglip_tokenizer(masked: bool, side: str = "right") -> Any:
    names = {"eos_token": "</s>", "pad_token": "</s>", "padding_side": side}
    tokenizer = word_tokenizer(None, "</s>", ("[UNK]",), **names)
    tokenizer.model_input_names = ["input_ids", *["attention_mask"] * masked]
    return tokenizer


def both(kind: str, text: dict[str, Any] | None = None, **options: Any) -> Any:
    """A configuration of a text and a vision tower."""
    parts = {"text_config": {**TEXT, **(text or {})}, "vision_config": VISION}
    return getattr(transformers, f"{kind}Config")(**{**parts, "projection_dim": 16, **options})


def kinds() -> dict[str, tuple[Any, Any]]:
    """A configuration and a tokenizer of each kind."""
    old = {**ENDS, "eos_token_id": 2, "vocab_size": 19}
    low = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}  # most words have higher ids
    siglip, bert = both("Siglip", {"projection_size": 32}), bert_tokenizer()
    align = transformers.AlignConfig(
        text_config=TEXT, vision_config=ALIGN_VISION, projection_dim=32
    )
    roberta = {**TEXT, "pad_token_id": 15, "max_position_embeddings": 32}
    mixed = transformers.VisionTextDualEncoderConfig(
        text_config={**roberta, "model_type": "roberta"},
        vision_config={**VISION, "model_type": "clip_vision_model"},
        projection_dim=16,
    )
    return {
        "clip": (both("CLIP", ENDS), clip_tokenizer()),
        "clip, highest id": (both("CLIP", old), clip_tokenizer()),
        "metaclip 2": (both("MetaClip2", low), greedy_tokenizer(WORDS, "<s>", "</s>")),
        "clipseg": (both("CLIPSeg", ENDS), clip_tokenizer()),
        "owlvit": (both("OwlViT", ENDS), clip_tokenizer()),
        "groupvit": (both("GroupViT", ENDS, projection_intermediate_dim=32), clip_tokenizer()),
        "aimv2": (both("Aimv2", ENDS), clip_tokenizer()),
        "siglip": (siglip, siglip_tokenizer(False)),
        "siglip, with a mask": (siglip, siglip_tokenizer(True)),
        "siglip, padded on the left": (siglip, siglip_tokenizer(False, "left")),
        "siglip 2": (both("Siglip2", {"projection_size": 32}), siglip_tokenizer(False)),
        "tipsv2": (both("Tipsv2"), siglip_tokenizer(True)),
        "align": (align, bert),
        "altclip": (both("AltCLIP", {**roberta, "project_dim": 32}), bert),
        "chinese clip": (both("ChineseCLIP"), bert),
        "blip": (both("Blip", {"encoder_hidden_size": 32}), bert),
        "vision-text": (mixed, bert),
    }


KINDS = kinds()


def random_network(config: Any) -> Any:
    torch.manual_seed(0)
    network = transformers.AutoModel.from_config(config).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(kind: str) -> Any:
    return random_network(KINDS[kind][0])


@pytest.fixture(scope="module")
def model(kind: str, network: Any) -> CLIP:
    return CLIP(network, KINDS[kind][1], None)


def own_vectors(network: Any, tokenizer: Any, texts: list[str], **padding: Any) -> torch.Tensor:
    """What the network makes of each text alone, in eager attention."""
    copied = type(network)(network.config).eval()
    copied.load_state_dict(network.state_dict())
    copied.set_attn_implementation("eager")
    found = []
    for text in texts:
        given = tokenizer([text], return_tensors="pt", **padding)
        with torch.no_grad():
            found.append(copied.get_text_features(**given).pooler_output)
    return normalize(torch.cat(found), dim=-1)


PADDED = {"padding": "max_length", "max_length": 16}


def test_vectors_are_the_networks_own(kind: str, network: Any, model: CLIP) -> None:
    tokenizer = KINDS[kind][1]
    padding = PADDED if "siglip" in kind else {}
    expected = own_vectors(network, tokenizer, TEXTS, **padding)
    assert (expected[0] - expected[1]).norm() > 1e-2
    torch.testing.assert_close(model.embed_texts(TEXTS), expected, atol=1e-5, rtol=0)
    alone = torch.cat([model.embed_texts([text]) for text in TEXTS])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    read = model.vector(with_embeddings(model, batch(model)))
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)


def test_the_prefix_cache_and_packing_change_no_vector(kind: str, model: CLIP) -> None:
    target = model.embed_texts(["a cup"])[0]
    for options in ({}, {"packing": False}, {"prefix_cache": False}):
        term = Term(model, CosineDistance(target), prefix="a picture", **options)
        rows = term.encode([*TEXTS, "a red house", "a red cup"])
        term.engine.prefill(term.encode(TEXTS[:2]))
        own = torch.stack([model.vector(batch(model, [f"a picture {t}"]))[0] for t in [*TEXTS, "a red house", "a red cup"]])
        torch.testing.assert_close(term.score(rows), 1 - own @ target, atol=1e-5, rtol=0)
    causal = ("clip", "clip, highest id", "metaclip 2", "clipseg", "owlvit")
    assert model.supports_packing == model.supports_prefix_cache == (kind in causal)
