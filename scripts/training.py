"""What the training scripts of the small demo models share: a WordPiece tokenizer, a learning rate, a folder in float16."""

from __future__ import annotations

import copy
import json
import math
import shutil
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import trainers
from transformers import BertTokenizer


def make_wordpiece(texts: Iterable[str], size: int, lowercase: bool, more: tuple[str, ...] = (), **options: Any) -> BertTokenizer:
    """BERT's kind of tokenizer, learned from `texts`; it knows all printable ASCII, and `more` special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *more]
    backend = BertTokenizer(do_lower_case=lowercase).backend_tokenizer
    alphabet = [c for c in string.printable if not c.isspace() and not (lowercase and c.isupper())]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    return BertTokenizer(vocab=json.loads(backend.to_str())["model"]["vocab"], do_lower_case=lowercase, **options)


def rate_at(highest: float, step: int, done: float, warm: int = 100) -> float:
    """The learning rate: up over `warm` steps, then down a cosine as `done` goes from 0 to 1."""
    return highest * min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))


def save_folder(folder: Path, model: Any, *parts: Any) -> None:
    """Write the model in float16 and its tokenizer or processors as one Hugging Face folder, replacing an older one."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    for part in parts:
        part.save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
