"""Captioners: families that put a picture into words, with or without a text to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fuse
from checkpoints import shrink, spelling
from checkpoints.dual import EDGE, PICTURE
from checkpoints.family import Family, Findings, NoReference
from checkpoints.reference import load_plainly
from checkpoints.weights import randomise

ROLE = "captioner"
MAX_NEW_TOKENS, NUM_BEAMS = 8, 4
IMAGE_TOKEN = "<image>"
SIDE = {"height": EDGE, "width": EDGE}


@dataclass(frozen=True)
class Kind:
    """How a family's checkpoint is made.

    Args:
        tokenizer: the kind of its tokenizer.
        pictures: the class of its image processor.
        processor: the class that holds both; None where they lie side by side.
        prompt: what the network goes on from.
        options: of the processor.
        entries: of the config.
    """

    tokenizer: str
    pictures: str
    processor: str | None = None
    prompt: str = ""
    options: dict[str, Any] | None = None
    entries: dict[str, Any] | None = None

    @property
    def names_place(self) -> bool:
        """Whether the tokenizer knows that token by name; where not, the processor adds it."""
        return self.tells_place and self.processor != "InstructBlipProcessor"

    @property
    def tells_place(self) -> bool:
        """Whether a token of the text stands for the picture."""
        return IMAGE_TOKEN in self.prompt or "num_query_tokens" in (self.entries or {})


CLIP_VISION = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 2,
               "num_attention_heads": 4, "intermediate_size": 48, "image_size": EDGE,
               "patch_size": 8}  # fmt: skip
PATCHES = (EDGE // 8) ** 2
KINDS = {
    "blip": Kind("wordpiece", "BlipImageProcessor", "BlipProcessor"),
    "git": Kind("wordpiece", "CLIPImageProcessor", "GitProcessor"),
    "vision-encoder-decoder": Kind("byte_bpe", "ViTImageProcessor"),
    "llava": Kind(
        "byte_bpe_bos",
        "CLIPImageProcessor",
        "LlavaProcessor",
        f"{IMAGE_TOKEN} a picture of",
        {"patch_size": 8, "vision_feature_select_strategy": "default",
         "num_additional_image_tokens": 1},
        {"vision_config": CLIP_VISION, "vision_feature_layer": -1},
    ),
    "blip-2": Kind(
        "byte_bpe_bos",
        "BlipImageProcessor",
        "Blip2Processor",
        options={"num_query_tokens": 4},
        entries={"num_query_tokens": 4},
    ),
    "instructblip": Kind(
        "byte_bpe_bos",
        "BlipImageProcessor",
        "InstructBlipProcessor",
        "a picture of",
        {"num_query_tokens": 4},
        {"num_query_tokens": 4},
    ),
    "paligemma": Kind(
        "llama", "SiglipImageProcessor", "PaliGemmaProcessor", f"{IMAGE_TOKEN}a picture of"
    ),
}  # fmt: skip


def families() -> Iterator[Family]:
    """Yield every kind of captioner."""
    for name, kind in KINDS.items():
        yield Family(name, ROLE, partial(build, name), partial(check, name), kind.tokenizer)


def build(name: str, folder: Path) -> None:
    """Write a tiny checkpoint with random weights and its processor."""
    import transformers
    from transformers import AutoModelForImageTextToText

    kind = KINDS[name]
    named = {"extra_special_tokens": {"image_token": IMAGE_TOKEN}} if kind.names_place else {}
    tokenizer = spelling.make(kind.tokenizer, **named)
    config = _config(name, kind, tokenizer)
    network = AutoModelForImageTextToText.from_config(config)
    randomise(network)
    network.generation_config.max_length = None
    network.save_pretrained(folder)
    size: Any = {"shortest_edge": EDGE} if kind.pictures.startswith("CLIP") else SIDE
    crop = {"crop_size": SIDE} if kind.pictures.startswith("CLIP") else {}
    more = {"image_seq_length": PATCHES} if name == "paligemma" else {}
    pictures = getattr(transformers, kind.pictures)(size=size, **crop, **more)
    if kind.processor is None:
        tokenizer.save_pretrained(folder)
        pictures.save_pretrained(folder)
        return
    options = dict(kind.options or {})
    if name == "instructblip":
        options["qformer_tokenizer"] = tokenizer
    kind_of_both = getattr(transformers, kind.processor)
    both = kind_of_both(image_processor=pictures, tokenizer=tokenizer, **options)
    both.save_pretrained(folder)


def _config(name: str, kind: Kind, tokenizer: Any) -> Any:
    """Return a family's tiny config, which knows the token that stands for a picture."""
    from transformers import CONFIG_MAPPING, VisionEncoderDecoderConfig

    if name == "vision-encoder-decoder":
        vision = shrink.tiny_config(CONFIG_MAPPING["vit"], tokenizer)
        text = shrink.tiny_config(CONFIG_MAPPING["gpt2"], tokenizer)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
        config.decoder_start_token_id = config.pad_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        return config
    fields = shrink.tiny_fields(CONFIG_MAPPING[name], tokenizer) | (kind.entries or {})
    if kind.tells_place:
        image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        for key in ("image_token_index", "image_token_id"):
            if key in shrink.names(CONFIG_MAPPING[name]):
                fields[key] = image_id
    return CONFIG_MAPPING[name](**fields)


@torch.no_grad()
def own_caption(name: str, folder: Path) -> str:
    """Return what the family's network says of the picture by beam search."""
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    kind = KINDS[name]
    network = load_plainly(AutoModelForImageTextToText, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind.processor is None:
        inputs = AutoImageProcessor.from_pretrained(folder)(images=PICTURE, return_tensors="pt")
    else:
        processor = AutoProcessor.from_pretrained(folder)
        words = {"text": kind.prompt} if kind.prompt else {}
        inputs = processor(images=PICTURE, return_tensors="pt", **words)
    rows = network.generate(
        **inputs, do_sample=False, num_beams=NUM_BEAMS, max_new_tokens=MAX_NEW_TOKENS
    )
    given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return " ".join(tokenizer.decode(rows[0, given:], skip_special_tokens=True).split())


def check(name: str, folder: Path, findings: Findings) -> None:
    """Compare the first caption with what the network itself generates."""
    try:
        expected = own_caption(name, folder)
    except Exception as error:
        raise NoReference(f"{type(error).__name__}: {error}") from error
    if not expected:
        raise NoReference("it says nothing of the picture")
    prompt = {"prompt": KINDS[name].prompt} if KINDS[name].prompt else {}
    captioner = fuse.Captioner.load(str(folder))
    (found,) = captioner.caption(PICTURE, max_new_tokens=MAX_NEW_TOKENS, **prompt)
    findings.require("text", found == expected, f"{found!r} for {expected!r}")
