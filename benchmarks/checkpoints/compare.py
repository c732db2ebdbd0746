"""Compare a model's losses, gradients and searches with the family's own results."""

from __future__ import annotations

from typing import Any

import fuse
from checkpoints.family import Findings, relative
from checkpoints.reference import Reference

PROMPTS = (
    "a red house stands",
    "a red house lies",
    "the dog sleeps by the sea",
    "two boats",
    "a red house stands in the snow",
    "a book about the old man and the blue guitar",
)
REUSE = {"all": (True, True), "no packing": (True, False), "none": (False, False)}
"""Whether the prefix cache and packing are on."""
MAX_TOKENS_PER_WORD = 6
LONGEST = 200
"""Up to which length a prompt is tried that fills the model's context."""


def compare_term(
    reference: Reference, model: fuse.Model, loss: Any, around: dict[str, str],
    findings: Findings, place: str,
) -> None:  # fmt: skip
    """Compare losses, with and without reuse, ids, and gradients."""
    ways = REUSE if model.supports_prefix_cache else {"none": REUSE["none"]}
    for reuse, (cached, packed) in ways.items():
        term = fuse.Term(model, loss, **around, prefix_cache=cached, packing=packed)
        _compare_losses(reference, term, findings, f"{place}, reuse: {reuse}")
    prompts = _fitting(term)
    for prompt, row in zip(prompts, term.encode(prompts), strict=True):
        own = reference.ids(term, prompt)
        findings.require("ids", own == row.ids, f"{row.ids} for {own}")
    _compare_gradients(reference, term, findings, place)


def _compare_losses(reference: Reference, term: fuse.Term, findings: Findings, place: str) -> None:
    """Compare the losses of prompts, before and after a step that fills the cache."""
    part = "reuse" if term.engine.runner.prefix_cache else "loss"
    prompts = _fitting(term)
    rows = term.encode(prompts)
    expected = [reference.value(term, prompt) for prompt in prompts]
    findings.compare(part, term.score(rows), expected, place)
    term.engine.prefill(rows[:2])
    findings.compare(part, term.score(rows), expected, f"{place}, after a step")


def _fitting(term: fuse.Term) -> list[str]:
    """Return the prompts that fit the model's context."""
    rows = term.encode(PROMPTS)
    return [prompt for prompt, fits in zip(PROMPTS, term.fits(rows), strict=True) if fits]


def compare_longest(reference: Reference, model: fuse.Model, loss: Any, findings: Findings) -> None:
    """Compare the loss of a prompt that fills the context of the model."""
    term = fuse.Term(model, loss)
    room = term.max_free_tokens
    if room > LONGEST:
        return
    words = " ".join(PROMPTS * room).split()
    count, fitting = 1, ""
    while term.fits(term.encode([text := " ".join(words[:count])]))[0]:
        fitting = text
        missing = room - len(term.encode([text])[0].free_ids)
        count += max(1, missing // MAX_TOKENS_PER_WORD)
    (longest,) = term.encode([fitting])
    expected = reference.value(term, fitting)
    place = f"a prompt of {len(longest.free_ids)} tokens, with room for {room}"
    findings.compare("longest", term.score([longest])[0], expected, place)


def _compare_gradients(
    reference: Reference, term: fuse.Term, findings: Findings, place: str
) -> None:
    """Compare gradients by the embeddings of prompts of unlike lengths, in one batch."""
    prompts = _fitting(term)[2:5]
    rows = term.encode(prompts)
    by_embedding = term.gradient(rows, [range(*row.free) for row in rows]).embedding
    found = term.vocabulary.table.inner_products(by_embedding)
    for prompt, row, own in zip(prompts, rows, found, strict=True):
        expected = reference.token_gradient(term, prompt, row)
        findings.compare("gradient", relative(own[: len(expected)], expected), 0.0, place)


def compare_search(
    reference: Reference, term: fuse.Term, method: Any, findings: Findings, place: str
) -> None:
    """Compare the losses of all candidates of a search, and of its result."""
    search = fuse.Search(fuse.Objective(term), method)
    state = search.start()
    while not state.ended:
        candidates = search.propose(state)
        evaluated = search.evaluate(state, candidates)
        _compare_candidates(reference, term, evaluated, findings, place)
        state = search.accept(state, evaluated)
    result = search.result(state)
    expected = reference.value(term, result.prompt)
    findings.compare("search", result.loss, expected, f"{place}: result")


def _compare_candidates(
    reference: Reference, term: fuse.Term, evaluated: Any, findings: Findings, place: str
) -> None:
    """Compare the losses of one step's candidates."""
    prompts = term.vocabulary.decode(evaluated.candidates.ids)
    findings.require("search", bool(evaluated.valid.any()), f"{place}: no valid candidate")
    for prompt, loss, valid in zip(prompts, evaluated.loss, evaluated.valid, strict=True):
        if valid:
            expected = reference.value(term, prompt)
            findings.compare("search", float(loss), expected, f"{place}: candidate")


def fast_ways(model: fuse.Model) -> str:
    """Return which of the ways that make losses quicker a model takes."""
    ways = {"cache": model.supports_prefix_cache, "packing": model.supports_packing}
    return "+".join(way for way, taken in ways.items() if taken) or "none"
