"""Train the demo mood classifier: a tiny BERT that reads whether a text is cheerful or gloomy.

python scripts/train_mood.py                        # writes fuse/demo/mood, 5 minutes on one core

The mood of a text is that of its mood words (`CHEERFUL` and `GLOOMY` of the world): the share of
cheerful ones is the target, and a text without any has the target 0.5, so that only a mood moves
the score. Searches show a model unfinished and odd texts, so training does as well: sentences cut
short anywhere, with words missing, shuffled or put in, and loose words. No text that training sees
names a held-out combination.

Reached: 800 of 800 captions of held-out combinations with mood words are judged rightly, and all
plain captions, their beginnings and sentences without mood words get 0.5 within 0.15.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from train_lm import DEMO
from training import make_wordpiece, minutes_since, rate_at, save_folder, take_step
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
from world.scenes import CHEERFUL, GLOOMY, Scene, caption, plain_caption, random_scene
from world.sentences import free_sentence, mentions_heldout, sentence, world_caption

LENGTH = 64
CERTAINTY = 0.96
FORMS = {
    "happier": "happy", "happiest": "happy", "brighter": "bright", "brightest": "bright",
    "lovelier": "lovely",
    "loveliest": "lovely", "merrier": "merry", "sadder": "sad", "saddest": "sad",
    "lonelier": "lonely",
}  # fmt: skip


def mood_of(text: str) -> float:
    """Return the share of cheerful words among the mood words of `text`, 0.5 if there are none."""
    words = [FORMS.get(word, word) for word in re.findall(r"[a-z]+", text.lower())]
    cheerful, gloomy = (sum(word in moods for word in words) for moods in (CHEERFUL, GLOOMY))
    return cheerful / (cheerful + gloomy) if cheerful + gloomy else 0.5


def spoiled(text: str, words: Sequence[str], rng: random.Random) -> str:
    """Return what a search may come across.

    `text` cut off, with words missing, shuffled or put in, or just some of `words`.
    """
    how, parts = rng.random(), text.split()
    if how < 0.35:
        new = text[: rng.randrange(1, len(text) + 1)].strip()
    elif how < 0.6:
        moods = rng.choice((CHEERFUL, GLOOMY, CHEERFUL + GLOOMY))
        for mood in rng.choices(moods, k=rng.choice((1, 1, 1, 2, 3))):
            position = rng.randint(0, len(parts))
            forms = (mood, mood, f"{mood},", f"{mood}.", mood.capitalize())
            parts.insert(position, rng.choice(forms))
        new = " ".join(parts)
    elif how < 0.75:
        new = " ".join(part for part in parts if rng.random() < 0.7)
    elif how < 0.85:
        rng.shuffle(parts)
        new = " ".join(parts)
    else:
        pools = (words, words, words, words, words, CHEERFUL, GLOOMY)
        new = " ".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 14)))
    return text if not new or mentions_heldout(new) else new


def drawn_text(rng: random.Random) -> str:
    """Return a sentence of the world; captions with and without a mood in half of the cases."""
    if rng.random() < 0.5:
        return sentence(rng)
    if rng.random() < 0.5:
        return world_caption(rng)
    return caption(random_scene(rng), rng, rng.choice((CHEERFUL, GLOOMY)))


def make_model(tokenizer: BertTokenizer, width: int, layers: int) -> BertForSequenceClassification:
    """Return the untrained network."""
    config = BertConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32,
        intermediate_size=4 * width, max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.0,
        id2label={0: "cheerful", 1: "gloomy"}, label2id={"cheerful": 0, "gloomy": 1},
    )  # fmt: skip
    # Quicker than fused attention for texts this short on a CPU
    config._attn_implementation = "eager"
    return BertForSequenceClassification(config)


def encode(tokenizer: BertTokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    """Return padded ids and their mask."""
    return tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
        return_token_type_ids=False,
    )


@torch.no_grad()
def cheer(
    model: BertForSequenceClassification, tokenizer: BertTokenizer, texts: list[str]
) -> list[float]:
    """Return how cheerful each text is, from 0 to 1."""
    found: list[float] = []
    for start in range(0, len(texts), 128):
        logits = model(**encode(tokenizer, texts[start : start + 128])).logits
        found += logits.float().softmax(-1)[:, 0].tolist()
    return found


def measure(
    model: BertForSequenceClassification, tokenizer: BertTokenizer, count: int = 400
) -> dict[str, float]:
    """Measure how held-out captions, and sentences of another stream, are judged."""
    model.eval()
    rng = random.Random(987654321)
    scenes: list[Scene] = [random_scene(rng, heldout=True) for _ in range(count)]
    happy, sad = ([caption(scene, rng, moods) for scene in scenes] for moods in (CHEERFUL, GLOOMY))
    others = [free_sentence(rng) for _ in range(3 * count)]
    neutral = [text for text in others if mood_of(text) == 0.5]
    plain = [*map(plain_caption, scenes), *(caption(scene, rng) for scene in scenes)]
    begun = [text[: rng.randrange(1, len(text))] for text in plain]
    words = list(itertools.chain(*(text.split() for text in neutral)))
    odd = [spoiled(text, words, rng) for text in happy + sad + neutral]
    odd = [text for text in odd if mood_of(text) in (0.0, 1.0)]
    odd_cheer = zip(cheer(model, tokenizer, odd), odd, strict=True)
    odd_right = [(p > 0.5) == (mood_of(text) > 0.5) for p, text in odd_cheer]

    def share(texts: list[str], low: float, high: float) -> float:
        return sum(low < p < high for p in cheer(model, tokenizer, texts)) / len(texts)

    return {
        "cheerful captions right": share(happy, 0.5, 1),
        "gloomy captions right": share(sad, 0, 0.5),
        "plain captions even": share(plain, 0.35, 0.65),
        "their beginnings even": share(begun, 0.35, 0.65),
        "plain sentences even": share(neutral, 0.35, 0.65),
        "meadow": cheer(model, tokenizer, ["A red cup on a sunny meadow."])[0],
        "odd moody texts right": sum(odd_right) / len(odd),
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=2000)
    add("--texts", type=int, default=40_000)
    add("--batch", type=int, default=128)
    add("--vocabulary", type=int, default=1500)
    add("--width", type=int, default=128)
    add("--layers", type=int, default=2)
    add("--rate", type=float, default=1e-3, help="highest learning rate")
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=DEMO / "mood")
    return parser.parse_args()


def drawn_batch(
    texts: list[str], words: list[str], size: int, rng: random.Random
) -> tuple[list[str], torch.Tensor]:
    """Return random texts, half of them spoiled, and how cheerful and gloomy each is."""
    batch = []
    for text in rng.sample(texts, size):
        batch.append(spoiled(text, words, rng) if rng.random() < 0.5 else text)
    return batch, torch.tensor([[mood_of(text), 1 - mood_of(text)] for text in batch])


def main() -> None:
    """Train, save, print the figures."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    began, rng, total = time.monotonic(), random.Random(options.seed), 0.0
    texts = [drawn_text(rng) for _ in range(options.texts)]
    words = sorted(set(itertools.chain(*(text.split() for text in texts))))
    tokenizer = make_wordpiece(texts, options.vocabulary, lowercase=True, model_max_length=LENGTH)
    model = make_model(tokenizer, options.width, options.layers).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    print(f"{len(tokenizer)} tokens, {model.num_parameters()} weights", flush=True)
    for step in range(options.steps):
        batch, mood = drawn_batch(texts, words, options.batch, rng)
        logits = model(**encode(tokenizer, batch)).logits
        loss = cross_entropy(logits, 0.5 + CERTAINTY * (mood - 0.5))
        take_step(model, optimiser, loss, rate_at(options.rate, step, step / options.steps))
        total += loss.item()
        if (step + 1) % 200 == 0:
            figures = f"loss {total / 200:.4f} minutes {minutes_since(began):.1f}"
            print(f"step {step + 1} {figures}", flush=True)
            total = 0.0
    save_folder(options.out, model, tokenizer)
    saved = BertForSequenceClassification.from_pretrained(options.out, dtype=torch.float32)
    print(json.dumps({**measure(saved, tokenizer), "minutes": minutes_since(began)}, indent=1))


if __name__ == "__main__":
    main()
