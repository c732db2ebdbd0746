"""Train the small demo CLIP on drawn scenes and save it as an ordinary Hugging Face folder.

Pictures and texts are both described by weighted facts (setting, object, colour, which colour sits on which object).
The cosine of two fact vectors is the target for the cosine of the two embeddings, so that the score of a sentence rises
with every right detail and falls with every wrong one. That target also tells apart true and false negatives in a batch.
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
from pathlib import Path

import numpy as np
import torch
from tokenizers import models, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from world import drawing, scenes
from world.scenes import CHEERFUL, COLOURS, GLOOMY, OBJECTS, SETTINGS, SIZES, Scene

SIDE, PATCH, LENGTH = 64, 8, 64
GRID = SIDE // PATCH
MERGES, LONGEST = 260, 5
SCALE = 20.0
START, END = "<|startoftext|>", "<|endoftext|>"
KINDS: dict[str, tuple[str, ...]] = {"colour": COLOURS, "object": OBJECTS, "setting": tuple(SETTINGS)}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}


def image_processor() -> CLIPImageProcessor:
    """The processor that ships with the model: resize to 64 x 64 and scale to -1..1."""
    return CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=2, do_center_crop=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip


def scene_at(seed: int, index: int, heldout: bool = False) -> tuple[Scene, random.Random]:
    """Scene number `index` of a stream, and the generator that goes on to draw it."""
    rng = random.Random(f"{seed} {index} {heldout}")
    return scenes.random_scene(rng, heldout), rng


def draw_block(seed: int, start: int, stop: int, heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as the processor resizes them (uint8, channels first), and what each of their patches shows.

    A patch is labelled 0 for background or 1 + object * colours + colour.
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
            labels[row][inside] = 1 + OBJECTS.index(thing.object) * len(COLOURS) + COLOURS.index(thing.colour)
    return pixels, labels


def load_pictures(seed: int, count: int, cache: Path, heldout: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` pictures of a stream with their patch labels, drawn once and kept under `cache`."""
    source = b"".join(Path(m.__file__ or "").read_bytes() for m in (drawing, scenes))
    name = f"fuse_pictures_{hashlib.sha256(source).hexdigest()[:8]}_{seed}_{count}_{heldout}"
    files = [cache / f"{name}_{part}.npy" for part in ("pixels", "labels")]
    if not all(file.exists() for file in files):
        edges = [*range(0, count, 1000), count]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            blocks = pool.starmap(draw_block, [(seed, a, b, heldout) for a, b in itertools.pairwise(edges)])
        for file, arrays in zip(files, zip(*blocks, strict=True), strict=False):
            np.save(file, np.concatenate(arrays))
    return np.load(files[0]), np.load(files[1])


# --- facts: what a picture shows or a text says, as a weighted vector

PLACED = ("left", "right", "above", "below", "beside")
BASE = {
    "setting": 0, "object": len(SETTINGS), "colour": len(SETTINGS) + len(OBJECTS),
    "pair": (pair_base := len(SETTINGS) + len(OBJECTS) + len(COLOURS)),
    "size": (size_base := pair_base + len(OBJECTS) * len(COLOURS)), "placed": size_base + len(OBJECTS) * len(SIZES),
}  # fmt: skip
FACTS = BASE["placed"] + len(PLACED)
WEIGHT = {"setting": 1.0, "object": 1.0, "colour": 0.6, "pair": 0.8, "size": 0.3, "placed": 0.2}
PLACING = {
    "left": ("left", "beside"), "right": ("right", "beside"), "beside": ("beside",), "next": ("beside",),
    "above": ("above",), "over": ("above",), "top": ("above",),
    "below": ("below",), "under": ("below",), "beneath": ("below",),
}  # fmt: skip


