"""Small tokenizers, trained on a few lines, of the kinds that families of models have."""

from __future__ import annotations

from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LINES = (
    "A red house stands alone in the snow. The dog sleeps by the sea.",
    "Two small boats lie at the harbour, and a man looks at the water.",
    "What is the capital of France? Paris is the capital of France.",
    "She reads an old book about the stars; he plays the blue guitar.",
    "The children run through the garden while it rains on the roof.",
    "A cat, a bird and a horse stand near the green hill under the moon.",
)
KINDS = ("byte_bpe", "byte_bpe_bos", "llama", "roberta", "wordpiece", "unigram_end")


Parts = tuple[Any, list[str], dict[str, Any]]
"""A tokenizer without tokens, its special tokens, and their names."""


def make(kind: str, size: int = 300, max_length: int | None = 64, **more: Any) -> Any:
    """Train a tokenizer of this kind.

    byte_bpe: as GPT-2's, no token before a text. byte_bpe_bos: as Llama 3's, a start token.
    llama: SentencePiece-style BPE with a start token. wordpiece: as BERT's, [CLS] and [SEP].
    unigram_end: as T5's, an end token. roberta: byte-level BPE with <s> and </s>.

    Args:
        max_length: what the tokenizer tells of the longest text; None for nothing.
        more: further arguments of the tokenizer.
    """
    inner, specials, names = PARTS[kind]()
    base = {"vocab_size": size, "special_tokens": specials, "show_progress": False}
    if kind == "clip":  # its special tokens are the last ones
        base["special_tokens"] = []
    inner.train_from_iterator(LINES, _trainer(kind, base))
    inner.add_special_tokens(specials)
    _add_special_tokens(inner, kind)
    if max_length is not None:
        if kind == "roberta":
            max_length -= 2  # their positions begin after that of the padding
        names["model_max_length"] = max_length
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="right", **names, **more)


def _byte_bpe() -> Parts:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return inner, [end], {"bos_token": end, "eos_token": end}


def _byte_bpe_bos() -> Parts:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    return inner, [*names.values(), "<image>"], names


def _clip() -> Parts:
    inner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    inner.decoder = decoders.BPEDecoder(suffix="</w>")
    start, end = "<|startoftext|>", "<|endoftext|>"
    return inner, [start, end], {"bos_token": start, "eos_token": end, "pad_token": end}


def _siglip() -> Parts:
    inner, specials, names = _unigram_end()
    inner.normalizer = normalizers.Lowercase()
    return inner, specials, {**names, "pad_token": "</s>", "model_input_names": ["input_ids"]}


def _siglip2() -> Parts:
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(" ", "▁")]
    )
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    names = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return inner, list(names.values()), names


def _roberta() -> Parts:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = {
        "cls_token": "<s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return inner, list(dict.fromkeys(names.values())), names


def _llama() -> Parts:
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return inner, [*names.values(), "<image>"], names


def _wordpiece() -> Parts:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return inner, list(names.values()), names


def _unigram_end() -> Parts:
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return inner, [*names.values(), "<mask>", "<s>"], names


PARTS = {
    "byte_bpe": _byte_bpe,
    "byte_bpe_bos": _byte_bpe_bos,
    "roberta": _roberta,
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "llama": _llama,
    "wordpiece": _wordpiece,
    "unigram_end": _unigram_end,
}
AROUND = {
    "byte_bpe_bos": "<|begin|> $A",
    "llama": "<s> $A",
    "roberta": "<s> $A </s>",
    "wordpiece": "[CLS] $A [SEP]",
    "unigram_end": "$A </s>",
    "siglip": "$A </s>",
    "siglip2": "$A <eos>",
    "clip": "<|startoftext|> $A <|endoftext|>",
}
"""The special tokens around a text."""


def _trainer(kind: str, base: dict[str, Any]) -> Any:
    """Return what trains a tokenizer of this kind."""
    if kind == "wordpiece":
        return trainers.WordPieceTrainer(**base)
    if kind in ("unigram_end", "siglip"):
        return trainers.UnigramTrainer(unk_token="<unk>", **base)
    if kind == "clip":
        base["end_of_word_suffix"] = "</w>"
    alphabet = (
        pre_tokenizers.ByteLevel.alphabet()
        if kind in ("byte_bpe", "byte_bpe_bos", "roberta")
        else []
    )
    return trainers.BpeTrainer(initial_alphabet=alphabet, **base)


def _add_special_tokens(inner: Any, kind: str) -> None:
    """Let the tokenizer put its special tokens around a text."""
    if kind not in AROUND:
        return
    named = [token for token in AROUND[kind].split() if token != "$A"]
    inner.post_processor = processors.TemplateProcessing(
        single=AROUND[kind],
        special_tokens=[(token, inner.token_to_id(token)) for token in named],
    )
