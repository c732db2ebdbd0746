"""Which tokens and which texts a search may use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import Doc

from fuse.errors import FuseError
from fuse.text.vocabulary import Vocabulary
from fuse.types import Ids


@dataclass(frozen=True)
class Constraints:
    """Rules that every prompt obeys. Special and unprintable tokens are never allowed.

    Args:
        ascii: ASCII characters only.
        words: every token spells a word of letters alone.
        block: words that the prompt does not hold, whatever their case and however they are split
            into tokens.
        allow: words and signs that the prompt is made of, whatever their case; empty for no such
            list.
    """

    ascii: Annotated[bool, Doc("ASCII characters only")] = True
    words: Annotated[bool, Doc("every token a word of letters")] = False
    block: Annotated[Sequence[str], Doc("words that it does not hold")] = ()
    allow: Annotated[Sequence[str], Doc("words and signs that it is made of; []: any")] = ()

    def allowed(self, vocabulary: Vocabulary) -> Bool[Tensor, " v"]:
        """Return which tokens a prompt may hold.

        Raises:
            FuseError: none is left.
        """
        blocked, listed = _casefolded(self.block), _casefolded(self.allow)
        spelling: set[int] = set()
        for text in listed:
            spelling |= _tokens_of(vocabulary, text)
        kept = []
        for token, text in enumerate(vocabulary.token_texts):
            may_stay = self._allows(text) and text.strip().casefold() not in blocked
            kept.append(may_stay and (not listed or token in spelling))
        mask = vocabulary.allowed & torch.tensor(kept, device=vocabulary.allowed.device)
        if not mask.any():
            raise FuseError(f"constraints={self}: no token of the primary's is left; allow more")
        return mask

    def _allows(self, text: str) -> bool:
        """Return whether a token's text obeys `ascii` and `words`."""
        return (not self.ascii or text.isascii()) and (not self.words or text.strip().isalpha())

    def accept(self, vocabulary: Vocabulary, row: Ids, text: str) -> bool:
        """Return whether a row of allowed tokens obeys the rules that no single token can break.

        Args:
            text: what the row spells.
        """
        if self.words and len(text.split()) != len(row):
            return False
        folded = text.casefold()
        for blocked in _casefolded(self.block):
            if re.search(rf"(?<!\w){re.escape(blocked)}(?!\w)", folded):
                return False
        listed = _casefolded(self.allow)
        return not listed or _is_made_of(folded, listed)


def _casefolded(texts: Sequence[str]) -> set[str]:
    """Return a list of texts for comparison; a single one may stand for itself."""
    return {text.casefold() for text in ([texts] if isinstance(texts, str) else texts)}


def _is_made_of(text: str, listed: set[str]) -> bool:
    """Return whether each chunk between white space, or each word and sign in it, is listed."""
    for chunk in text.split():
        if chunk in listed:
            continue
        if not all(part in listed for part in re.findall(r"\w+|[^\w\s]", chunk)):
            return False
    return True


def _tokens_of(vocabulary: Vocabulary, text: str) -> set[int]:
    """Return the tokens that spell a text in its usual cases.

    At the beginning of a prompt and after a word.
    """
    cases = list(dict.fromkeys([text, text.capitalize(), text.upper()]))
    num_before = len(vocabulary.encode(["!"])[0][0])
    found: set[int] = set()
    for ids, _ in vocabulary.encode(cases):
        found |= set(ids)
    for ids, _ in vocabulary.encode([f"! {case}" for case in cases]):
        found |= set(ids[num_before:])
    return found