def text_facts(words: list[str]) -> np.ndarray:
    """The facts that `words` tell, however broken they are: a colour belongs to the object that follows it."""
    facts = np.zeros(FACTS, np.float32)

    def add(kind: str, index: int) -> None:
        facts[BASE[kind] + index] += WEIGHT[kind]

    colour = size = place = None
    objects = 0
    for word in words:
        kind = KIND_OF.get(word)
        if kind:
            add(kind, KINDS[kind].index(word))
        if kind == "colour":
            colour = word
        elif kind == "setting":
            colour = size = place = None
        elif kind == "object":
            index = OBJECTS.index(word)
            if colour:
                add("pair", index * len(COLOURS) + COLOURS.index(colour))
            if size:
                add("size", index * len(SIZES) + SIZES.index(size))
            for name in PLACING[place] if place else ():
                add("placed", PLACED.index(name))
            objects += 1
            colour = size = place = None
        elif word in SIZES:
            size = word
        elif word in PLACING and objects:
            place = word
    return facts


def scene_facts(scene: Scene) -> np.ndarray:
    """All facts of a scene."""
    phrases = [[t.size, t.colour, t.object] for t in scene.things]
    relation = [scene.relation] if scene.relation else []
    return text_facts([*phrases[0], *relation, *(phrases[1] if relation else []), scene.setting])


def mirrored(scene: Scene) -> Scene:
    """The scene of the mirrored picture."""
    swap = {"left": "right", "right": "left"}
    return Scene(scene.things, scene.setting, swap.get(scene.relation or "", scene.relation))


# --- texts: captions, parts of captions, and captions gone wrong, as lists of words


def split(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return re.findall(r"[a-z]+|[^a-z\s]", text.lower())


def join(words: list[str]) -> str:
    """The text of such words."""
    return re.sub(r" ([.,!])", r"\1", " ".join(words))


def content(words: list[str]) -> list[int]:
    """Where the colours, objects and settings stand."""
    return [i for i, word in enumerate(words) if word in KIND_OF]


def part_of(words: list[str], rng: random.Random) -> list[str]:
    """A caption that tells less: cut off, with content words missing, or just a few content words."""
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
    """A text with one content word swapped for another of its kind, added or repeated, or with its words shuffled."""
    how, places, words = rng.random(), content(words), list(words)
    if how < 0.7 and places:
        at = rng.choice(places)
        words[at] = rng.choice([w for w in KINDS[KIND_OF[words[at]]] if w != words[at]])
    elif how < 0.85 or not places:
        words.insert(rng.randint(0, len(words)), rng.choice(KINDS[rng.choice(tuple(KINDS))]))
    elif how < 0.93:
        words.insert(rng.randint(0, len(words)), words[rng.choice(places)])
    else:
        rng.shuffle(words)
    return words


def texts_of(scene: Scene, rng: random.Random) -> list[list[str]]:
    """A whole caption, a part of it, and one gone wrong."""
    words = split(scenes.caption(scene, rng, CHEERFUL + GLOOMY if rng.random() < 0.25 else ()))
    if rng.random() < 0.5:
        words = [word for word in words if word.isalpha()]
    part = part_of(words, rng)
    return [words, part, gone_wrong(words if rng.random() < 0.6 else part, rng)]


def make_tokenizer(seed: int) -> CLIPTokenizer:
    """A CLIP tokenizer of printable ASCII and `MERGES` pairs learned from captions."""
    rng = random.Random(seed)
    texts = [join(texts_of(scenes.random_scene(rng), rng)[0]) for _ in range(4000)]
    backend = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(chr(c) for c in range(33, 127) if not chr(c).isupper())
    backend.model = models.BPE(end_of_word_suffix="</w>")
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=100_000, end_of_word_suffix="</w>", show_progress=False, max_token_length=LONGEST,
    ))  # fmt: skip
    pairs = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]][:MERGES]
    tokens = [START, END, *alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in pairs)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=LENGTH)


def piece_counts(tokenizer: CLIPTokenizer) -> list[int]:
    """How many tokens each content word takes."""
    return [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in KIND_OF]


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained network, about 1.7 million weights."""
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    text = {
        **shape, "num_hidden_layers": 3, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH,
        "bos_token_id": start, "eos_token_id": end, "pad_token_id": end, "projection_dim": 256,
    }  # fmt: skip
    vision = {**shape, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 256}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=256)
    config.logit_scale_init_value = math.log(SCALE)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"  # on a CPU, twice as fast in training as the fused attention
    return CLIPModel(config)


def focus(guess: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy in which background patches (class 0) count little."""
    weight = torch.ones(guess.shape[1])
    weight[0] = 0.15
    return cross_entropy(guess, truth, weight)


