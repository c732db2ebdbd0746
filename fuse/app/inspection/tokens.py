"""One text through several tokenizers, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fuse.app.inspection.view import View, plain
from fuse.text.template import overlapping
from fuse.text.vocabulary import Span, Vocabulary

BLANK = "\u00b7"
"""Stands for a space at the beginning of a token."""
COLOURS = ("#9ecae1", "#fdd0a2", "#a1d99b", "#dadaeb")


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Args:
        text: the characters that it adds, a space before it included.
        chars: those that it spells, as the tokenizer has them.
        word: the number of the word, between white space, that it is part of; None of none.
    """

    text: str
    id: int
    chars: Span
    word: int | None


def words_of(text: str) -> list[Span]:
    """Return where the words of a text are: what stands between white space."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def tokens_of(vocabulary: Vocabulary, text: str) -> list[Token]:
    """Return the tokens of a text, without special ones."""
    ids, spans = vocabulary.encode([text])[0]
    pieces = vocabulary.tokenizer.convert_ids_to_tokens(list(ids))
    words, found, end = words_of(text), [], 0
    for token, (start, stop), piece in zip(ids, spans, pieces, strict=True):
        word, last = overlapping(words, (start, stop))
        # Of a character that several tokens spell, all but the first add nothing
        added = text[end:stop] or piece
        found.append(Token(added, token, (start, stop), word if last else None))
        end = max(end, stop)
    return found


def tokens(vocabularies: Mapping[str, Vocabulary], text: str) -> list[View]:
    """Compare what tokenizers make of a text.

    Returns:
        How many tokens each needs, and each word's tokens with their ids.
    """
    found = {name: tokens_of(own, text) for name, own in vocabularies.items()}
    num_words = max(1, len(words_of(text)))
    sums, data = [], {}
    for name, own in found.items():
        counts = {
            "tokens": len(own),
            "words": len(words_of(text)),
            "subtokens a word": len(own) / num_words,
            "characters a token": len(text) / max(1, len(own)),
        }
        sums.append({"model": name, **counts})
        data[name] = {**counts, "ids": [token.id for token in own]}
        data[name]["tokens of the text"] = [asdict(token) for token in own]

    def draw(axes: Any) -> None:
        _draw(axes, found)

    size = (min(24.0, max(6.0, 0.14 * len(text))), 0.8 + 0.5 * len(found))
    return [
        View("How many tokens", sums, draw, data, size),
        View("Tokens of each word", _by_word(found, text)),
    ]


def _by_word(found: Mapping[str, Sequence[Token]], text: str) -> list[dict[str, str]]:
    """Return a row for each word: its tokens and their ids, for each model."""
    rows = []
    for number, (start, end) in enumerate(words_of(text)):
        row = {"word": text[start:end]}
        for name, own in found.items():
            cells = [f"{shown(t.text)} {t.id}" for t in own if t.word == number]
            row[name] = ", ".join(cells)
        rows.append(row)
    return rows


def shown(text: str) -> str:
    """Return a token's text with a sign for each space."""
    return text.replace(" ", BLANK)


def _draw(axes: Any, found: Mapping[str, Sequence[Token]]) -> None:
    """Draw a line of boxes for each model, as wide as the tokens' characters."""
    for row, own in enumerate(found.values()):
        end = 0
        for number, token in enumerate(own):
            width = max(token.chars[1] - end, 0)
            axes.broken_barh([(end, width)], (row - 0.35, 0.7), color=COLOURS[number % 4])
            label = plain(token.text.strip()) if width else ""
            axes.text(end + width / 2, row, label, ha="center", va="center", fontsize=7)
            end = max(end, token.chars[1])
    axes.set_yticks(range(len(found)), [plain(name) for name in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("character", fontsize=8)
