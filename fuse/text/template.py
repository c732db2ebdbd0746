"""The fixed text around a prompt, and the tokens that a model reads of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuse.errors import FuseError, one_of
from fuse.text.vocabulary import ID_BYTES, Span, Vocabulary, require_text
from fuse.types import Ids

NO_SPACE_BEFORE = ".,;:!?'\")]}"
"""Signs that follow a word without a space."""
SPAN_BYTES = 128
"""About what one span takes in a tuple."""
AUTO, NONE, SPACE = "auto", "none", "space"
JOINS = (SPACE, NONE)
"""How prefix, prompt, suffix and label are joined."""
STAND_INS = ("a", "1", "A", "?")
"""Short prompts, in whose place others stand: the first that no token shares with the text around
it.
"""


@dataclass(frozen=True)
class Template:
    """Fixed text around a prompt: prefix + prompt + suffix + label.

    Args:
        start: the special tokens before all. "auto": what the tokenizer itself puts before a text,
            once where the prefix begins with it; "none"; or a text that spells them. Tokenizers
            such as GPT-2's put nothing there, though in pretraining each document came after
            "<|endoftext|>": no file of a model says so, and whoever knows gives that text.
        join: "space" puts single spaces where words would touch, "none" nothing at all.
        predicts_first: whether the first token of all is to be predicted, so that one has to stand
            before it: with "auto", and neither a prefix nor a start token of the tokenizer's, its
            BOS (else EOS) token.

    Raises:
        FuseError: a text that is no Unicode, or another `join`.
    """

    prefix: str = ""
    suffix: str = ""
    label: str = ""
    start: str = AUTO
    join: str = SPACE
    predicts_first: bool = False

    def __post_init__(self) -> None:
        for key in ("prefix", "suffix", "label", "start"):
            require_text(getattr(self, key), key)
        if self.join not in JOINS:
            raise FuseError(f"join={self.join}: {one_of(self.join, JOINS)}")

    def render(self, prompt: str) -> tuple[str, Span, Span]:
        """Return the whole text, and the character spans of the prompt and of the label in it."""
        spaced = self.join == SPACE
        text, prompt_span = _append(self.prefix, prompt, spaced)
        text, _ = _append(text, self.suffix, spaced)
        text, label_span = _append(text, self.label, spaced)
        return text, prompt_span, label_span

    def encode(self, vocabulary: Vocabulary, prompts: Sequence[str]) -> list[Encoded]:
        """Return what a model reads for each prompt, its own special tokens included."""
        rendered = [self.render(prompt) for prompt in prompts]
        before = vocabulary.instruction
        tokens = vocabulary.encode([before + text for text, _, _ in rendered])
        head = self.head(vocabulary)
        found = []
        for (ids, spans), (_, prompt_span, label_span) in zip(tokens, rendered, strict=True):
            if before:
                spans = [(max(0, a - len(before)), max(0, b - len(before))) for a, b in spans]
            begun = self.start == AUTO and self.prefix and ids[: len(head)] == head
            special = () if begun else head, vocabulary.tail
            found.append(Encoded.build(special, ids, spans, prompt_span, label_span))
        return found

    def head(self, vocabulary: Vocabulary) -> Ids:
        """Return the special tokens that stand before all, if the prefix does not bring them."""
        if self.start == NONE:
            return ()
        if self.start != AUTO:
            return vocabulary.encode([self.start])[0][0]
        if self.predicts_first and not self.prefix:
            return vocabulary.head or vocabulary.start
        return vocabulary.head

    def surroundings(self, vocabulary: Vocabulary) -> Encoded:
        """Return what a model reads around a prompt, the prompt left out."""
        stand_ins = self.encode(vocabulary, STAND_INS)
        for prompt, encoded in zip(STAND_INS, stand_ins, strict=True):
            text, span, _ = self.render(prompt)
            if encoded.keeps_apart(text, span):
                return encoded.with_free_ids(())
        return stand_ins[0].with_free_ids(())


@dataclass(frozen=True)
class Encoded:
    """Ids of one rendered text with its special tokens."""

    ids: Ids
    chars: tuple[Span, ...]
    """The character span of each token of the prompt; empty where these are no longer known."""
    free: Span
    """The tokens that spell the prompt."""
    label: Span
    """The tokens that spell the label; (0, 0) without one."""
    prompt_start: int = 0
    """The character at which the prompt begins."""

    @staticmethod
    def build(
        special: tuple[Ids, Ids], ids: Ids, chars: Sequence[Span], prompt: Span, label: Span
    ) -> Encoded:
        """Find the tokens of prompt and label by their characters, and add special tokens.

        Args:
            special: those before and after the text.
        """
        head, tail = special
        padded = ((0, 0),) * len(head) + tuple(chars) + ((0, 0),) * len(tail)
        label_span = overlapping(padded, label) if label[0] < label[1] else (0, 0)
        free = overlapping(padded, prompt)
        return Encoded(head + ids + tail, padded[slice(*free)], free, label_span, prompt[0])

    @staticmethod
    def of_ids(ids: Ids) -> Encoded:
        """Return a row of these ids, of which none spells a prompt or a label."""
        return Encoded(ids, (), (0, 0), (0, 0))

    @property
    def free_ids(self) -> Ids:
        """The ids that spell the prompt."""
        return self.ids[slice(*self.free)]

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        return ID_BYTES * len(self.ids) + SPAN_BYTES * len(self.chars)

    def keeps_apart(self, text: str, prompt: Span) -> bool:
        """Whether the tokens of the prompt spell nothing of the text around it but white space."""
        if self.free[0] == self.free[1]:
            return False
        start, end = self.chars[0][0], self.chars[-1][1]
        return not text[start : prompt[0]].strip() and not text[prompt[1] : end].strip()

    def word(self, chars: Span) -> Span:
        """Return the tokens that spell these characters of the prompt."""
        shift, first = self.prompt_start, self.free[0]
        start, end = overlapping(self.chars, (shift + chars[0], shift + chars[1]))
        return (first + start, first + end) if end else (0, 0)

    def collapsed(self, tokens: Span) -> Encoded:
        """Return the ids with one token, the span's first, instead of the whole span.

        Character spans are no longer known.
        """
        if tokens[0] == tokens[1]:
            return self
        shift = tokens[0] + 1 - tokens[1]

        def moved(span: Span) -> Span:
            return span[0] + shift * (span[0] >= tokens[1]), span[1] + shift * (
                span[1] >= tokens[1]
            )

        ids = self.ids[: tokens[0] + 1] + self.ids[tokens[1] :]
        return Encoded(ids, (), moved(self.free), moved(self.label))

    def up_to_prompt(self) -> Encoded:
        """Return it without suffix, label and closing special tokens."""
        ids = self.ids[: self.free[1]]
        return Encoded(ids, self.chars, self.free, (0, 0), self.prompt_start)

    def with_free_ids(self, free_ids: Ids) -> Encoded:
        """Return the same surroundings with other free tokens, and no character spans."""
        (start, end), shift = self.free, len(free_ids) - (self.free[1] - self.free[0])
        label = self.label
        if end <= label[0] < label[1]:
            label = (label[0] + shift, label[1] + shift)
        ids = self.ids[:start] + free_ids + self.ids[end:]
        return Encoded(ids, (), (start, start + len(free_ids)), label)


def overlapping(chars: Sequence[Span], part: Span) -> Span:
    """Return the span of the tokens whose characters meet `part`; (0, 0) if none does."""
    hits = []
    for i, (start, end) in enumerate(chars):
        if start < part[1] and end > part[0] and end > start:
            hits.append(i)
    return (hits[0], hits[-1] + 1) if hits else (0, 0)


def _append(text: str, more: str, spaced: bool) -> tuple[str, Span]:
    """Return both texts joined, with a space between two words, and the span of the second.

    Args:
        spaced: False for no space.
    """
    touching = (
        spaced
        and text
        and more
        and not text[-1].isspace()
        and not more[0].isspace()
        and more[0] not in NO_SPACE_BEFORE
    )
    start = len(text) + bool(touching)
    return text + " " * bool(touching) + more, (start, start + len(more))
