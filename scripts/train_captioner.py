"""Train the demo captioner: a small BLIP that writes what a drawn picture shows.

python scripts/train_captioner.py         # writes fuse/demo/captioner, 12 minutes on one core

Its vision tower begins as that of the demo CLIP, so that little is left to learn. At first a
picture has one caption only, but for the order of its things, and freely worded ones come in later:
from those alone it did not learn, in 2,500 steps, which thing stands above the other. No picture
that training sees shows a held-out combination; captions name no mood.

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor(images=image, return_tensors="pt")
    ids = model.generate(**inputs, num_beams=4, max_new_tokens=30)
    processor.decode(ids[0], skip_special_tokens=True)

Reached: of 200 pictures of held-out combinations all are described with their colours, objects and
setting and nothing else, by greedy and by beam search alike; all of the 40 captions that say how
two things stand are right about it. Of 600 other pictures, 598 are described rightly.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from train_clip import PATCH, PLACING, SIDE, load_pictures, mirrored, scene_at, split
from train_lm import DEMO
from training import make_wordpiece, minutes_since, rate_at, save_folder, take_step
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPModel,
)
from world.scenes import Scene, caption, plain_caption, random_scene, right_words, wrong_words

START, LENGTH = "[DEC]", 48
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def image_processor() -> BlipImageProcessor:
    """Return the demo CLIP's image processor: resize to 64 x 64 and scale to -1..1."""
    return BlipImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def exact_caption(scene: Scene) -> str:
    """Return the canonical caption, but with "left of" or "right of" instead of "next to"."""
    text = plain_caption(scene)
    return text.replace(" next to ", f" {scene.relation} of ") if scene.relation else text


def random_caption(scene: Scene, rng: random.Random, exact: float = 0.0) -> str:
    """Return a caption of the scene: an exact one with this probability, otherwise one of many."""
    if rng.random() < exact:
        return exact_caption(scene)
    return plain_caption(scene) if rng.random() < 0.2 else caption(scene, rng)


def make_tokenizer(seed: int, size: int) -> BertTokenizer:
    """Return a cased WordPiece tokenizer of captions, with BLIP's start token."""
    rng = random.Random(seed)
    texts = [random_caption(random_scene(rng), rng) for _ in range(8000)]
    return make_wordpiece(
        texts, size, lowercase=False, more=(START,), bos_token=START, model_max_length=LENGTH
    )


def make_model(tokenizer: BertTokenizer, layers: int) -> BlipForConditionalGeneration:
    """Return the untrained network; its vision tower has the shape of the demo CLIP's."""
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    text = {
        **shape, "num_hidden_layers": layers, "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        **shape, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH,
        "hidden_act": "quick_gelu", "initializer_range": 0.02,
    }  # fmt: skip
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))


@torch.no_grad()
def copy_vision(clip: Any, blip: Any, pixels: Tensor) -> None:
    """Give BLIP's vision tower the weights of CLIP's.

    BLIP has no normalisation before its first layer. CLIP's is folded into the embeddings: centring
    and weights are linear, and the deviation that it divides by is taken to be the mean one over
    `pixels`.
    """
    there, here = clip.embeddings, blip.embeddings
    norm = clip.pre_layrnorm
    # One deviation a position, the class first
    deviation = (there(pixels).var(-1, unbiased=False) + norm.eps).sqrt().mean(0)
    scale = norm.weight / deviation[1:].mean()

    def folded(rows: Tensor) -> Tensor:
        return (rows - rows.mean(-1, keepdim=True)) * scale

    patches = there.patch_embedding.weight
    here.patch_embedding.weight.copy_(folded(patches.flatten(1).T).T.view_as(patches))
    here.patch_embedding.bias.zero_()
    positions = folded(there.position_embedding.weight) + norm.bias
    here.position_embedding.copy_(positions[None])
    first = norm(there.class_embedding + there.position_embedding.weight[0])
    here.class_embedding.copy_(first - positions[0])
    for old, new in zip(clip.encoder.layers, blip.encoder.layers, strict=True):
        attention = old.self_attn
        for part in ("weight", "bias"):
            layers = (attention.q_proj, attention.k_proj, attention.v_proj)
            rows = [getattr(layer, part) for layer in layers]
            getattr(new.self_attn.qkv, part).copy_(torch.cat(rows))
        new.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(new, name).load_state_dict(getattr(old, name).state_dict())
    blip.post_layernorm.load_state_dict(clip.post_layernorm.state_dict())


