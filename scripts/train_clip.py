"""Train the small demo CLIP on drawn scenes and save it as an ordinary Hugging Face folder.

Pictures and texts are both described by weighted facts (setting, object, colour, which colour sits
on which object). The cosine of two fact vectors is the target for the cosine of the two embeddings,
so that the score of a sentence rises with every right detail and falls with every wrong one. That
target also distinguishes true from false negatives in a batch.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import multiprocessing
import random
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import models, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from training import minutes_since, rate_at
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from world import drawing, scenes
from world.scenes import CHEERFUL, COLOURS, GLOOMY, OBJECTS, SETTINGS, SIZES, Scene

SIDE, PATCH, LENGTH = 64, 8, 64
GRID = SIDE // PATCH
MERGES, LONGEST = 260, 5
SCALE = 20.0
START, END = "<|startoftext|>", "<|endoftext|>"
KINDS: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "object": OBJECTS,
    "setting": tuple(SETTINGS),
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}


def image_processor() -> CLIPImageProcessor:
    """Return the processor that ships with the model: resize to 64 x 64 and scale to -1..1."""
    return CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=2, do_center_crop=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip


def scene_at(seed: int, index: int, heldout: bool = False) -> tuple[Scene, random.Random]:
    """Return scene number `index` of a stream, and the generator that goes on to draw it."""
    rng = random.Random(f"{seed} {index} {heldout}")
    return scenes.random_scene(rng, heldout), rng


def draw_block(seed: int, start: int, stop: int, heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures as the processor resizes them, and what each of their patches shows.

    Returns:
        The pictures (uint8, channels first), and each patch's label: 0 for background, or
        1 + object * colours + colour.
    """
    torch.set_num_threads(1)
    processor = image_processor()
    pixels = np.zeros((stop - start, 3, SIDE, SIDE), np.uint8)
    labels = np.zeros((stop - start, GRID, GRID), np.int16)
    centres = (np.arange(GRID) + 0.5) / GRID
    for row, index in enumerate(range(start, stop)):
        scene, rng = scene_at(seed, index, heldout)
        picture, placed = drawing.draw_placed(scene, rng)
        output = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")
        pixels[row] = output["pixel_values"][0]
        for thing, (x, y, half) in zip(scene.things, placed, strict=True):
            inside = np.maximum(abs(centres[None] - x), abs(centres[:, None] - y)) < 0.85 * half
            labels[row][inside] = (
                1 + OBJECTS.index(thing.object) * len(COLOURS) + COLOURS.index(thing.colour)
            )
    return pixels, labels


