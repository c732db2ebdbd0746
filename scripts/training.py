"""What the training scripts of the small demo models share."""

from __future__ import annotations

import copy
import json
import math
import shutil
import string
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import trainers
from torch import Tensor
from transformers import BertTokenizer


def make_wordpiece(
    texts: Iterable[str], size: int, lowercase: bool, more: tuple[str, ...] = (), **options: Any
) -> BertTokenizer:
    """Learn BERT's kind of tokenizer from `texts`, with printable ASCII and `more` tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *more]
    backend = BertTokenizer(do_lower_case=lowercase).backend_tokenizer
    alphabet = [c for c in string.printable if not c.isspace() and not (lowercase and c.isupper())]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    return BertTokenizer(
        vocab=json.loads(backend.to_str())["model"]["vocab"], do_lower_case=lowercase, **options
    )


def rate_at(highest: float, step: int, done: float, warm: int = 100) -> float:
    """Return the learning rate: up over `warm` steps, then down a cosine as `done` goes to 1."""
    return highest * min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))


def take_step(model: Any, optimiser: Any, loss: Tensor, rate: float) -> None:
    """Take one optimiser step at the learning rate `rate`, with clipped gradients."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def minutes_since(began: float) -> float:
    """Return how many minutes have passed since a `time.monotonic()`."""
    return (time.monotonic() - began) / 60


def save_folder(folder: Path, model: Any, *parts: Any) -> None:
    """Write the model in float16 and its processors as one folder, replacing an older one."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    for part in parts:
        part.save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
