"""Which tokens and which texts a search may use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from jaxtyping import Bool
from pydantic import StringConstraints
from torch import Tensor
from typing_extensions import Doc

from fuse.errors import FuseError
from fuse.options import CountOrNone, Words
from fuse.text.vocabulary import Vocabulary, require_text
from fuse.types import Ids

Word = Annotated[str, StringConstraints(pattern=r"\S"), Words("a text that is not blank")]


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
        must: words that a finished prompt holds, whatever their case.
        capital: the first sign is a capital letter or a digit, as a sentence's is.
        no_repeat_ngram_size: no so many tokens in a row occur twice; 0: they may.
        endings: signs with which a finished prompt ends; with neither of the two every prompt is
            finished. Unlike the other rules they do not refuse a prompt: what grows is unfinished
            until it ends. But a finished prompt is never edited into an unfinished one, and a
            search returns an unfinished one only where it has met no other.

    Raises:
        FuseError: a word that is empty or no Unicode.
    """

    ascii: Annotated[bool, Doc("ASCII characters only")] = True
    words: Annotated[bool, Doc("every token a word of letters")] = False
    block: Annotated[Sequence[Word], Doc("words that it does not hold")] = ()
    allow: Annotated[Sequence[Word], Doc("words and signs that it is made of; []: any")] = ()
    must: Annotated[Sequence[Word], Doc("words that a whole text holds")] = ()
    capital: Annotated[bool, Doc("begins with a capital letter or a digit")] = False
    no_repeat_ngram_size: Annotated[
        CountOrNone, Doc("no so many tokens in a row occur twice; 0: they may")
    ] = 0
    endings: Annotated[
        Sequence[Word], Doc('with what a whole text ends, such as [".", "!", "?"]; []: anything')
    ] = ()

    def __post_init__(self) -> None:
        for key in ("block", "allow", "must", "endings"):
            for text in _listed(getattr(self, key)):
                require_text(text, key)
                if not text.strip():
                    raise FuseError(f"{key}={text!r}: expected words and signs; leave this one out")

    @cached_property
    def _blocked(self) -> tuple[set[str], re.Pattern[str] | None]:
        """The blocked words of letters and digits alone, and what finds the others in a text; all
        of lower case.
        """
        texts = sorted(_casefolded(self.block))
        others = [re.escape(text) for text in texts if not re.fullmatch(r"\w+", text)]
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(others)})(?!\w)") if others else None
        return set(texts), pattern

    @cached_property
    def _made_of(self) -> set[str]:
        """The listed words and signs, of lower case."""
        return _casefolded(self.allow)

    def allowed(self, vocabulary: Vocabulary) -> Bool[Tensor, " v"]:
        """Return which tokens a search puts into a prompt.

        Raises:
            FuseError: none is left.
        """
        blocked, listed = _casefolded(self.block), self._made_of
        spelling: set[int] = set()
        for text in listed:
            for ids in spellings(vocabulary, _cases(text)):
                spelling |= set(ids)
        kept = []
        for token, text in enumerate(vocabulary.token_texts):
            may_stay = self._allows(text) and text.strip().casefold() not in blocked
            kept.append(may_stay and (not listed or token in spelling))
        mask = vocabulary.allowed & torch.tensor(kept, device=vocabulary.allowed.device)
        if not mask.any():
            raise FuseError(f"constraints={self}: no token of the primary's is left; allow more")
        return mask

    def usable(self, vocabulary: Vocabulary, allowed: Bool[Tensor, " v"]) -> Bool[Tensor, " v"]:
        """Return which tokens a start may hold: the allowed ones, and those that spell a lone
        blank, where tokens need not be words.
        """
        return allowed if self.words else allowed | vocabulary.blank.to(allowed.device)

    def long_words(self, vocabulary: Vocabulary, usable: Bool[Tensor, " v"]) -> list[Ids]:
        """Return how words are spelled that a search would not find token by token, at the
        beginning of a prompt and after a word: those that a prompt must hold, each and all in a
        row; and those of the list, in its case, where one of them has several tokens.
        """
        must = [text.strip() for text in _listed(self.must)]
        asked = self._placed(vocabulary, usable, [*must, " ".join(must)] if must else [])
        if self.words or not self.allow:
            return asked
        kept = self._placed(vocabulary, usable, [text.strip() for text in _listed(self.allow)])
        return [*asked, *(kept if any(len(ids) > 1 for ids in kept) else [])]

    def _placed(
        self, vocabulary: Vocabulary, usable: Bool[Tensor, " v"], words: Sequence[str]
    ) -> list[Ids]:
        """Return the spellings of words that have no other tokens than the usable ones."""
        found: dict[Ids, None] = {}
        for word in words:
            at_beginning, after_word = spellings(vocabulary, [word])
            found[at_beginning] = None
            if word[0].isalnum():  # a sign follows a word without a blank
                found[after_word] = None
        may_stay = usable.tolist()
        return [ids for ids in found if all(may_stay[token] for token in ids)]

    @cached_property
    def _asked(self) -> list[re.Pattern[str]]:
        """What finds each word that a prompt must hold, in a text of lower case."""
        texts = sorted(_casefolded(self.must))
        return [re.compile(rf"(?<!\w){re.escape(text)}(?!\w)") for text in texts]

    def finished(self, vocabulary: Vocabulary, rows: Sequence[Ids]) -> list[bool]:
        """Return whether each row's text ends as a whole one does, and holds what it must."""
        if not self.endings and not self.must:
            return [True] * len(rows)
        endings = tuple(_listed(self.endings)) or ("",)
        found = []
        for prompt in vocabulary.decode(rows):
            folded = prompt.casefold()
            holds = all(pattern.search(folded) for pattern in self._asked)
            found.append(holds and prompt.endswith(endings))
        return found

    def ending_tokens(self, vocabulary: Vocabulary) -> Bool[Tensor, " v"]:
        """Return the tokens that spell an ending and nothing else, not even a blank."""
        endings = set(_listed(self.endings))
        found = [text in endings for text in vocabulary.token_texts]
        return vocabulary.allowed & torch.tensor(found, device=vocabulary.allowed.device)

    def may_begin(self, vocabulary: Vocabulary) -> Bool[Tensor, " v"]:
        """Return the tokens with which a prompt may begin, as far as `capital` is concerned."""
        found = [self._begins(text) for text in vocabulary.token_texts]
        return torch.tensor(found, device=vocabulary.allowed.device)

    def _begins(self, text: str) -> bool:
        """Return whether a text begins as `capital` has it."""
        first = text.lstrip()[:1]
        return not self.capital or not first or first.isupper() or first.isdigit()

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
        if not self._begins(text):
            return False
        if self.no_repeat_ngram_size and _repeats(row, self.no_repeat_ngram_size):
            return False
        folded = text.casefold()
        words, others = self._blocked
        if words and not words.isdisjoint(re.findall(r"\w+", folded)):
            return False
        if others is not None and others.search(folded):
            return False
        return not self._made_of or _is_made_of(folded, self._made_of)


