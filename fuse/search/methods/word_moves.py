"""Edits of whole words: take some to another place, cut them out, put in those of another prompt,
or let the language model write there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.guide import Guide
from fuse.types import Ids

MAX_WORDS = 3
"""How many words are moved, cut out or replaced at once."""
MAX_REWRITTEN_TOKENS = 4
"""How many tokens are written in their place."""
PULL_WEIGHT = 1.5
"""How much the gradient counts beside the language model where it writes."""
REPETITION_PENALTY = 5.0
"""By how much the log-probability falls of a token that was written in this place already."""

Pull = Callable[[Sequence[Ids], Sequence[int]], Float[Tensor, "n v"]]
"""How much the objective wants each token at one position of each row; higher is better."""


def word_bounds(row: Ids, begins_word: Sequence[bool]) -> list[int]:
    """Return where the words of a row begin, and where the last one ends."""
    return [i for i in range(len(row)) if i == 0 or begins_word[row[i]]] + [len(row)]


def moved(row: Ids, begins_word: Sequence[bool], rng: torch.Generator) -> Ids:
    """Return the row with some neighbouring words at another place."""
    start, end = _some_words(word_bounds(row, begins_word), rng)
    rest = row[:start] + row[end:]
    places = word_bounds(rest, begins_word)
    place = places[_below(len(places), rng)]
    return rest[:place] + row[start:end] + rest[place:]


def cut(row: Ids, begins_word: Sequence[bool], rng: torch.Generator) -> Ids:
    """Return the row without some neighbouring words."""
    start, end = _some_words(word_bounds(row, begins_word), rng)
    return row[:start] + row[end:]


def joined(row: Ids, other: Ids, begins_word: Sequence[bool], rng: torch.Generator) -> Ids:
    """Return the row with some words of another one, in the place of some of its own or before
    them.
    """
    start, end = _some_words(word_bounds(row, begins_word), rng)
    first, last = _some_words(word_bounds(other, begins_word), rng)
    return row[:start] + other[first:last] + row[end if _below(2, rng) else start :]


def rewritten(
    beam: Sequence[Ids], count: int, guide: Guide, pull: Pull, rng: torch.Generator
) -> list[list[Ids]]:
    """Return for each row of the beam what the language model makes of it.

    At `count` places in all, at the rows in turn, it writes one token after another in the place of
    some words, or between two: drawn from softmax(log p(token | what stands before) + `PULL_WEIGHT`
    x pull). After each token the row goes on with what stood behind the place.
    """
    begins = guide.begins_word.tolist()
    parents = [i % len(beam) for i in range(count)]
    heads, tails = [], []
    for parent in parents:
        row = beam[parent]
        start, end = _some_words(word_bounds(row, begins), rng)
        heads.append(row[:start])
        tails.append(row[end if _below(MAX_WORDS + 1, rng) else start :])
    filled = [(*head, guide.filler, *tail) for head, tail in zip(heads, tails, strict=True)]
    wanted = PULL_WEIGHT * pull(filled, [len(head) for head in heads]).cpu()
    wanted = wanted.masked_fill(~guide.allowed.cpu(), -torch.inf)
    found: list[list[Ids]] = [[] for _ in beam]
    for _ in range(MAX_REWRITTEN_TOKENS):
        growing = [i for i, head in enumerate(heads) if len(head) < guide.max_length]
        if not growing:
            break
        log_probs = guide.next_token_log_probs([heads[i] for i in growing]).cpu()
        ranking = log_probs + wanted[growing]
        noise = -torch.empty_like(ranking).exponential_(generator=rng).log()
        for i, token in zip(growing, (ranking + noise).argmax(1).tolist(), strict=True):
            heads[i] = (*heads[i], token)
            wanted[i, token] -= REPETITION_PENALTY
            found[parents[i]].append((*heads[i], *tails[i]))
    return found


def _some_words(bounds: Sequence[int], rng: torch.Generator) -> tuple[int, int]:
    """Draw where some neighbouring words begin and end; both are 0 in an empty row."""
    if len(bounds) < 2:
        return 0, 0
    first = _below(len(bounds) - 1, rng)
    last = first + 1 + _below(min(MAX_WORDS, len(bounds) - 1 - first), rng)
    return bounds[first], bounds[last]


def _below(count: int, rng: torch.Generator) -> int:
    """Draw a number from 0 to `count` - 1."""
    return int(torch.randint(count, (1,), generator=rng))
