"""Captioners of every family: what they say is what their networks generate, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from test_models_kinds import CHAT, SIGHT, save, word_tokenizer

from fuse.errors import FuseError
from fuse.models import Captioner

IMAGE = Image.effect_noise((40, 40), 80).convert("RGB")
SIDE = {"height": 32, "width": 32}
QUESTION = "describe the picture"
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
CLIP_VISION = {**SIGHT, "model_type": "clip_vision_model"}


def tokenizer(named: bool = True) -> Any:
    """A tokenizer; it may know its token for pictures by name."""
    names = {"pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    specials = ("[PAD]", "[UNK]", "[CLS]", "<image>")
    more: Any = {"extra_special_tokens": {"image_token": "<image>"}} if named else {}
    return word_tokenizer("<s>", "</s>", specials, **names, **more)


WORDS = tokenizer()
ENDS = {
    "pad_token_id": WORDS.pad_token_id,
    "bos_token_id": WORDS.bos_token_id,
    "eos_token_id": WORDS.eos_token_id,
    "vocab_size": len(WORDS),
}
IMAGE_ID = WORDS.convert_tokens_to_ids("<image>")
LLAMA = {"hidden_size": 32, **SMALL, **ENDS, "model_type": "llama"}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "model_type": "opt",
    **ENDS,
}
QUERIES = {"hidden_size": 32, **SMALL, "encoder_hidden_size": 32, "vocab_size": 96}


def clip_pictures() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE)


def llava(template: str | None) -> tuple[Any, ...]:
    t = transformers
    config = t.LlavaConfig(
        vision_config=CLIP_VISION,
        text_config=LLAMA,
        image_token_index=IMAGE_ID,
        vision_feature_layer=-1,
    )
    processor = t.LlavaProcessor(
        clip_pictures(), tokenizer(), 16, "default", template, num_additional_image_tokens=1
    )
    return config, (processor,)


def instructblip() -> tuple[Any, ...]:
    t = transformers
    config = t.InstructBlipConfig(
        vision_config=SIGHT,
        qformer_config=QUERIES,
        text_config=OPT,
        num_query_tokens=3,
        image_token_index=IMAGE_ID,
    )
    pictures = t.BlipImageProcessor(size=SIDE)
    return config, (t.InstructBlipProcessor(pictures, tokenizer(False), tokenizer(False), 3),)


def paligemma() -> tuple[Any, ...]:
    t = transformers
    text = {"hidden_size": 32, "head_dim": 16, **SMALL, **ENDS, "model_type": "gemma"}
    text |= {"num_key_value_heads": 1, "vocab_size": 2048}
    config = t.PaliGemmaConfig(
        vision_config={**SIGHT, "model_type": "siglip_vision_model", "projection_dim": 32},
        text_config=text,
        image_token_index=IMAGE_ID,
        projection_dim=32,
        hidden_size=32,
    )
    pictures = t.SiglipImageProcessor(size=SIDE)
    pictures.image_seq_length = 4
    return config, (t.PaliGemmaProcessor(pictures, tokenizer()),)


def florence() -> tuple[Any, ...]:
    t = transformers
    text = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "decoder_start_token_id": ENDS["eos_token_id"],
        "forced_eos_token_id": None,
        "model_type": "bart",
        **ENDS,
    }
    vision = {
        "embed_dim": [16],
        "depths": [1],
        "num_heads": [2],
        "num_groups": [2],
        "patch_size": [7],
        "patch_stride": [16],
        "patch_padding": [3],
        "patch_prenorm": [False],
        "window_size": 2,
        "projection_dim": 32,
        "max_position_embeddings": 8,
    }
    config = t.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=IMAGE_ID, is_encoder_decoder=True
    )
    pictures = clip_pictures()
    pictures.image_seq_length = 5
    return config, (t.Florence2Processor(pictures, tokenizer()),)


def vit_gpt2() -> tuple[Any, ...]:
    t = transformers
    text = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "add_cross_attention": True}
    config = t.VisionEncoderDecoderConfig(
        encoder={**SIGHT, "model_type": "vit"},
        decoder={**text, **ENDS, "model_type": "gpt2", "is_decoder": True},
        decoder_start_token_id=ENDS["bos_token_id"],
        pad_token_id=ENDS["pad_token_id"],
    )
    return config, (tokenizer(), t.ViTImageProcessor(size=SIDE))


def git() -> tuple[Any, ...]:
    t = transformers
    config = t.GitConfig(
        vision_config=SIGHT, hidden_size=32, **SMALL, **ENDS, max_position_embeddings=48
    )
    return config, (t.GitProcessor(clip_pictures(), tokenizer()),)


KINDS = {
    "llava": lambda: llava(CHAT),
    "llava, no template": lambda: llava(None),
    "instructblip": instructblip,
    "paligemma": paligemma,
    "florence 2": florence,
    "vit-gpt2": vit_gpt2,
    "git": git,
}
PROMPTS = {
    "llava": "user <image> describe the picture the ",
    "llava, no template": f"<image>\n{QUESTION}",
    "instructblip": QUESTION,
    "paligemma": "<image>caption en",
    "florence 2": "<CAPTION>",
    "vit-gpt2": None,
    "git": None,
}
"""What each network is told; None for nothing."""


def save_kind(folder: Path, kind: str) -> Path:
    config, processors = KINDS[kind]()
    save(folder, transformers.AutoModelForImageTextToText, config, processors[0])
    for processor in processors[1:]:
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("captioners")
    return {kind: save_kind(base / kind, kind) for kind in KINDS}


def own_words(captioner: Captioner, prompt: str | None, width: int = 4) -> list[str]:
    """What the network itself generates, given what its processor makes of image and prompt."""
    processor = captioner.processor
    text = {} if prompt is None else {"text": prompt}
    given = processor(images=IMAGE, return_tensors="pt", **text)
    options = {"num_beams": width, "num_return_sequences": width, "max_new_tokens": 5}
    with torch.no_grad():
        rows = captioner.network.generate(**given, do_sample=False, **options)
    start = rows.shape[1] - 5
    said = processor.tokenizer.batch_decode(rows[:, max(start, 0) :], skip_special_tokens=True)
    return list(dict.fromkeys(" ".join(text.split()) for text in said if text.strip()))


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_what_the_network_generates(folders: dict[str, Path], kind: str) -> None:
    captioner = Captioner.load(str(folders[kind]))
    own = own_words(captioner, PROMPTS[kind])
    found = captioner.caption(IMAGE, 1, 5, QUESTION)
    assert own
    assert found == own[:1]
    if kind not in ("vit-gpt2", "git"):
        prompt = (PROMPTS[kind] or "").replace("picture", "blue cup house dog")
        prompt = prompt.replace("caption en", "red dog").replace("<CAPTION>", "red dog")
        assert captioner.caption(IMAGE, 1, 5, prompt=prompt) == own_words(captioner, prompt)[:1]


def test_a_prompt_that_the_network_does_not_take_is_one_line(folders: dict[str, Path]) -> None:
    for kind, prompt in (("llava", "a dog"), ("vit-gpt2", "a dog")):
        captioner = Captioner.load(str(folders[kind]))
        with pytest.raises(FuseError, match="image: the model can make no text") as raised:
            captioner.caption(IMAGE, 1, 5, prompt=prompt)
        assert "\n" not in str(raised.value)