def scaled(pixels: np.ndarray) -> Tensor:
    """Scale cached bytes as the processor does."""
    return torch.from_numpy(pixels).float() / 127.5 - 1


def rows_of(tokenizer: BertTokenizer, texts: list[str]) -> Tensor:
    """Return the ids of `[DEC] text [SEP]`, padded to one width."""
    first, last = tokenizer.bos_token_id, tokenizer.sep_token_id
    rows = [[first, *ids, last] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])


def loss_of(model: BlipForConditionalGeneration, pixels: Tensor, rows: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next tokens.

    Args:
        rows: several captions of each picture, one batch after the other.
    """
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    seen = seen.repeat(len(rows) // len(seen), 1, 1)
    logits = model.text_decoder(
        input_ids=rows[:, :-1], encoder_hidden_states=seen, use_cache=False
    ).logits
    return cross_entropy(
        logits.float().flatten(0, 1), rows[:, 1:].flatten(), ignore_index=model.decoder_pad_token_id
    )


def is_right(scene: Scene, text: str) -> bool:
    """Return whether a caption has all right words of the scene and no wrong one."""
    words = set(split(text))
    return words >= set(right_words(scene)) and not words & set(wrong_words(scene))


def is_placed_right(scene: Scene, text: str) -> bool | None:
    """Return whether things stand as a caption with all right words says; None if it does not."""
    words = split(text)
    said = [PLACING[word][0] for word in words if word in PLACING and PLACING[word][0] in OPPOSITE]
    if not said or not scene.relation:
        return None
    first, second = (words.index(thing.object) for thing in scene.things)
    return said == [scene.relation if first < second else OPPOSITE[scene.relation]]


def share_of(answers: Sequence[bool | None]) -> float:
    """Return the share of true ones among answers that are not None; 0 of none."""
    known = [answer for answer in answers if answer is not None]
    return sum(map(bool, known)) / max(1, len(known))


@torch.no_grad()
def captions_of(folder: Path, pixels: np.ndarray, **generation: Any) -> list[str]:
    """Return what a saved captioner writes of each picture."""
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(folder)
    texts: list[str] = []
    for part in np.array_split(pixels, max(1, len(pixels) // 50)):
        ids = model.generate(pixel_values=scaled(part), max_new_tokens=30, **generation)
        texts += [processor.decode(row, skip_special_tokens=True) for row in ids]
    return texts


def measure(
    folder: Path, pixels: np.ndarray, scenes: list[Scene], **generation: Any
) -> dict[str, Any]:
    """Return the shares of captions that are right, and of those that place things rightly.

    Also the share that the demo language model's tokenizer reads back.
    """
    texts = captions_of(folder, pixels, **generation)
    reader = AutoTokenizer.from_pretrained(DEMO / "lm")
    right: dict[int, list[bool]] = {1: [], 2: []}
    placed: list[bool | None] = []
    for scene, text in zip(scenes, texts, strict=True):
        right[len(scene.things)].append(is_right(scene, text))
        if is_right(scene, text):
            placed.append(is_placed_right(scene, text))
    return {
        "right": share_of(right[1] + right[2]),
        "placed right": share_of(placed),
        "say how placed": sum(answer is not None for answer in placed),
        "right of one thing": share_of(right[1]),
        "right of two things": share_of(right[2]),
        "read back": share_of([reader.decode(reader(text).input_ids) == text for text in texts]),
        "samples": texts[:6],
    }


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, cache = parser.add_argument, Path(tempfile.gettempdir())
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=1700)
    add("--pictures", type=int, default=40_000)
    add("--batch", type=int, default=96)
    add("--captions", type=int, default=2, help="captions of each picture in a batch")
    add("--rate", type=float, default=1e-3, help="highest learning rate")
    add("--vocabulary", type=int, default=400)
    add("--layers", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--clip", type=Path, default=DEMO / "clip", help="where the vision tower begins")
    add("--out", type=Path, default=DEMO / "captioner")
    add("--cache", type=Path, default=cache, help="where drawn pictures are kept")
    add("--every", type=int, default=85, help="steps between reports; saves every five reports")
    return parser.parse_args()


@dataclass
class Pictures:
    """The training pictures; half of every batch shows two things, which is harder."""

    pixels: np.ndarray
    scenes: list[Scene]

    def __post_init__(self) -> None:
        self.pairs = [i for i, scene in enumerate(self.scenes) if scene.relation]

    def batch(self, size: int, rng: random.Random) -> tuple[np.ndarray, list[Scene]]:
        """Return random pictures and their scenes, mirrored half of the time."""
        half = size // 2
        singles = rng.sample(range(len(self.scenes)), half)
        picked = sorted(singles + rng.sample(self.pairs, size - half))
        scenes, pixels = [self.scenes[i] for i in picked], self.pixels[picked]
        if rng.random() < 0.5:
            return pixels[..., ::-1].copy(), [*map(mirrored, scenes)]
        return pixels, scenes


def train(
    model: Any, processor: Any, pictures: Pictures, probe: Any, options: argparse.Namespace
) -> None:
    """Train, saving and reporting at times on the pixels and scenes of `probe`."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.02
    )
    rng, began, total = random.Random(options.seed), time.monotonic(), 0.0
    for step in range(options.steps):
        pixels, scenes = pictures.batch(options.batch, rng)
        # All captions are exact for half of the time, none after five sixths
        exact = 2.5 - 3 * step / options.steps
        texts: list[str] = []
        for _ in range(options.captions):
            texts += [random_caption(scene, rng, exact) for scene in scenes]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, scaled(pixels), rows_of(processor.tokenizer, texts))
        take_step(model, optimiser, loss, rate_at(options.rate, step, step / options.steps))
        total += loss.item()
        if (step + 1) % options.every == 0:
            figures = f"loss {total / options.every:.4f} minutes {minutes_since(began):.1f}"
            print(f"step {step + 1} {figures}", flush=True)
            total = 0.0
        if (step + 1) % (5 * options.every) == 0 or step + 1 == options.steps:
            save_folder(options.out, model, processor)
            print(json.dumps(measure(options.out, *probe)), flush=True)


