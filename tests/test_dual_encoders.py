"""Dual encoders of every family: their vectors are the networks' own, or they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
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
    align = transformers.AlignConfig(text_config=TEXT, vision_config=ALIGN_VISION, projection_dim=8)
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
        texts = [f"a picture {text}" for text in (*TEXTS, "a red house", "a red cup")]
        own = torch.cat([model.vector(batch(model, [text])) for text in texts])
        torch.testing.assert_close(term.score(rows), 1 - own @ target, atol=1e-5, rtol=0)
    causal = ("clip", "clip, highest id", "metaclip 2", "clipseg", "owlvit")
    assert model.supports_packing == model.supports_prefix_cache == (kind in causal)


def test_gradients_equal_finite_differences(network: Any, kind: str) -> None:
    model = double(CLIP(network, KINDS[kind][1], None))
    inputs = with_embeddings(model, batch(model, TEXTS[:2]))
    target = torch.randn(2, 1, generator=torch.Generator().manual_seed(0)).double()

    def value(embeddings: torch.Tensor) -> torch.Tensor:
        vectors = model.vector(replace(inputs, embeddings=embeddings)).double()
        return (vectors * target * torch.arange(vectors.shape[1])).sum()

    assert inputs.embeddings is not None
    value(inputs.embeddings).backward()
    found, embeddings = inputs.embeddings.grad, inputs.embeddings.detach()
    assert found is not None
    assert found[inputs.free].any()
    assert not found[~inputs.mask].any()  # what stands at padding is not read
    step = 1e-2 * torch.nn.functional.normalize(found, dim=-1)
    numeric = (value(embeddings + step) - value(embeddings - step)) / 2
    assert float((found * step).sum()) == pytest.approx(float(numeric), rel=2e-2)


# ---- folders: with the processor of the family, and pictures ----
def picture_processor(kind: str) -> Any:
    side = {"height": 32, "width": 32}
    if kind == "siglip 2":
        return transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=4)
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)


FOLDERS = ["metaclip 2", "siglip", "siglip 2", "align", "vision-text", "owlvit"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_networks_own_vectors(tmp_path: Path, name: str) -> None:
    config, tokenizer = KINDS[name]
    network = random_network(config)
    pictures = picture_processor(name)
    for part in (network, tokenizer, pictures):
        part.save_pretrained(tmp_path)
    model = CLIP.load(str(tmp_path))
    padding = PADDED if "siglip" in name else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = own_vectors(network, tokenizer, TEXTS, **padding)
    torch.testing.assert_close(model.embed_texts(TEXTS), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        given = pictures(images=[IMAGE], return_tensors="pt")
        own = normalize(network.get_image_features(**given).pooler_output, dim=-1)
    torch.testing.assert_close(model.embed_images([IMAGE]), own, atol=1e-5, rtol=0)
    half = CLIP.load(str(tmp_path), dtype=torch.bfloat16)
    torch.testing.assert_close(half.embed_texts(TEXTS), expected, atol=0.1, rtol=0)


# ---- what is refused ----
def refused() -> dict[str, tuple[Any, Any, str]]:
    """A configuration, a tokenizer, and what is said about them."""
    t, bert = transformers, bert_tokenizer()
    flava = t.FlavaConfig(
        text_config=TEXT,
        image_config=VISION,
        multimodal_config={**TEXT, "num_hidden_layers": 1},
        image_codebook_config={"hidden_size": 8, "num_blocks_per_group": 1, "vocab_size": 16},
        hidden_size=32,
        projection_dim=16,
    )
    return {
        "bert": (t.BertConfig(**TEXT), bert, "get_text_features"),
        "clip text": (t.CLIPTextConfig(**TEXT, **ENDS), clip_tokenizer(), "get_text_features"),
        "x-clip": (both("XCLIP", ENDS), clip_tokenizer(), "get_image_features"),
        "flava": (flava, bert, "one vector of a text"),
    }


REFUSED = refused()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_dual_encoder_is_refused(name: str) -> None:
    config, tokenizer, words = REFUSED[name]
    with pytest.raises(FuseError, match=words) as raised:
        CLIP(random_network(config), tokenizer, None)
    assert "\n" not in str(raised.value)


def test_vectors_of_pictures_that_are_no_match_are_one_line() -> None:
    vision = ALIGN_VISION  # its vectors have 8 numbers
    config = transformers.AlignConfig(text_config=TEXT, vision_config=vision, projection_dim=32)
    model = CLIP(random_network(config), bert_tokenizer(), picture_processor("align"))
    with pytest.raises(FuseError, match=r"shape \(8,\) and those of texts 32 numbers"):
        model.embed_images([IMAGE])


class Forgetful(transformers.CLIPModel):
    """Its vectors depend on what it has read before."""

    def get_text_features(self, **given: Any) -> Any:
        out = super().get_text_features(**given)
        self.count = getattr(self, "count", 0) + 1
        out.pooler_output = out.pooler_output + self.count
        return out


def test_a_network_with_other_vectors_is_refused() -> None:
    config, tokenizer = KINDS["clip"]
    with pytest.raises(FuseError, match=r"Forgetful.*another than ours"):
        CLIP(Forgetful(config).eval(), tokenizer, None)


# ---- the tokenizer of SigLIP 1 ----
def test_the_slow_tokenizer_of_siglip_becomes_a_fast_one(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="not installed: sentencepiece")
    pytest.importorskip("google.protobuf", reason="not installed: protobuf")
    corpus = (ROOT / "fuse/demo/corpus.txt").read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.lower() for text in corpus[:500]),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=200,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    slow = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    slow.model_input_names = ["input_ids"]
    config = both("Siglip", {"projection_size": 32, "vocab_size": 200})
    network = random_network(config)
    model = CLIP(network, slow, None)
    texts = ["It's a RED house, isn't it?", "dog", "", " a\n\tb", "naïve 日 12_50%!"]
    for text in [*texts, *corpus[500:600]]:
        ((row, _),) = model.vocabulary.encode([text])
        assert [*row, *model.vocabulary.tail] == slow(text).input_ids
    expected = own_vectors(network, slow, texts[:2], **PADDED)
    torch.testing.assert_close(model.embed_texts(texts[:2]), expected, atol=1e-5, rtol=0)
