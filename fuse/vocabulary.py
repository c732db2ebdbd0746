"""Between text and token ids: a model's vocabulary, and the fixed text around the free tokens."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.products import Table
from fuse.types import Ids, Inputs

POINTS = ("current", "mask", "mean")
"""What a model reads at a place where its loss is linearised: the token there, the mask token, the mean embedding."""

MEMO = 100_000
"""How many of the latest rows' texts, texts' tokens and candidates' losses are remembered."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Span = tuple[int, int]
"""Where a piece of text begins and ends, in characters or in tokens."""


def remembered(memo: OrderedDict[K, V], keys: Sequence[K], make: Callable[[list[K]], Sequence[V]]) -> list[V]:
    """What belongs to each key: made of all that are not in the memo, which keeps the latest `MEMO`."""
    new = [key for key in dict.fromkeys(keys) if key not in memo]
    memo.update(zip(new, make(new), strict=True))
    found = [memo[key] for key in keys]
    while len(memo) > MEMO:
        memo.popitem(last=False)
    return found


class Vocabulary:
    """A tokenizer with the embedding table that its ids look up.

    `head` and `tail` are the special tokens that stand around every text that the model reads. `embedding` [v d] is what
    the model's embedding layer returns for each id. Rows of the table without a token are never allowed.
    """

    def __init__(
        self, tokenizer: Any, embedding: Float[Tensor, "v d"], max_length: int, head: Ids | None = None, tail: Ids | None = None
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise FuseError(f"tokenizer={type(tokenizer).__name__}: expected a fast tokenizer, which tells character offsets")
        self.tokenizer = tokenizer
        self.table = Table(embedding)
        self.max_length = max_length
        self._prompts: OrderedDict[Ids, str] = OrderedDict()
        first, last = self._special_tokens() if head is None or tail is None else ((), ())
        self.head = first if head is None else head
        self.tail = last if tail is None else tail

    @property
    def embedding(self) -> Float[Tensor, "v d"]:
        return self.table.lines

    @embedding.setter
    def embedding(self, embedding: Float[Tensor, "v d"]) -> None:
        self.table = Table(embedding)

    def _special_tokens(self) -> tuple[Ids, Ids]:
        """What the tokenizer itself puts before and after a text."""
        ids, body = self.tokenizer("a").input_ids, self.tokenizer("a", add_special_tokens=False).input_ids
        start = next(i for i in range(len(ids)) if ids[i : i + len(body)] == body)
        return tuple(ids[:start]), tuple(ids[start + len(body) :])

    def __len__(self) -> int:
        return self.embedding.shape[0]

    def encode(self, texts: Sequence[str]) -> list[tuple[Ids, list[Span]]]:
        """Per text its ids, without special tokens, and each token's character span."""
        if not texts:
            return []
        # `verbose` would warn of texts over the model's length, which we refuse ourselves
        unread = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        out = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, **unread)
        return [(tuple(ids), offsets) for ids, offsets in zip(out.input_ids, out.offset_mapping, strict=True)]

    def encode_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Per text its ids, without special tokens; quick for whole vocabularies."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in encodings]

    def decode(self, rows: Sequence[Ids]) -> list[str]:
        """The prompt that each row of ids spells: its text without white space at the ends."""
        return remembered(self._prompts, [tuple(row) for row in rows], lambda new: [text.strip() for text in self._raw_decode(new)])

    def _raw_decode(self, rows: Sequence[Ids]) -> list[str]:
        # By the tokenizer, not its backend, which spells CLIP's ends of words out; an empty list would be taken as one empty row
        return self.tokenizer.batch_decode([list(row) for row in rows], clean_up_tokenization_spaces=False) if rows else []

    def token_spans(self, row: Ids) -> list[Span]:
        """The characters of the row's prompt that each token spells, without white space at their ends."""
        prefixes = self._raw_decode([row[: i + 1] for i in range(len(row))])
        if not prefixes:
            return []
        prompt = prefixes[-1].strip()
        indent = len(prefixes[-1]) - len(prefixes[-1].lstrip())
        ends = [min(max(len(prefix.rstrip()) - indent, 0), len(prompt)) for prefix in prefixes]
        for i in reversed(range(len(ends) - 1)):
            ends[i] = min(ends[i], ends[i + 1])  # the first bytes of a character may decode to several stand-ins
        starts = [end + len(prompt[end:]) - len(prompt[end:].lstrip()) for end in [0, *ends[:-1]]]
        return [(min(start, end), end) for start, end in zip(starts, ends, strict=True)]

    @cached_property
    def token_texts(self) -> list[str]:
        """What each token adds to a text that it continues, leading space included."""
        anchor = self.tokenizer("a", add_special_tokens=False).input_ids[-1:]
        tokens = range(min(len(self), len(self.tokenizer)))
        pairs = self.tokenizer.batch_decode([[*anchor, token] for token in tokens], clean_up_tokenization_spaces=False)
        start = len(self.tokenizer.decode(anchor))
        return [pair[start:] for pair in pairs] + [""] * (len(self) - len(tokens))

    @cached_property
    def allowed(self) -> Bool[Tensor, " v"]:
        """Tokens that a search may use: those that spell printable text."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special = {*self.tokenizer.all_special_ids, *added, *self.head, *self.tail}
        printable = [t.strip() != "" and t.isprintable() and "\ufffd" not in t for t in self.token_texts]
        return torch.tensor([ok and i not in special for i, ok in enumerate(printable)], device=self.embedding.device)

    @cached_property
    def mean_embedding(self) -> Float[Tensor, " d"]:
        """The mean of the allowed tokens' embeddings: a point that stands for no word in particular."""
        return self.embedding[self.allowed].mean(0)

    def point(self, name: str) -> Float[Tensor, " d"]:
        """The embedding of the neutral point "mask" or "mean"; the mean stands in where there is no mask token."""
        mask = getattr(self.tokenizer, "mask_token_id", None)
        return self.mean_embedding if name == "mean" or mask is None else self.embedding[mask]

    @cached_property
    def _covariance_factor(self) -> Float[Tensor, "d d"]:
        """The Cholesky factor of the allowed embeddings' covariance."""
        centred = (self.embedding[self.allowed] - self.mean_embedding).double()
        covariance = centred.T @ centred / len(centred)
        ridge = 1e-3 * covariance.diagonal().mean().clamp_min(1e-12)
        return torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), device=covariance.device, dtype=torch.double))

    def as_embedding_gradient(self, scores: Float[Tensor, "b v"]) -> Float[Tensor, "b d"]:
        """The vector g whose products g . E_v come nearest, in least squares over the allowed tokens, to centred scores."""
        kept = scores[:, self.allowed].double()
        centred = self.embedding[self.allowed].double() - self.mean_embedding.double()
        slope = (kept - kept.mean(1, keepdim=True)) @ centred / len(centred)
        return torch.cholesky_solve(slope.T, self._covariance_factor).T.float()

    def nearest(self, points: Float[Tensor, "*b d"], allowed: Bool[Tensor, " v"]) -> Int[Tensor, "*b"]:
        """The allowed token whose embedding is the closest to each point."""
        # The smallest |p - e|^2 is the largest p . e - |e|^2 / 2
        handicap = torch.where(allowed, -self._half_squares, -torch.inf)
        points, plain = points.float(), self.embedding.dtype == torch.float32
        products = self.table.inner_products(points) if plain else points @ self.embedding.float().T
        return products.add_(handicap).argmax(-1)

    @cached_property
    def _half_squares(self) -> Float[Tensor, " v"]:
        return self.embedding.float().square().sum(-1) / 2

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer and of every number in the table."""
        digest = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode())
        digest.update(self.embedding.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Template:
    """Fixed text around a prompt: prefix + prompt + suffix + label, joined by single spaces where words would touch."""

    prefix: str = ""
    suffix: str = ""
    label: str = ""

    def render(self, prompt: str) -> tuple[str, Span, Span]:
        """The whole text, and the character spans of the prompt and of the label in it."""
        text, prompt_span = _append(self.prefix, prompt)
        text, _ = _append(text, self.suffix)
        text, label_span = _append(text, self.label)
        return text, prompt_span, label_span

    def encode(self, vocabulary: Vocabulary, prompts: Sequence[str]) -> list[Encoded]:
        """What a model reads for each prompt, its own special tokens included."""
        rendered = [self.render(prompt) for prompt in prompts]
        return [
            Encoded.build(vocabulary, ids, spans, prompt_span, label_span)
            for (ids, spans), (_, prompt_span, label_span) in zip(
                vocabulary.encode([text for text, _, _ in rendered]), rendered, strict=True
            )
        ]


@dataclass(frozen=True)
class Encoded:
    """Ids of one rendered text with its special tokens; `free` and `label` are the token spans of prompt and label."""

    ids: Ids
    chars: tuple[Span, ...]
    free: Span
    label: Span
    prompt_start: int = 0
    """The character at which the prompt begins."""

    @staticmethod
    def build(vocabulary: Vocabulary, ids: Ids, chars: Sequence[Span], prompt: Span, label: Span) -> Encoded:
        """Find the tokens of prompt and label by their characters, and put the special tokens around."""
        head, tail = vocabulary.head, vocabulary.tail
        padded = ((0, 0),) * len(head) + tuple(chars) + ((0, 0),) * len(tail)
        label_span = overlapping(padded, label) if label[0] < label[1] else (0, 0)
        return Encoded(head + ids + tail, padded, overlapping(padded, prompt), label_span, prompt[0])

    @property
    def free_ids(self) -> Ids:
        return self.ids[slice(*self.free)]

    def word(self, chars: Span) -> Span:
        """The tokens that spell these characters of the prompt."""
        return overlapping(self.chars, (self.prompt_start + chars[0], self.prompt_start + chars[1]))

    def collapsed(self, tokens: Span) -> Encoded:
        """One token (the span's first) in the place of the whole span (character spans are no longer known)."""
        if tokens[0] == tokens[1]:
            return self
        shift = tokens[0] + 1 - tokens[1]
        free, label = ((a + shift * (a >= tokens[1]), b + shift * (b >= tokens[1])) for a, b in (self.free, self.label))
        return Encoded(self.ids[: tokens[0] + 1] + self.ids[tokens[1] :], (), free, label)

    def up_to_prompt(self) -> Encoded:
        """Without suffix, label and closing special tokens."""
        return Encoded(self.ids[: self.free[1]], self.chars[: self.free[1]], self.free, (0, 0), self.prompt_start)

    def with_free_ids(self, free_ids: Ids) -> Encoded:
        """The same surroundings with other free tokens (character spans are no longer known)."""
        (start, end), shift = self.free, len(free_ids) - (self.free[1] - self.free[0])
        label = (self.label[0] + shift, self.label[1] + shift) if self.label[0] >= end else self.label
        return Encoded(self.ids[:start] + free_ids + self.ids[end:], (), (start, start + len(free_ids)), label)


def overlapping(chars: Sequence[Span], part: Span) -> Span:
    """The span of the tokens whose characters meet `part`; (0, 0) if none does."""
    hits = [i for i, (start, end) in enumerate(chars) if start < part[1] and end > part[0] and end > start]
    return (hits[0], hits[-1] + 1) if hits else (0, 0)


def pad(rows: Sequence[Encoded], device: torch.device) -> Inputs:
    """Rows as one batch, padded on the right by id 0 under a false mask."""
    width = max((len(row.ids) for row in rows), default=0)
    ids = torch.tensor([row.ids + (0,) * (width - len(row.ids)) for row in rows], dtype=torch.long)
    places = torch.arange(width)

    def spans(of: list[Span]) -> Tensor:
        start, end = torch.tensor(of).unsqueeze(-1).unbind(1)
        return (places >= start) & (places < end)

    return Inputs(
        ids=ids.to(device),
        mask=spans([(0, len(row.ids)) for row in rows]).to(device),
        free=spans([row.free for row in rows]).to(device),
        label=spans([row.label for row in rows]).to(device),
    )


def _append(text: str, piece: str) -> tuple[str, Span]:
    """Text and piece joined, with a space between two words; and where the piece stands."""
    touching = text and piece and not text[-1].isspace() and not piece[0].isspace() and piece[0] not in ".,;:!?'\")]}"
    start = len(text) + bool(touching)
    return text + " " * bool(touching) + piece, (start, start + len(piece))