def main() -> None:
    """Train, save, print the figures."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pixels, _ = load_pictures(options.seed, options.pictures, options.cache)
    unseen, _ = load_pictures(options.seed + 1, 200, options.cache, heldout=True)
    scenes = [scene_at(options.seed, i)[0] for i in range(options.pictures)]
    probe = [scene_at(options.seed + 1, i, True)[0] for i in range(len(unseen))]
    tokenizer = make_tokenizer(options.seed, options.vocabulary)
    processor = BlipProcessor(image_processor(), tokenizer)
    model = make_model(tokenizer, options.layers).train()
    clip = CLIPModel.from_pretrained(options.clip, dtype=torch.float32)
    copy_vision(clip.vision_model, model.vision_model, scaled(pixels[:256]))
    print(f"{len(tokenizer)} tokens, {model.num_parameters()} weights", flush=True)
    began = time.monotonic()
    train(model, processor, Pictures(pixels, scenes), (unseen[:100], probe[:100]), options)
    minutes = minutes_since(began)
    figures: dict[str, Any] = {}
    for name, beams in (("greedy", 1), ("beams", 4)):
        figures[name] = measure(options.out, unseen, probe, num_beams=beams)
    print(json.dumps({**figures, "minutes": minutes}, indent=1))


if __name__ == "__main__":
    main()
