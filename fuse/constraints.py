"""Which tokens and which texts a search may use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from fuse.errors import FuseError
from fuse.types import Ids
from fuse.vocabulary import Vocabulary


@dataclass(frozen=True)
class Constraints:
    """What every prompt of a search obeys. Special and unprintable tokens are never allowed.

    `ascii`: ASCII characters only. `words`: every token spells a word of letters alone. `block`: words that the prompt
    does not hold, whatever their case and however they are split into tokens. `allow`: words and signs that the prompt is
    made of, whatever their case; empty for no such list.
    """

    ascii: bool = True
    words: bool = False
    block: Sequence[str] = ()
    allow: Sequence[str] = ()

    def allowed(self, vocabulary: Vocabulary) -> Bool[Tensor, " v"]:
        """The tokens that a prompt may hold.

        Raises:
            FuseError: none is left.
        """
        blocked = {text.casefold() for text in _texts(self.block)}
        listed = {text.casefold() for text in _texts(self.allow)}
        spelling = {i for text in listed for i in _tokens(vocabulary, text)}
        kept = [
            (not self.ascii or text.isascii())
            and (not self.words or text.strip().isalpha())
            and text.strip().casefold() not in blocked
            and (not listed or i in spelling)
            for i, text in enumerate(vocabulary.token_texts)
        ]
        mask = vocabulary.allowed & torch.tensor(kept, device=vocabulary.embedding.device)
        if not mask.any():
            raise FuseError(f"constraints={self}: no token of the primary's is left; allow more")
        return mask

    def accept(self, vocabulary: Vocabulary, row: Ids, text: str) -> bool:
        """Whether a row of allowed tokens, and the text that it spells, obey what no single token tells."""
        if self.words and len(text.split()) != len(row):
            return False
        if not (self.block or self.allow):
            return True
        lowered = text.casefold()
        if any(re.search(rf"(?<!\w){re.escape(blocked.casefold())}(?!\w)", lowered) for blocked in _texts(self.block)):
            return False
        listed = {word.casefold() for word in _texts(self.allow)}
        parts = (part for chunk in lowered.split() for part in ([chunk] if chunk in listed else re.findall(r"\w+|[^\w\s]", chunk)))
        return not listed or all(part in listed for part in parts)


def _texts(texts: Sequence[str]) -> Sequence[str]:
    """A list of texts; a single one may stand for itself."""
    return (texts,) if isinstance(texts, str) else texts


def _tokens(vocabulary: Vocabulary, text: str) -> set[int]:
    """The tokens that spell a text, in the usual cases, at the beginning of a prompt and after a word."""
    forms = {form for case in (text, text.capitalize(), text.upper()) for form in (case, f"! {case}")}
    anchor = len(vocabulary.encode(["!"])[0][0])
    rows = {form: vocabulary.encode([form])[0][0] for form in forms}
    return {i for form, row in rows.items() for i in (row[anchor:] if form.startswith("! ") else row)}
