r"""Train the demo language model: a small GPT-2 over the sentences of `world.sentences`.

python scripts/train_lm.py --seed 0                 # writes fuse/demo/lm
python scripts/train_lm.py --seed 0 --tokenizer fuse/demo/lm --layers 2 --width 96 \
    --documents 200000 --steps 5000 --out fuse/demo/lm_small            # its smaller sibling
python scripts/train_lm.py --corpus-only            # writes fuse/demo/corpus.txt
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer, processors
from training import minutes_since, take_step
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from world.scenes import caption, random_scene
from world.sentences import free_sentence, mentions_heldout, sentence

DEMO = Path(__file__).parent.parent / "fuse" / "demo"
END = "<|endoftext|>"
POSITIONS = 128


def document(rng: random.Random) -> str:
    """Return one sentence, sometimes more, sometimes without its full stop.

    No held-out combination arises by joining.
    """
    text = sentence(rng)
    while rng.random() < 0.15:
        more = f"{text} {sentence(rng)}"
        if mentions_heldout(more):
            break
        text = more
    return text.rstrip(".") if rng.random() < 0.12 else text


def documents(seed: int, count: int) -> list[str]:
    """Return `count` documents, kept under the temporary directory for a later run."""
    rng = random.Random(seed)
    texts = [document(rng) for _ in range(min(count, 1000))]
    # Another grammar, another cache
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
    cache = Path(tempfile.gettempdir()) / f"fuse_documents_{digest}_{count}.json"
    if cache.exists():
        return json.loads(cache.read_text())
    texts += [document(rng) for _ in range(count - len(texts))]
    cache.write_text(json.dumps(texts))
    return texts


def write_corpus(path: Path, count: int = 6000, common: int = 4500, seed: int = 1234) -> None:
    """Write the text that adapters are fitted on, one sentence a line.

    Of `count` sentences, `common` are drawn as they come; each other is the one of many draws whose
    words have been rarest so far.
    """
    rng = random.Random(seed)
    chosen = [sentence(rng) for _ in range(common)]
    counts: Counter[str] = Counter()
    for text in chosen:
        counts.update(words_of(text))
    while len(chosen) < count:
        draws = [free_sentence(rng) for _ in range(40)]
        chosen.append(max(draws, key=lambda text: rarity(text, counts)))
        counts.update(words_of(chosen[-1]))
    rng.shuffle(chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in chosen))


def rarity(text: str, counts: Counter[str]) -> float:
    """Return how rare the words of a text are, given how often each was seen."""
    return sum(1 / (1 + counts[word]) ** 2 for word in words_of(text))


def words_of(text: str) -> set[str]:
    """Return the words of `text` in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def make_tokenizer(texts: list[str], size: int) -> GPT2Tokenizer:
    """Return a cased byte-level BPE as GPT-2's; `<|endoftext|>` begins, ends and pads."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train_from_iterator(
        texts, vocab_size=size, min_frequency=2, special_tokens=[END], show_progress=False
    )
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = GPT2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]], bos_token=END,
        eos_token=END,
        unk_token=END, pad_token=END, model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    # Every document begins with it, as in training
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.bos_token_id)]
    )
    return tokenizer


def batches(
    ids: list[list[int]], end: int, tokens: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs, labels) of about `tokens` tokens without end.

    Mostly documents from position 0 on, padded among their like in length; every tenth batch holds
    rows filled up to the last position, so that all positions are trained.
    """
    while True:
        order = list(range(len(ids)))
        rng.shuffle(order)
        for start in range(0, len(order), 8192):
            pool = [[end, *ids[i], end] for i in order[start : start + 8192]]
            tenth, per_batch = len(pool) // 10, tokens // POSITIONS
            flat = list(itertools.chain(*(row[:-1] for row in pool[:tenth])))
            full = [flat[i : i + POSITIONS] for i in range(0, len(flat) - POSITIONS, POSITIONS)]
            rows = sorted((row[:POSITIONS] for row in pool[tenth:]), key=len)
            groups = [full[i : i + per_batch] for i in range(0, len(full), per_batch)]
            while rows:
                count = max(1, tokens // len(rows[-1]))
                groups.append(rows[-count:])
                del rows[-count:]
            rng.shuffle(groups)
            for group in groups:
                width = max(map(len, group))
                inputs = torch.tensor([row + [end] * (width - len(row)) for row in group])
                labels = torch.tensor([row + [-100] * (width - len(row)) for row in group])
                yield inputs, labels


def loss_of(model: GPT2LMHeadModel, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the next tokens.

    Padding is on the right, so causal attention needs no mask.
    """
    logits = model(inputs, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, texts: list[str]) -> float:
    """Return the per-token perplexity of texts, each between two `<|endoftext|>`."""
    end, total, count = tokenizer.eos_token_id, 0.0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        row = torch.tensor([[end, *ids, end]])
        total += loss_of(model, row, row).item() * (row.shape[1] - 1)
        count += row.shape[1] - 1
    return math.exp(total / count)


def save(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, folder: Path) -> None:
    """Write the folder, weights in float16; the model in memory stays as it is."""
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def report(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, count: int = 500) -> dict:
    """Return perplexities on texts that training has not seen, and ten samples."""
    model.eval()
    rng = random.Random(987654321)
    captions = [caption(random_scene(rng), rng) for _ in range(count)]
    heldout = [caption(random_scene(rng, True), rng) for _ in range(count)]
    other = [free_sentence(rng) for _ in range(count)]
    figures: dict = {
        "captions": perplexity(model, tokenizer, captions),
        "heldout_captions": perplexity(model, tokenizer, heldout),
        "other_sentences": perplexity(model, tokenizer, other),
    }
    torch.manual_seed(0)
    start = torch.full((10, 1), tokenizer.bos_token_id)
    rows = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=60
    )
    figures["samples"] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    model.train()
    return figures


def make_model(end: int, args: argparse.Namespace, size: int) -> GPT2LMHeadModel:
    """Return the untrained network for a vocabulary of this size."""
    config = GPT2Config(
        vocab_size=size, n_positions=POSITIONS,
        n_embd=args.width, n_layer=args.layers, n_head=args.width // 32,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    # Twice as fast as fused attention for rows this short on a CPU
    model.set_attn_implementation("eager")
    return model


def train(args: argparse.Namespace, ids: list[list[int]], tokenizer: GPT2Tokenizer) -> int:
    """Train on the tokenized documents, saving at times; return the number of steps."""
    end = tokenizer.eos_token_id
    model = make_model(end, args, len(tokenizer))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    stream = batches(ids, end, args.tokens, random.Random(args.seed))
    began = saved = time.monotonic()
    step, done, running = 0, 0.0, 0.0
    while done < 1:
        decay = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
        rate = args.rate * min(1, (step + 1) / 200) * decay
        inputs, labels = next(stream)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = loss_of(model, inputs, labels)
        take_step(model, optimizer, loss, rate)
        step += 1
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        minutes = minutes_since(began)
        done = max(step / args.steps, minutes / args.minutes if args.minutes else 0)
        if step % 100 == 0:
            figures = f"loss {running:.4f} rate {rate:.2e} minutes {minutes:.1f}"
            print(f"step {step} {figures}", flush=True)
        if minutes_since(saved) > args.save_every:
            save(model, tokenizer, args.out)
            saved = time.monotonic()
    save(model, tokenizer, args.out)
    return step


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, boolean = parser.add_argument, argparse.BooleanOptionalAction
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=13_800)
    add("--minutes", type=float, help="end sooner, after so many minutes")
    add("--documents", type=int, default=800_000)
    add("--vocabulary", type=int, default=1800)
    add("--tokenizer", type=Path, help="folder of a tokenizer to take, instead of making one")
    add("--layers", type=int, default=4)
    add("--width", type=int, default=192)
    add("--rate", type=float, default=2e-3)
    add("--tokens", type=int, default=2048, help="tokens in a batch")
    add("--threads", type=int, default=1)
    add("--bf16", action=boolean, default=True, help="train under bfloat16 autocast")
    add("--save-every", type=float, default=8.0, help="minutes between intermediate saves")
    add("--out", type=Path, default=DEMO / "lm")
    add("--json", type=Path, help="write the report here")
    add("--corpus-only", action="store_true", help="write corpus.txt and end")
    return parser.parse_args()


def main() -> None:
    """Train, report."""
    args = arguments()
    if args.corpus_only:
        write_corpus(DEMO / "corpus.txt")
        return

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts = documents(args.seed, args.documents)
    if args.tokenizer:
        tokenizer = GPT2Tokenizer.from_pretrained(args.tokenizer)
    else:
        tokenizer = make_tokenizer(texts[:100_000], args.vocabulary)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    count = sum(map(len, ids))
    print(f"{len(texts)} documents, {count} tokens, vocabulary {len(tokenizer)}", flush=True)
    began = time.monotonic()
    figures: dict = {"steps": train(args, ids, tokenizer), "minutes": minutes_since(began)}
    model = GPT2LMHeadModel.from_pretrained(args.out, dtype=torch.float32)
    figures |= {"parameters": model.num_parameters(), **report(model, tokenizer)}
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
