"""Sketch: collect the words that match, then write a text that holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from fuse.guide import Guide
from fuse.options import Count, CountOrNone, NotNegative, Whole, check_options
from fuse.search.methods.base import Method
from fuse.text.constraints import spellings
from fuse.types import Candidates, Evaluation, Ids

MIN_GAIN = 0.01
"""By which share of the secondaries' loss a further word has to lower it."""
WORD_BONUS = 3.0
"""By how much a token ranks higher that begins a word which is still missing, in nats."""
MAX_UNLIKELY = 12.0
"""By how much a next token may be less likely than the likeliest one, in nats."""
CHILDREN = 3
"""A third of the rows at most, or so many, come from one row: beginnings differ."""
ENDINGS = ("ing", "ed", "es", "s")
"""What is left out where words are compared: the forms of one word count as the same."""


@dataclass(frozen=True)
class SketchState:
    """The words, and the beginnings of texts that are written with them."""

    words: tuple[str, ...] = ()
    match: float = math.inf
    """The secondaries' loss of the words alone."""
    revised: int | None = None
    """How many words were reconsidered, one after another; None while words are added."""
    writing: bool = False
    rows: tuple[Ids, ...] = ((),)
    nll: tuple[float, ...] = (0.0,)
    """-log p(row) of each row, in nats."""
    estimate: float = -math.inf
    """The lowest loss that is expected of a text which a row begins."""
    best: float = math.inf
    """The lowest loss of a whole text so far."""