class Trainer:
    """The network, heads that only training needs, and one optimiser over both."""

    def __init__(self, seed: int, compiled: bool) -> None:
        torch.manual_seed(seed)
        self.tokenizer = make_tokenizer(seed)
        self.model = make_model(self.tokenizer)
        self.heads = nn.Linear(128, 1 + len(OBJECTS) + 1 + len(COLOURS))
        self.vision, self.text = self.model.vision_model, self.model.text_model
        if compiled:
            self.vision, self.text = torch.compile(self.vision), torch.compile(self.text, dynamic=False)
        groups = {True: [], False: []}
        for parameter in [*self.model.parameters(), *self.heads.parameters()]:
            groups[parameter.ndim > 1].append(parameter)
        self.optimiser = torch.optim.AdamW(
            [{"params": groups[True], "weight_decay": 0.05}, {"params": groups[False], "weight_decay": 0.0}],
            betas=(0.9, 0.98), eps=1e-6,
        )  # fmt: skip

    def encode_texts(self, texts: list[str], groups: int = 2) -> Tensor:
        """Unit text vectors; texts of like length share a batch, padded to a multiple of eight tokens."""
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
        """Unit picture vectors, and the last hidden states of all patches."""
        out = self.vision(pixel_values=torch.from_numpy(pixels).float() / 127.5 - 1)
        return normalize(self.model.visual_projection(out.pooler_output).float(), dim=-1), out.last_hidden_state[:, 1:]

    def loss(self, pixels: np.ndarray, labels: np.ndarray, batch: list[Scene], rng: random.Random) -> dict[str, Tensor]:
        """Parts of the loss over one batch."""
        words = [text for texts in zip(*(texts_of(scene, rng) for scene in batch), strict=True) for text in texts]
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
        own = torch.cat([error[:n, n * k : n * (k + 1)].diagonal() for k in range(1, 4)])
        guess, truth = SCALE * cosine[:n, n:], SCALE * target[:n, n:]
        entropy = -(truth.log_softmax(1).exp() * truth.log_softmax(1)).sum(1).mean()
        entropy_back = -(truth.log_softmax(0).exp() * truth.log_softmax(0)).sum(0).mean()
        rank = cross_entropy(guess, truth.softmax(1)) - entropy
        rank_back = cross_entropy(guess.T, truth.T.softmax(1)) - entropy_back
        seen = torch.from_numpy(labels).long().flatten()
        thing, colour = (seen - 1).div(len(COLOURS), rounding_mode="floor"), (seen - 1) % len(COLOURS)
        background = seen == 0
        thing, colour = (thing + 1).masked_fill(background, 0), (colour + 1).masked_fill(background, 0)
        first = 1 + len(OBJECTS)
        return {
            "near": 5 * error.mean(), "own": 5 * own.mean(), "rank": (rank + rank_back) / 2,
            "patch": (focus(shown[:, :first], thing) + focus(shown[:, first:], colour)) / 2,
        }  # fmt: skip

    def step(self, loss: Tensor, rate: float) -> None:
        """One optimiser step at the learning rate `rate`."""
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


