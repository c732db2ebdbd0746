"""Train the demo captioner: a small BLIP that writes what a drawn picture shows.

python scripts/train_captioner.py                   # writes fuse/demo/captioner, 12 minutes on one core

Its vision tower begins as that of the demo CLIP, so that little is left to learn. At first a picture has one caption only,
but for the order of its things, and freely worded ones come in later: from those alone it did not learn, in 2,500 steps,
which thing stands above the other. No picture that training sees shows a held-out combination; captions tell no mood.

    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    ids = model.generate(**processor(images=image, return_tensors="pt"), num_beams=4, max_new_tokens=30)
    processor.decode(ids[0], skip_special_tokens=True)

Reached: of 200 pictures of held-out combinations all are told with their colours, objects and setting and nothing else, by
greedy and by beam search alike; all of the 40 captions that say how two things stand are right about it. Of 600 other
pictures, 598 are told rightly.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from train_clip import PATCH, PLACING, SIDE, load_pictures, mirrored, scene_at, split
from train_lm import DEMO
from training import make_wordpiece, rate_at, save_folder
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
    """The demo CLIP's way with pictures: resize to 64 x 64 and scale to -1..1."""
    return BlipImageProcessor(size={"height": SIDE, "width": SIDE}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def exact_caption(scene: Scene) -> str:
    """The canonical caption, but with "left of" or "right of" in the place of "next to"."""
    text = plain_caption(scene)
    return text.replace(" next to ", f" {scene.relation} of ") if scene.relation else text


def told(scene: Scene, rng: random.Random, exact: float = 0.0) -> str:
    """A caption of the scene: an exact one with this probability, otherwise one of many, the canonical one at times."""
    if rng.random() < exact:
        return exact_caption(scene)
    return plain_caption(scene) if rng.random() < 0.2 else caption(scene, rng)


def make_tokenizer(seed: int, size: int) -> BertTokenizer:
    """A cased WordPiece of captions, with BLIP's start token."""
    rng = random.Random(seed)
    texts = [told(random_scene(rng), rng) for _ in range(8000)]
    return make_wordpiece(texts, size, lowercase=False, more=(START,), bos_token=START, model_max_length=LENGTH)


def make_model(tokenizer: BertTokenizer, layers: int) -> BlipForConditionalGeneration:
    """The untrained network; its vision tower has the shape of the demo CLIP's."""
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    text = {
        **shape, "num_hidden_layers": layers, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        **shape, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH, "hidden_act": "quick_gelu",
        "initializer_range": 0.02,
    }  # fmt: skip
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))


@torch.no_grad()
def copy_vision(clip: Any, blip: Any, pixels: Tensor) -> None:
    """Give BLIP's vision tower the weights of CLIP's.

    BLIP has no normalisation before its first layer. CLIP's is folded into the embeddings: centring and weights are
    linear, and the deviation that it divides by is taken to be the mean one over `pixels`.
    """
    there, here = clip.embeddings, blip.embeddings
    norm = clip.pre_layrnorm
    deviation = (there(pixels).var(-1, unbiased=False) + norm.eps).sqrt().mean(0)  # one a position, the class first
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
            rows = [getattr(layer, part) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
            getattr(new.self_attn.qkv, part).copy_(torch.cat(rows))
        new.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(new, name).load_state_dict(getattr(old, name).state_dict())
    blip.post_layernorm.load_state_dict(clip.post_layernorm.state_dict())


def scaled(pixels: np.ndarray) -> Tensor:
    """Cached bytes as the processor scales them."""
    return torch.from_numpy(pixels).float() / 127.5 - 1


def rows_of(tokenizer: BertTokenizer, texts: list[str]) -> Tensor:
    """`[DEC] text [SEP]`, padded to one width."""
    first, last = tokenizer.bos_token_id, tokenizer.sep_token_id
    rows = [[first, *ids, last] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])