@dataclass(frozen=True)
class Sketch(Method):
    """Collect words whose bag matches the secondaries, then write texts that hold them.

    Words are added one a step, each the best of half of `search_width` by the secondaries' loss of
    all words so far; these are shortlisted by the gradient. Then, `rounds` times, each word gives
    way to the best one in its place. Then texts are written from left to right, by beam search over
    `rows` beginnings. A beginning is judged by what it can become: the secondaries read it together
    with the words that it does not hold yet, and the primary's loss is expected to be (-log
    p(beginning) + `word_cost` m) / (tokens + `word_length` m + 1) with m missing words, the length
    to the power of the primary's `length_penalty`. Next tokens are shortlisted by log p(token |
    beginning) - z(gradient), the words' own first. Scored are the words, as they grow, and then the
    beginnings, with an ending where one is asked for. The method ends where no text is expected to
    become better than the best of these.
    """

    greedy_only: ClassVar[bool] = True
    search_width: Annotated[Count, Doc("beginnings that are judged in one step")] = 128
    rows: Annotated[Count, Doc("beginnings that are kept")] = 12
    words: Annotated[Count, Doc("words that are collected, at most")] = 7
    rounds: Annotated[CountOrNone, Doc("how often each word is reconsidered")] = 1
    word_cost: Annotated[NotNegative, Doc("expected -log p of a missing word, in nats")] = 8.0
    word_length: Annotated[NotNegative, Doc("expected tokens for a missing word")] = 1.3
    steps: Annotated[Whole, Doc("at most")] = 40

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def reads_predictions(self) -> bool:
        return True

    def init(self, guide: Guide, start: Ids, rng: torch.Generator) -> tuple[SketchState, list[Ids]]:
        if not start:
            return SketchState(writing=not guide.has_secondaries), [()]
        words = [
            word.strip(".,;:!?").lower() for word in guide.vocabulary.decode([start])[0].split()
        ]
        return SketchState(tuple(dict.fromkeys(filter(None, words))), writing=True), [start]

    def propose(
        self, state: SketchState, beam: Sequence[Ids], guide: Guide, rng: torch.Generator
    ) -> Candidates | None:
        if not state.writing:
            return self._collect(state, guide)
        if not state.rows or state.best <= state.estimate:
            return None
        return self._write(state, guide)

    def observe(self, state: SketchState, evaluated: Evaluation) -> SketchState:
        losses = [entry.loss for entry in evaluated.entries()]
        return replace(state, best=min([state.best, *losses]))

    # --- words -----------------------------------------------------------------------------------

    def _collect(self, state: SketchState, guide: Guide) -> Candidates:
        """Add the word that lowers the secondaries' loss most; when no further one does, put the
        best one in the place of each, word after word.
        """
        revised, count = state.revised, len(state.words)
        at = count if revised is None else revised % count
        words, match, num_judged = self._best_word(state, at, guide)
        if revised is not None:
            revised += 1
        elif not match < state.match * (1 - MIN_GAIN):
            words, match, revised = state.words, state.match, 0
        elif len(words) == self.words:
            revised = 0
        done = revised is not None and revised >= self.rounds * len(words)
        new = replace(state, words=words, match=match, revised=revised, writing=done)
        text = " ".join(words)
        if guide.constraints.capital:
            text = text[:1].upper() + text[1:]
        rows = [row for row in guide.spelled([text]) if row] if words != state.words else []
        return Candidates(rows, [0] * len(rows), new, num_judged=num_judged)

    def _best_word(
        self, state: SketchState, at: int, guide: Guide
    ) -> tuple[tuple[str, ...], float, int]:
        """Return the words with the best one put at a place, their loss, and how many were tried.

        The word that stands there is tried, too.
        """
        before, own, behind = state.words[:at], state.words[at : at + 1], state.words[at + 1 :]
        others = (*before, *behind)
        bag = guide.vocabulary.encode_ids([" ".join(others)])[0] if others else ()
        (pull,) = guide.pull([(*bag, guide.filler)], [len(bag)])
        offered = list(dict.fromkeys([*own, *self._shortlist(pull, others, guide)]))
        if not offered:
            return state.words, math.inf, 0
        losses = guide.match([" ".join([*before, word, *behind]) for word in offered])
        best = int(losses.argmin())
        return (*before, offered[best], *behind), float(losses[best]), len(offered)

    def _shortlist(
        self, pull: Float[Tensor, " v"], present: Sequence[str], guide: Guide
    ) -> list[str]:
        """Return the words of one token that are wanted most, without forms of present ones."""
        texts, found = guide.vocabulary.token_texts, dict[str, None]()
        count = max(1, self.search_width // 2)
        pull = pull.masked_fill(~guide.begins_word.to(pull.device), -torch.inf)
        for token in pull.topk(min(20 * count, len(pull))).indices.tolist():
            word = texts[token].strip().lower()
            is_word = guide.begins_word[token] and len(word) > 1 and word.isalpha()
            if is_word and missing([word], present):
                found[word] = None
            if len(found) == count:
                break
        return list(found)

    # --- texts -----------------------------------------------------------------------------------

    def _write(self, state: SketchState, guide: Guide) -> Candidates:
        """Write one token more, and offer each beginning with an ending."""
        log_probs = guide.next_token_log_probs(state.rows).float().cpu()
        offers = self._next_tokens(state, log_probs, guide)
        rows = [(*state.rows[parent], token) for parent, token in offers]
        kept = [i for i, ok in enumerate(guide.valid(rows)) if ok]
        rows, offers = [rows[i] for i in kept], [offers[i] for i in kept]
        nll = [state.nll[parent] - float(log_probs[parent, token]) for parent, token in offers]
        estimates = self._estimates(rows, nll, state.words, guide)
        order = self._select(estimates, [parent for parent, _ in offers])
        new = replace(
            state,
            rows=tuple(rows[i] for i in order),
            nll=tuple(nll[i] for i in order),
            estimate=min((estimates[i] for i in order), default=math.inf),
        )
        whole = self._whole(state.rows, log_probs, guide)
        return Candidates(whole, [0] * len(whole), new, num_judged=len(rows))

    def _next_tokens(
        self, state: SketchState, log_probs: Float[Tensor, "b v"], guide: Guide
    ) -> list[tuple[int, int]]:
        """Return the row and the token of each continuation that is judged."""
        filled = [(*row, guide.filler) for row in state.rows]
        ranking = log_probs + guide.pull(filled, [len(row) for row in state.rows]).cpu()
        allowed = (guide.allowed if any(state.rows) else guide.may_begin).cpu().clone()
        allowed[guide.ending_tokens] = False
        likeliest = log_probs.masked_fill(~allowed, -torch.inf).amax(1, keepdim=True)
        possible = allowed & (log_probs > likeliest - MAX_UNLIKELY)
        prompts = guide.vocabulary.decode(state.rows)
        for i, prompt in enumerate(prompts):
            ranking[i, first_tokens(missing(state.words, prompt.split()), guide)] += WORD_BONUS
        ranking = ranking.masked_fill(~possible, -torch.inf)
        width = max(1, self.search_width // len(state.rows))
        values, tokens = ranking.topk(min(width, ranking.shape[1]))
        found = []
        for i, row in enumerate(state.rows):
            if len(row) < guide.max_length - 1:
                kept = tokens[i][values[i] > -torch.inf].tolist()
                found += [(i, token) for token in kept]
        return found

    def _estimates(
        self, rows: Sequence[Ids], nll: Sequence[float], words: Sequence[str], guide: Guide
    ) -> list[float]:
        """Return the loss that is expected of the texts which the rows begin."""
        prompts = guide.vocabulary.decode(rows)
        left = [missing(words, prompt.split()) for prompt in prompts]
        texts = [" ".join([prompt, *own]) for prompt, own in zip(prompts, left, strict=True)]
        found = []
        for row, cost, own, match in zip(rows, nll, left, guide.match(texts).tolist(), strict=True):
            total = cost + self.word_cost * len(own)
            length = len(row) + self.word_length * len(own) + 1
            found.append(guide.primary_loss(total, length) + match)
        return found

    def _select(self, estimates: Sequence[float], parents: Sequence[int]) -> list[int]:
        """Return the best continuations, not too many of one row."""
        count: dict[int, int] = {}
        limit = max(CHILDREN, self.rows // 3) if max(parents, default=0) else self.rows
        kept = []
        for i in sorted(range(len(parents)), key=lambda i: estimates[i]):
            if count.get(parents[i], 0) < limit and estimates[i] < math.inf:
                count[parents[i]] = count.get(parents[i], 0) + 1
                kept.append(i)
        return kept[: self.rows]

    def _whole(
        self, rows: Sequence[Ids], log_probs: Float[Tensor, "b v"], guide: Guide
    ) -> list[Ids]:
        """Return the rows, each with its likeliest ending; as they are where no ending is asked
        for.
        """
        if not guide.ending_tokens:
            return [row for row in rows if row]
        endings = torch.tensor(guide.ending_tokens)
        likeliest = endings[log_probs[:, endings].argmax(1)].tolist()
        ended = [(*row, token) for row, token in zip(rows, likeliest, strict=True) if row]
        return [row for row, ok in zip(ended, guide.valid(ended), strict=True) if ok]


def first_tokens(words: Sequence[str], guide: Guide) -> list[int]:
    """Return the tokens with which words begin, at the beginning of a text and after a word."""
    texts = [*words, *(word.capitalize() for word in words)]
    # Capitals belong to the beginning of a text alone
    spelled = spellings(guide.vocabulary, texts)[: 3 * len(words)]
    return [ids[0] for ids in spelled if ids]


def missing(words: Sequence[str], present: Sequence[str]) -> list[str]:
    """Return the words of which no form is present."""
    forms = {base_form(word) for word in present}
    return [word for word in words if not any(same_word(base_form(word), one) for one in forms)]


def base_form(word: str) -> str:
    """Return a word without its ending."""
    word = word.lower().strip(".,;:!?'\"()")
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def same_word(one: str, other: str) -> bool:
    """Whether two base forms are of one word: equal, or a long one that begins as the other."""
    if min(len(one), len(other)) < 4:
        return one == other
    return one.startswith(other) or other.startswith(one)