@torch.no_grad()
def measure(trainer: Trainer, pixels: np.ndarray, batch: list[Scene]) -> dict[str, float]:
    """Retrieval, the word probe of each kind, and how often whole captions beat their parts."""
    trainer.model.eval()
    vision, text = trainer.vision, trainer.text
    trainer.vision, trainer.text = trainer.model.vision_model, trainer.model.text_model
    captions = [split(scenes.plain_caption(scene)) for scene in batch]
    variants: list[list[str]] = list(captions)
    groups: list[tuple[str, int, int, int]] = []
    for row, words in enumerate(captions):
        for at in content(words):
            begin, kind = len(variants), KIND_OF[words[at]]
            others = [w for w in KINDS[kind] if w != words[at]]
            variants += [[*words[:at], other, *words[at + 1 :]] for other in others]
            groups.append((kind, row, begin, len(variants)))
        begin, places = len(variants), content(words)
        variants += [[w for i, w in enumerate(words) if i != at] for at in places] + [words[:at] for at in places]
        groups.append(("whole beats part", row, begin, len(variants)))
    parts = [variants[i : i + 512] for i in range(0, len(variants), 512)]
    texts = torch.cat([trainer.encode_texts([join(w) for w in part], groups=1) for part in parts])
    images = trainer.encode_pixels(pixels)[0]
    hits: dict[str, list[float]] = {}
    for kind, row, begin, end in groups:
        beaten = images[row] @ texts[row] > texts[begin:end] @ images[row]
        hits.setdefault(kind, []).extend(beaten.tolist() if kind == "whole beats part" else [beaten.all().item()])
    best = (images @ texts[: len(batch)].T).argmax(1).tolist()
    hits["retrieval"] = [captions[i] == captions[row] for row, i in enumerate(best)]
    cosines = (images * texts[: len(batch)]).sum(1)
    trainer.vision, trainer.text = vision, text
    trainer.model.train()
    return {**{name: float(np.mean(h)) for name, h in hits.items()}, "own cosine": cosines.mean().item()}


def main() -> None:
    """Train, save, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="train for so long, rather than for --steps")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--out", type=Path, default=Path("fuse/demo/clip"))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()), help="where drawn pictures are kept")
    parser.add_argument("--json", type=Path, help="write the last figures here")
    parser.add_argument("--eager", action="store_true", help="do without torch.compile")
    parser.add_argument("--every", type=float, default=5.0, help="minutes from one report to the next")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pixels, labels = load_pictures(options.seed, options.pictures, options.cache)
    unseen, _ = load_pictures(options.seed + 1, 200, options.cache, heldout=True)
    told = [scene_at(options.seed, i)[0] for i in range(options.pictures)]
    probe = [scene_at(options.seed + 1, i, True)[0] for i in range(len(unseen))]
    trainer = Trainer(options.seed, not options.eager)
    counts = piece_counts(trainer.tokenizer)
    share = sum(c > 1 for c in counts) / len(counts)
    print(f"{len(trainer.tokenizer)} tokens, content words split: {share:.3f}, at most {max(counts)} tokens", flush=True)
    rng, shuffle = random.Random(options.seed), np.random.default_rng(options.seed)
    begun = reported = time.monotonic()
    step, order, sums = 0, np.empty(0, int), {}

    def report() -> dict[str, float]:
        figures = measure(trainer, unseen, probe)
        losses = {name: round(total / max(1, step - last_step), 4) for name, total in sums.items()}
        minutes = (time.monotonic() - begun) / 60
        print(f"step {step} {minutes:.1f} min {losses} { {k: round(v, 3) for k, v in figures.items()} }", flush=True)
        return figures

    last_step = 0
    while True:
        spent = (time.monotonic() - begun) / 60
        done = spent / options.minutes if options.minutes else step / options.steps
        if done >= 1:
            break
        if len(order) < options.batch:
            order = shuffle.permutation(options.pictures)
        rows, order = np.sort(order[: options.batch]), order[options.batch :]
        batch, images, seen = [told[i] for i in rows], pixels[rows], labels[rows]
        if rng.random() < 0.5:
            batch, images, seen = [*map(mirrored, batch)], images[..., ::-1].copy(), seen[..., ::-1].copy()
        parts = trainer.loss(images, seen, batch, rng)
        rate = options.rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        trainer.step(sum(parts.values()), rate)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        step += 1
        if time.monotonic() - reported > 60 * options.every:
            report()
            trainer.save(options.out)
            reported, last_step = time.monotonic(), step
            sums.clear()
    figures = {**report(), "split": share, "vocabulary": len(trainer.tokenizer), "steps": step}
    trainer.save(options.out)
    figures["megabytes"] = sum(f.stat().st_size for f in options.out.iterdir()) / 1e6
    figures["minutes"] = (time.monotonic() - begun) / 60
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