def load_pictures(
    seed: int, count: int, cache: Path, heldout: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` pictures of a stream with their patch labels.

    They are drawn once, and kept under `cache`.
    """
    source = b"".join(Path(m.__file__ or "").read_bytes() for m in (drawing, scenes))
    name = f"fuse_pictures_{hashlib.sha256(source).hexdigest()[:8]}_{seed}_{count}_{heldout}"
    files = [cache / f"{name}_{part}.npy" for part in ("pixels", "labels")]
    if not all(file.exists() for file in files):
        edges = [*range(0, count, 1000), count]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            blocks_of = [(seed, a, b, heldout) for a, b in itertools.pairwise(edges)]
            blocks = pool.starmap(draw_block, blocks_of)
        for file, arrays in zip(files, zip(*blocks, strict=True), strict=False):
            np.save(file, np.concatenate(arrays))
    return np.load(files[0]), np.load(files[1])


# --- facts: what a picture shows or a text says, as a weighted vector

PLACED = ("left", "right", "above", "below", "beside")
BASE = {
    "setting": 0, "object": len(SETTINGS), "colour": len(SETTINGS) + len(OBJECTS),
    "pair": (pair_base := len(SETTINGS) + len(OBJECTS) + len(COLOURS)),
    "size": (size_base := pair_base + len(OBJECTS) * len(COLOURS)),
    "placed": size_base + len(OBJECTS) * len(SIZES),
}  # fmt: skip
FACTS = BASE["placed"] + len(PLACED)
WEIGHT = {"setting": 1.0, "object": 1.0, "colour": 0.6, "pair": 0.8, "size": 0.3, "placed": 0.2}
PLACING = {
    "left": ("left", "beside"), "right": ("right", "beside"),
    "beside": ("beside",), "next": ("beside",),
    "above": ("above",), "over": ("above",), "top": ("above",),
    "below": ("below",), "under": ("below",), "beneath": ("below",),
}  # fmt: skip


def text_facts(words: list[str]) -> np.ndarray:
    """Return the facts that `words` state, however broken they are.

    A colour belongs to the object that follows it.
    """
    facts = np.zeros(FACTS, np.float32)

    def add(kind: str, index: int) -> None:
        facts[BASE[kind] + index] += WEIGHT[kind]

    colour = size = relation = None
    objects = 0
    for word in words:
        kind = KIND_OF.get(word)
        if kind:
            add(kind, KINDS[kind].index(word))
        if kind == "colour":
            colour = word
        elif kind == "setting":
            colour = size = relation = None
        elif kind == "object":
            index = OBJECTS.index(word)
            if colour:
                add("pair", index * len(COLOURS) + COLOURS.index(colour))
            if size:
                add("size", index * len(SIZES) + SIZES.index(size))
            for name in PLACING[relation] if relation else ():
                add("placed", PLACED.index(name))
            objects += 1
            colour = size = relation = None
        elif word in SIZES:
            size = word
        elif word in PLACING and objects:
            relation = word
    return facts


def scene_facts(scene: Scene) -> np.ndarray:
    """Return all facts of a scene."""
    phrases = [[t.size, t.colour, t.object] for t in scene.things]
    relation = [scene.relation] if scene.relation else []
    return text_facts([*phrases[0], *relation, *(phrases[1] if relation else []), scene.setting])


def mirrored(scene: Scene) -> Scene:
    """Return the scene of the mirrored picture."""
    swap = {"left": "right", "right": "left"}
    return Scene(scene.things, scene.setting, swap.get(scene.relation or "", scene.relation))


# --- texts: captions, parts of captions, and captions gone wrong, as lists of words


def split(text: str) -> list[str]:
    """Split a text into lower-case words and punctuation marks."""
    return re.findall(r"[a-z]+|[^a-z\s]", text.lower())


def join(words: list[str]) -> str:
    """Return the text of such words."""
    return re.sub(r" ([.,!])", r"\1", " ".join(words))


def content(words: list[str]) -> list[int]:
    """Return the positions of colours, objects and settings."""
    return [i for i, word in enumerate(words) if word in KIND_OF]


def others_like(word: str) -> list[str]:
    """Return the other words of a content word's kind."""
    return [other for other in KINDS[KIND_OF[word]] if other != word]


def without(words: list[str], position: int) -> list[str]:
    """Return the words but for that at a position."""
    return [word for i, word in enumerate(words) if i != position]


def part_of(words: list[str], rng: random.Random) -> list[str]:
    """Return a caption that says less.

    It is cut off, lacks content words, or is made of just a few of them.
    """
    how = rng.random()
    if how < 0.4:
        return words[: rng.randrange(1, len(words))]
    keep = set(content(words))
    if how < 0.7:
        gone = rng.sample(sorted(keep), min(len(keep), rng.choice((1, 1, 2))))
        return [word for i, word in enumerate(words) if i not in gone]
    kept = [words[i] for i in sorted(keep) if rng.random() < 0.7]
    return kept or [words[min(keep)]]


def gone_wrong(words: list[str], rng: random.Random) -> list[str]:
    """Return a text that has gone wrong.

    One content word is swapped for another of its kind, added or repeated, or the words are
    shuffled.
    """
    how, positions, words = rng.random(), content(words), list(words)
    if how < 0.7 and positions:
        at = rng.choice(positions)
        words[at] = rng.choice(others_like(words[at]))
    elif how < 0.85 or not positions:
        words.insert(rng.randint(0, len(words)), rng.choice(KINDS[rng.choice(tuple(KINDS))]))
    elif how < 0.93:
        words.insert(rng.randint(0, len(words)), words[rng.choice(positions)])
    else:
        rng.shuffle(words)
    return words


def texts_of(scene: Scene, rng: random.Random) -> list[list[str]]:
    """Return a whole caption, a part of it, and one gone wrong."""
    words = split(scenes.caption(scene, rng, CHEERFUL + GLOOMY if rng.random() < 0.25 else ()))
    if rng.random() < 0.5:
        words = [word for word in words if word.isalpha()]
    part = part_of(words, rng)
    return [words, part, gone_wrong(words if rng.random() < 0.6 else part, rng)]


def make_tokenizer(seed: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer of printable ASCII and `MERGES` pairs learned from captions."""
    rng = random.Random(seed)
    texts = [join(texts_of(scenes.random_scene(rng), rng)[0]) for _ in range(4000)]
    backend = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(chr(c) for c in range(33, 127) if not chr(c).isupper())
    backend.model = models.BPE(end_of_word_suffix="</w>")
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=100_000, end_of_word_suffix="</w>", show_progress=False,
        max_token_length=LONGEST,
    ))  # fmt: skip
    pairs = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]][:MERGES]
    tokens = [
        START,
        END,
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *("".join(pair) for pair in pairs),
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=LENGTH)


def token_counts(tokenizer: CLIPTokenizer) -> list[int]:
    """Return how many tokens each content word takes."""
    return [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in KIND_OF]


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return the untrained network, about 1.7 million weights."""
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    text = {
        **shape, "num_hidden_layers": 3, "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": start, "eos_token_id": end, "pad_token_id": end, "projection_dim": 256,
    }  # fmt: skip
    vision = {
        **shape,
        "num_hidden_layers": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": 256,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=256)
    config.logit_scale_init_value = math.log(SCALE)
    for part in (config, config.text_config, config.vision_config):
        # On a CPU, twice as fast in training as the fused attention
        part._attn_implementation = "eager"
    return CLIPModel(config)


def focus(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the cross-entropy, in which background patches (class 0) count little."""
    weight = torch.ones(guess.shape[1])
    weight[0] = 0.15
    return cross_entropy(guess, truth, weight)


def rank_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the mean divergence of rows and of columns, as distributions, from the true ones."""
    entropy = -(truth.log_softmax(1).exp() * truth.log_softmax(1)).sum(1).mean()
    entropy_back = -(truth.log_softmax(0).exp() * truth.log_softmax(0)).sum(0).mean()
    rank = cross_entropy(guess, truth.softmax(1)) - entropy
    rank_back = cross_entropy(guess.T, truth.T.softmax(1)) - entropy_back
    return (rank + rank_back) / 2


def patch_loss(shown: Tensor, labels: Tensor) -> Tensor:
    """Return how badly the heads name the object and the colour that each patch shows."""
    background = labels == 0
    thing = (labels - 1).div(len(COLOURS), rounding_mode="floor")
    thing = (thing + 1).masked_fill(background, 0)
    colour = ((labels - 1) % len(COLOURS) + 1).masked_fill(background, 0)
    first = 1 + len(OBJECTS)
    return (focus(shown[:, :first], thing) + focus(shown[:, first:], colour)) / 2


class Trainer:
    """The network, heads that only training needs, and one optimiser over both."""

    def __init__(self, seed: int, compiled: bool) -> None:
        torch.manual_seed(seed)
        self.tokenizer = make_tokenizer(seed)
        self.model = make_model(self.tokenizer)
        self.heads = nn.Linear(128, 1 + len(OBJECTS) + 1 + len(COLOURS))
        self.vision, self.text = self.model.vision_model, self.model.text_model
        if compiled:
            self.vision = torch.compile(self.vision)
            self.text = torch.compile(self.text, dynamic=False)
        groups = {True: [], False: []}
        for parameter in [*self.model.parameters(), *self.heads.parameters()]:
            groups[parameter.ndim > 1].append(parameter)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": 0.05},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            eps=1e-6,
        )

    def encode_texts(self, texts: list[str], groups: int = 2) -> Tensor:
        """Return unit text vectors.

        Texts of like length share a batch, padded to a multiple of eight tokens.
        """
        ids = self.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        parts = []
        for chunk in np.array_split(order, groups):
            width = -(-max(len(ids[i]) for i in chunk) // 8) * 8
            rows = [ids[i] + [self.tokenizer.eos_token_id] * (width - len(ids[i])) for i in chunk]
            parts.append(self.text(input_ids=torch.tensor(rows)).pooler_output)
        back = torch.tensor(np.argsort(order))
        return normalize(self.model.text_projection(torch.cat(parts)).float()[back], dim=-1)

    def encode_pixels(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return unit picture vectors, and the last hidden states of all patches."""
        out = self.vision(pixel_values=torch.from_numpy(pixels).float() / 127.5 - 1)
        vectors = self.model.visual_projection(out.pooler_output).float()
        return normalize(vectors, dim=-1), out.last_hidden_state[:, 1:]

    def loss(
        self, pixels: np.ndarray, labels: np.ndarray, batch: list[Scene], rng: random.Random
    ) -> dict[str, Tensor]:
        """Return the parts of the loss over one batch."""
        words: list[list[str]] = []
        for texts in zip(*(texts_of(scene, rng) for scene in batch), strict=True):
            words += texts
        facts = np.stack([*map(scene_facts, batch), *map(text_facts, words)])
        target = torch.from_numpy(facts / (np.linalg.norm(facts, axis=1, keepdims=True) + 1e-6))
        target = target @ target.T
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image, patches = self.encode_pixels(pixels)
            text = self.encode_texts([join(w) for w in words])
            shown = self.heads(patches).float().flatten(0, 1)
        vectors = torch.cat((image, text))
        cosine = vectors @ vectors.T
        n = len(batch)
        error = (cosine - target) ** 2
        # Pictures stand first, then whole captions, parts, and texts gone wrong, n of each
        own = torch.cat([error[:n, n * k : n * (k + 1)].diagonal() for k in range(1, 4)])
        return {
            "near": 5 * error.mean(),
            "own": 5 * own.mean(),
            "rank": rank_loss(SCALE * cosine[:n, n:], SCALE * target[:n, n:]),
            "patch": patch_loss(shown, torch.from_numpy(labels).long().flatten()),
        }

    def step(self, loss: Tensor, rate: float) -> None:
        """Take one optimiser step at the learning rate `rate`."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()

    def save(self, folder: Path) -> None:
        """Write the Hugging Face folder (weights in float16), replacing an older one at once."""
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        half = CLIPModel(self.model.config)
        half.load_state_dict(self.model.state_dict())
        half.half().save_pretrained(fresh)
        self.tokenizer.save_pretrained(fresh)
        image_processor().save_pretrained(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


# --- figures


@dataclass(frozen=True)
class Variants:
    """Changed captions [begin, end) that a picture's own caption should beat."""

    kind: str
    row: int
    begin: int
    end: int


def variants_of(captions: list[list[str]]) -> tuple[list[list[str]], list[Variants]]:
    """Return captions, then each with one content word exchanged, left out, or cut off before."""
    texts: list[list[str]] = list(captions)
    groups: list[Variants] = []
    for row, words in enumerate(captions):
        positions = content(words)
        for at in positions:
            begin = len(texts)
            texts += [[*words[:at], other, *words[at + 1 :]] for other in others_like(words[at])]
            groups.append(Variants(KIND_OF[words[at]], row, begin, len(texts)))
        begin = len(texts)
        texts += [without(words, at) for at in positions] + [words[:at] for at in positions]
        groups.append(Variants("whole beats part", row, begin, len(texts)))
    return texts, groups


@torch.no_grad()
def measure(trainer: Trainer, pixels: np.ndarray, batch: list[Scene]) -> dict[str, float]:
    """Measure retrieval, the word probe of each kind, and how often whole captions beat parts."""
    trainer.model.eval()
    vision, text = trainer.vision, trainer.text
    trainer.vision, trainer.text = trainer.model.vision_model, trainer.model.text_model
    captions = [split(scenes.plain_caption(scene)) for scene in batch]
    variants, groups = variants_of(captions)
    parts = [variants[i : i + 512] for i in range(0, len(variants), 512)]
    texts = torch.cat([trainer.encode_texts([join(w) for w in part], groups=1) for part in parts])
    images = trainer.encode_pixels(pixels)[0]
    hits: dict[str, list[float]] = {}
    for group in groups:
        image = images[group.row]
        beaten = image @ texts[group.row] > texts[group.begin : group.end] @ image
        each = beaten.tolist() if group.kind == "whole beats part" else [beaten.all().item()]
        hits.setdefault(group.kind, []).extend(each)
    best = (images @ texts[: len(batch)].T).argmax(1).tolist()
    hits["retrieval"] = [captions[i] == captions[row] for row, i in enumerate(best)]
    cosines = (images * texts[: len(batch)]).sum(1)
    trainer.vision, trainer.text = vision, text
    trainer.model.train()
    means = {name: float(np.mean(h)) for name, h in hits.items()}
    return {**means, "own cosine": cosines.mean().item()}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add, cache = parser.add_argument, Path(tempfile.gettempdir())
    add("--seed", type=int, default=0)
    add("--minutes", type=float, help="train for so long, rather than for --steps")
    add("--steps", type=int, default=4500)
    add("--threads", type=int, default=2)
    add("--pictures", type=int, default=40_000)
    add("--batch", type=int, default=128)
    add("--rate", type=float, default=1.5e-3, help="highest learning rate")
    add("--out", type=Path, default=Path("fuse/demo/clip"))
    add("--cache", type=Path, default=cache, help="where drawn pictures are kept")
    add("--json", type=Path, help="write the last figures here")
    add("--eager", action="store_true", help="do without torch.compile")
    add("--every", type=float, default=5.0, help="minutes from one report to the next")
    return parser.parse_args()


class Pictures:
    """The training pictures, in a new random order whenever all have been seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.pixels, self.labels = load_pictures(options.seed, options.pictures, options.cache)
        self.scenes = [scene_at(options.seed, i)[0] for i in range(options.pictures)]
        self.rng, self.shuffle = random.Random(options.seed), np.random.default_rng(options.seed)
        self.order = np.empty(0, int)

    def batch(self, size: int) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
        """Return the pixels, labels and scenes of the next pictures, mirrored half of the time."""
        if len(self.order) < size:
            self.order = self.shuffle.permutation(len(self.scenes))
        rows, self.order = np.sort(self.order[:size]), self.order[size:]
        pixels, labels, batch = self.pixels[rows], self.labels[rows], [self.scenes[i] for i in rows]
        if self.rng.random() < 0.5:
            batch = [*map(mirrored, batch)]
            return pixels[..., ::-1].copy(), labels[..., ::-1].copy(), batch
        return pixels, labels, batch


def train(trainer: Trainer, pictures: Pictures, probe: Any, options: argparse.Namespace) -> dict:
    """Train, saving and reporting at times on the pixels and scenes of `probe`."""
    begun = reported = time.monotonic()
    step, last_step, sums = 0, 0, {}

    def report() -> dict[str, float]:
        figures = measure(trainer, *probe)
        losses = {name: round(total / max(1, step - last_step), 4) for name, total in sums.items()}
        rounded = {name: round(value, 3) for name, value in figures.items()}
        print(f"step {step} {minutes_since(begun):.1f} min {losses} {rounded}", flush=True)
        return figures

    while True:
        spent = minutes_since(begun)
        done = spent / options.minutes if options.minutes else step / options.steps
        if done >= 1:
            break
        parts = trainer.loss(*pictures.batch(options.batch), pictures.rng)
        trainer.step(sum(parts.values()), rate_at(options.rate, step, done))
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        step += 1
        if minutes_since(reported) > options.every:
            report()
            trainer.save(options.out)
            reported, last_step = time.monotonic(), step
            sums.clear()
    figures = {**report(), "steps": step}
    trainer.save(options.out)
    return {**figures, "minutes": minutes_since(begun)}


def main() -> None:
    """Train, save, and print the figures."""
    options = arguments()
    torch.set_num_threads(options.threads)
    pictures = Pictures(options)
    unseen, _ = load_pictures(options.seed + 1, 200, options.cache, heldout=True)
    probe = [scene_at(options.seed + 1, i, True)[0] for i in range(len(unseen))]
    trainer = Trainer(options.seed, not options.eager)
    counts = token_counts(trainer.tokenizer)
    share, size = sum(c > 1 for c in counts) / len(counts), len(trainer.tokenizer)
    about = f"content words split: {share:.3f}, at most {max(counts)} tokens"
    print(f"{size} tokens, {about}", flush=True)
    figures = train(trainer, pictures, (unseen, probe), options)
    figures |= {"split": share, "vocabulary": size}
    figures["megabytes"] = sum(f.stat().st_size for f in options.out.iterdir()) / 1e6
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
