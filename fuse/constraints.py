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
    made of; empty for no such list.
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
        blocked = {text.casefold() for text in self.block}
        listed = {i for text in self.allow for form in (text, f"a {text}") for i in vocabulary.encode([form])[0][0]}
        listed -= set() if "a" in self.allow else set(vocabulary.encode(["a"])[0][0])
        kept = [
            (not self.ascii or text.isascii())
            and (not self.words or text.strip().isalpha())
            and text.strip().casefold() not in blocked
            and (not self.allow or i in listed)
            for i, text in enumerate(vocabulary.token_texts)
        ]
        mask = vocabulary.allowed & torch.tensor(kept, device=vocabulary.embedding.device)
        if not mask.any():
            raise FuseError(f"constraints={self}: no token of the primary's is left; allow more")
        return mask

    def accept(self, vocabulary: Vocabulary, row: Ids, text: str) -> bool:
        """Whether a row of allowed tokens, and the text that it spells, obey what no single token tells."""
        spelled = text.split()
        if self.words and len(spelled) != len(row):
            return False
        words = {word.casefold() for word in (*spelled, *re.findall(r"\w+", text))}
        return words.isdisjoint(word.casefold() for word in self.block) and self._listed(text)

    def _listed(self, text: str) -> bool:
        """Whether the text is made of the words of `allow`."""
        listed = {word.casefold() for word in self.allow}
        parts = (part for chunk in text.split() for part in ([chunk] if chunk.casefold() in listed else re.findall(r"\w+|[^\w\s]", chunk)))
        return not listed or all(part.casefold() in listed for part in parts)