def _casefolded(texts: Sequence[str]) -> set[str]:
    """Return a list of texts for comparison."""
    return {text.strip().casefold() for text in _listed(texts)}


def _listed(texts: Sequence[str]) -> Sequence[str]:
    """Return a list of texts; a single one may stand for itself."""
    return [texts] if isinstance(texts, str) else texts


def _repeats(row: Ids, size: int) -> bool:
    """Return whether so many tokens in a row occur twice."""
    ngrams = [row[i : i + size] for i in range(len(row) - size + 1)]
    return len(set(ngrams)) < len(ngrams)


def _is_made_of(text: str, listed: set[str]) -> bool:
    """Return whether each chunk between white space, or each word and sign in it, is listed."""
    for chunk in text.split():
        if chunk in listed:
            continue
        if not all(part in listed for part in re.findall(r"\w+|[^\w\s]", chunk)):
            return False
    return True


def _cases(text: str) -> list[str]:
    """Return a text in its usual cases."""
    return list(dict.fromkeys([text, text.capitalize(), text.upper()]))


def spellings(vocabulary: Vocabulary, texts: Sequence[str]) -> list[Ids]:
    """Return the tokens that spell each text at the beginning of a prompt, and after a word."""
    num_before = len(vocabulary.encode_ids(["!"])[0])
    found = vocabulary.encode_ids(texts)
    for ids in vocabulary.encode_ids([f"! {text}" for text in texts]):
        found.append(ids[num_before:])
    return found
