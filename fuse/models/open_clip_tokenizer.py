"""Tokenizers of open_clip as fast ones, which know the characters of each token."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""The parts of a text within which open_clip's own tokenizer merges bytes."""


def fast_tokenizer(tokenizer: Any) -> Any:
    """Return a fast tokenizer that gives the ids of one of open_clip's, and cleans as it does.

    Cleaning composes characters, straightens quotes and joins white space. Garbled text and HTML
    entities, which open_clip would mend too, are read as they stand.
    """
    from open_clip.tokenizer import SimpleTokenizer

    if isinstance(tokenizer, SimpleTokenizer):
        return _fast_bpe(tokenizer)
    inner = copy.deepcopy(tokenizer.tokenizer)
    if getattr(inner, "is_fast", False):
        own = inner.backend_tokenizer.normalizer
        steps = [*_cleaning(tokenizer), *([own] if own else [])]
        inner.backend_tokenizer.normalizer = normalizers.Sequence(steps)
        # Tokenizers may have a method of their own there, which a copy loses
        inner.backend_tokenizer.decode = tokenizer.tokenizer.backend_tokenizer.decode
    return inner


def _fast_bpe(tokenizer: Any) -> Any:
    """Return open_clip's `SimpleTokenizer` as a fast one, by its own table and merges."""
    from transformers import PreTrainedTokenizerFast

    special = [tokenizer.decoder[i] for i in tokenizer.all_special_ids]
    start, end = special[:2]
    merges = list(tokenizer.bpe_ranks)
    bpe = models.BPE(dict(tokenizer.encoder), merges, end_of_word_suffix="</w>")
    fast = Tokenizer(bpe)
    fast.normalizer = normalizers.Sequence(_cleaning(tokenizer))
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    last_end = decoders.Replace(Regex(r"</w>\z"), "")
    ends = decoders.Replace("</w>", " ")
    fast.decoder = decoders.Sequence([decoders.ByteLevel(), last_end, ends])
    ids = [(token, tokenizer.encoder[token]) for token in (start, end)]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=start,
        eos_token=end,
        additional_special_tokens=special[2:],
    )


def _cleaning(tokenizer: Any) -> list[Any]:
    """Return the steps of the tokenizer's own cleaning of a text."""
    from open_clip.tokenizer import get_clean_fn

    kinds = {get_clean_fn(name): name for name in ("whitespace", "lower", "canonicalize")}
    kind = kinds[getattr(tokenizer, "clean_fn", get_clean_fn("canonicalize"))]
    steps = [
        normalizers.NFC(),
        normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"),
        normalizers.Replace(Regex("[\u201c-\u201f]"), '"'),
    ]
    if kind == "canonicalize":
        steps.append(normalizers.Replace("_", " "))
        steps.append(normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""))
    if kind != "whitespace":
        steps.append(normalizers.Lowercase())
    return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