def loss_of(model: BlipForConditionalGeneration, pixels: Tensor, rows: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens; `rows` holds several captions of each picture, one batch after the other."""
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    seen = seen.repeat(len(rows) // len(seen), 1, 1)
    logits = model.text_decoder(input_ids=rows[:, :-1], encoder_hidden_states=seen, use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), ignore_index=model.decoder_pad_token_id)


def is_right(scene: Scene, text: str) -> bool:
    """Whether a caption has all colour, object and setting words of the scene and none else."""
    words = set(split(text))
    return words >= set(right_words(scene)) and not words & set(wrong_words(scene))


def is_placed_right(scene: Scene, text: str) -> bool | None:
    """Whether the things stand as a caption with all right words tells, None if it does not tell how."""
    words = split(text)
    said = [PLACING[word][0] for word in words if word in PLACING and PLACING[word][0] in OPPOSITE]
    if not said or not scene.relation:
        return None
    first, second = (words.index(thing.object) for thing in scene.things)
    return said == [scene.relation if first < second else OPPOSITE[scene.relation]]


def measure(folder: Path, pixels: np.ndarray, scenes: list[Scene], **generation: Any) -> dict[str, Any]:
    """The shares of captions that are right, of those that place things rightly, and of those that the demo language
    model's tokenizer reads back."""
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor, reader = BlipProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(DEMO / "lm")
    texts: list[str] = []
    for part in np.array_split(pixels, max(1, len(pixels) // 50)):
        ids = model.generate(pixel_values=scaled(part), max_new_tokens=30, **generation)
        texts += [processor.decode(row, skip_special_tokens=True) for row in ids]
    right = [is_right(scene, text) for scene, text in zip(scenes, texts, strict=True)]
    placed = [is_placed_right(s, t) for s, t, r in zip(scenes, texts, right, strict=True) if r]
    placed = [answer for answer in placed if answer is not None]
    return {
        "right": sum(right) / len(right),
        "placed right": sum(map(bool, placed)) / max(1, len(placed)), "told how placed": len(placed),
        "right of one thing": float(np.mean([r for r, s in zip(right, scenes, strict=True) if len(s.things) == 1])),
        "right of two things": float(np.mean([r for r, s in zip(right, scenes, strict=True) if len(s.things) == 2])),
        "read back": sum(reader.decode(reader(text).input_ids) == text for text in texts) / len(texts),
        "samples": texts[:6],
    }  # fmt: skip


def main() -> None:
    """Train, save, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--captions", type=int, default=2, help="captions of each picture in a batch")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--vocabulary", type=int, default=400)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clip", type=Path, default=DEMO / "clip", help="where the vision tower begins")
    parser.add_argument("--out", type=Path, default=DEMO / "captioner")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()), help="where drawn pictures are kept")
    parser.add_argument("--every", type=int, default=85, help="steps from one line to the next; saves every five lines")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pixels, _ = load_pictures(options.seed, options.pictures, options.cache)
    unseen, _ = load_pictures(options.seed + 1, 200, options.cache, heldout=True)
    scenes = [scene_at(options.seed, i)[0] for i in range(options.pictures)]
    probe = [scene_at(options.seed + 1, i, True)[0] for i in range(len(unseen))]
    pairs = [i for i, scene in enumerate(scenes) if scene.relation]  # the harder half of every batch
    tokenizer = make_tokenizer(options.seed, options.vocabulary)
    processor = BlipProcessor(image_processor(), tokenizer)
    model = make_model(tokenizer, options.layers).train()
    copy_vision(CLIPModel.from_pretrained(options.clip, dtype=torch.float32).vision_model, model.vision_model, scaled(pixels[:256]))
    print(f"{len(tokenizer)} tokens, {model.num_parameters()} weights", flush=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.02)
    rng, began, total = random.Random(options.seed), time.monotonic(), 0.0
    for step in range(options.steps):
        half = options.batch // 2
        picked = sorted(rng.sample(range(options.pictures), half) + rng.sample(pairs, options.batch - half))
        batch, images = [scenes[i] for i in picked], pixels[picked]
        if rng.random() < 0.5:
            batch, images = [*map(mirrored, batch)], images[..., ::-1].copy()
        exact = 2.5 - 3 * step / options.steps  # all of them for half of the time, none after five sixths
        texts = list(itertools.chain(*([told(scene, rng, exact) for scene in batch] for _ in range(options.captions))))
        for group in optimiser.param_groups:
            group["lr"] = rate_at(options.rate, step, step / options.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, scaled(images), rows_of(tokenizer, texts))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        total += loss.item()
        if (step + 1) % options.every == 0:
            print(f"step {step + 1} loss {total / options.every:.4f} minutes {(time.monotonic() - began) / 60:.1f}", flush=True)
            total = 0.0
        if (step + 1) % (5 * options.every) == 0 or step + 1 == options.steps:
            save_folder(options.out, model, processor)
            print(json.dumps(measure(options.out, unseen[:100], probe[:100])), flush=True)
    minutes = (time.monotonic() - began) / 60
    figures = {name: measure(options.out, unseen, probe, num_beams=beams) for name, beams in (("greedy", 1), ("beams", 4))}
    print(json.dumps({**figures, "minutes": minutes}, indent=1))


if __name__ == "__main__":
    main()
