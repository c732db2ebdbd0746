"""Between text and token ids: what one model's tokenizer spells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fuse.errors import FuseError
from fuse.memo import Memo
from fuse.types import Ids

Span = tuple[int, int]
"""Where a part of a text begins and ends, in characters or in tokens."""

ID_BYTES = 36
"""About what one token id takes in a tuple."""


def require_text(text: str, key: str) -> None:
    """Raise FuseError where a text is no Unicode: a shell gives bytes that are not UTF-8 in this
    way.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start]
        raise FuseError(
            f"{key}={text!r}: expected a text, and {wrong!r} is no character "
            "(a byte that is not UTF-8?); give it in UTF-8"
        ) from None


class Vocabulary:
    """A tokenizer, and the special tokens around every text that its model reads.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_length: how many tokens the model reads at most, special tokens included.
        size: how many ids the model knows; those without a token are never allowed.
        head, tail: the special tokens before and after a text; None for the tokenizer's own.

    Raises:
        FuseError: the tokenizer is not a fast one, and gives no character offsets.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        size: int | None = None,
        head: Ids | None = None,
        tail: Ids | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            kind = type(tokenizer).__name__
            raise FuseError(
                f"tokenizer={kind}: expected a fast tokenizer, which gives character offsets"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.size = len(tokenizer) if size is None else size
        self.instruction = ""
        """Text that the model reads before every text, with nothing between them."""
        added = max(tokenizer.added_tokens_decoder, default=-1)
        self._has_unknown = added >= self.size
        """Whether the tokenizer has special tokens that the model does not know."""
        self._prompts: Memo[Ids, str] = Memo(lambda row, text: ID_BYTES * len(row) + len(text))
        first, last = self._special_tokens() if head is None or tail is None else ((), ())
        self.head = first if head is None else head
        self.tail = last if tail is None else tail

    def _special_tokens(self) -> tuple[Ids, Ids]:
        """Return what the tokenizer itself puts before and after a text."""
        ids = self.tokenizer("a").input_ids
        body = self.tokenizer("a", add_special_tokens=False).input_ids
        start = next(i for i in range(len(ids)) if ids[i : i + len(body)] == body)
        return tuple(ids[:start]), tuple(ids[start + len(body) :])

    def __len__(self) -> int:
        return self.size

    @property
    def start(self) -> Ids:
        """The tokenizer's BOS, else EOS, token, whether it puts it before a text or not; empty if
        there is neither.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        token = eos if bos is None else bos
        return () if token is None else (int(token),)

    @property
    def max_text_tokens(self) -> int:
        """How many tokens of a text the model reads at most, beside what stands around each."""
        before = len(self.encode_ids([self.instruction])[0]) if self.instruction else 0
        return self.max_length - len(self.head) - len(self.tail) - before

    def knows(self, ids: Ids) -> bool:
        """Whether the model knows all of these ids, as it does those of a text without special
        tokens.
        """
        return not self._has_unknown or max(ids, default=-1) < self.size

    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, list[Span]]]:
        """Return each text's ids, without special tokens, and the character span of each token.

        Raises:
            FuseError: a text that is no Unicode.
        """
        if not texts:
            return []
        # `verbose` would warn of texts over the model's length, which we refuse ourselves
        unread = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        try:
            out = self.tokenizer(
                list(texts), add_special_tokens=False, return_offsets_mapping=True, **unread
            )
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                require_text(text, "text")
            raise
        pairs = zip(out.input_ids, out.offset_mapping, strict=True)
        return [(tuple(ids), offsets) for ids, offsets in pairs]

    def encode_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Return each text's ids, without special tokens; quick for whole vocabularies."""
        backend = self.tokenizer.backend_tokenizer
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in encodings]

    def decode(self, rows: Sequence[Ids]) -> list[str]:
        """Return the prompt that each row of ids spells, without white space at the ends."""
        keys = [tuple(row) for row in rows]
        return self._prompts.look_up(
            keys, lambda new: [text.strip() for text in self._raw_decode(new)]
        )

    def _raw_decode(self, rows: Sequence[Ids]) -> list[str]:
        # By the tokenizer, not its backend, which spells CLIP's ends of words out; an empty list
        # would be taken as one empty row
        if not rows:
            return []
        return self.tokenizer.batch_decode(
            [list(row) for row in rows], clean_up_tokenization_spaces=False
        )

    def token_spans(self, row: Ids) -> list[Span]:
        """Return the characters of the row's prompt that each token spells, without white space."""
        beginnings = self._raw_decode([row[: i + 1] for i in range(len(row))])
        if not beginnings:
            return []
        prompt = beginnings[-1].strip()
        indent = len(beginnings[-1]) - len(beginnings[-1].lstrip())
        ends = [min(max(len(text.rstrip()) - indent, 0), len(prompt)) for text in beginnings]
        for i in reversed(range(len(ends) - 1)):
            # The first bytes of a character may decode to several stand-ins
            ends[i] = min(ends[i], ends[i + 1])
        starts = [end + len(prompt[end:]) - len(prompt[end:].lstrip()) for end in [0, *ends[:-1]]]
        return [(min(start, end), end) for start, end in zip(starts, ends, strict=True)]

    def word_around(self, row: Ids, position: int) -> Span:
        """Return the tokens of the word, between white space, that one token is part of."""
        spans = self.token_spans(row)
        begins = [True]
        for (_, end), (start, _) in pairwise(spans):
            begins.append(end < start)
        start = max(i for i in range(position + 1) if begins[i])
        later = [i for i in range(position + 1, len(row)) if begins[i]]
        return start, later[0] if later else len(row)

    @cached_property
    def token_texts(self) -> list[str]:
        """What each token adds to a text that it continues, leading space included."""
        anchor = self.tokenizer("a", add_special_tokens=False).input_ids[-1:]
        count = min(len(self), len(self.tokenizer))
        pairs = self._raw_decode([(*anchor, token) for token in range(count)])
        start = len(self.tokenizer.decode(anchor))
        return [pair[start:] for pair in pairs] + [""] * (len(self) - count)

    @cached_property
    def allowed(self) -> Bool[Tensor, " v"]:
        """Which tokens a search may use: those that spell printable text."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special = {*self.tokenizer.all_special_ids, *added, *self.head, *self.tail}
        texts = self.token_texts
        printable = [t.strip() != "" and t.isprintable() and "\ufffd" not in t for t in texts]
        return torch.tensor([ok and i not in special for i, ok in enumerate(printable)])

    @cached_property
    def blank(self) -> Bool[Tensor, " v"]:
        """Which tokens spell a lone blank, as some vocabularies have it before numbers."""
        special = {*self.tokenizer.all_special_ids, *self.head, *self.tail}
        blank = [text == " " for text in self.token_texts]
        return torch.tensor([ok and i not in special for i, ok in enumerate(blank)])

    @cached_property
    def begins_word(self) -> Bool[Tensor, " v"]:
        """Which tokens begin a word of their own after another one, by a leading space."""
        return torch.tensor([text[:1].isspace() for text in self.token_texts])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
