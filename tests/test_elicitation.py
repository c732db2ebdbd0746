"""Elicitation: a label is said where the network generates it, and what is collected says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import pytest
import torch
from sampling import sampled_pairs

import fuse
from fuse.types import Ids

PROMPTS = [
    "A red house",
    "A picture of",
    "Two dogs",
    "The cup stands",
    "There is a blue",
    "A red house in the snow.",
    "Please brother",
    "A",
]


MAX_LABEL_TOKENS = 12


@lru_cache
def continuation(lm: fuse.CausalLM, text: str) -> tuple[int, ...]:
    """What the network generates after a text, greedily, by its own code."""
    ids = torch.tensor([[*lm.vocabulary.head, *lm.vocabulary.encode([text])[0][0]]])
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": MAX_LABEL_TOKENS, "do_sample": False, "pad_token_id": 0}
    out = lm.network.generate(ids, attention_mask=mask, **options)
    return tuple(out[0, ids.shape[1] :].tolist())


def says(lm: fuse.CausalLM, text: str, label: str) -> bool:
    """Whether the network goes on with the label after a text."""
    wanted = lm.vocabulary.encode([f" {label}"])[0][0]
    assert len(wanted) <= MAX_LABEL_TOKENS
    return continuation(lm, text)[: len(wanted)] == wanted


def before_label(prefix: str, prompt: str, suffix: str) -> str:
    """The text before the label."""
    before = f"{prefix} {prompt}".strip()
    return before + (suffix if suffix.startswith(".") else f" {suffix}").rstrip()


LABELS = [
    "stands alone in the rain.",
    "stands",
    "stands alone",
    "lamp",
    "a big yellow key",
    "slept",
    "slept under the huge",
    "in the snow.",
    "is",
]


@pytest.mark.parametrize(
    ("prefix", "suffix"), sampled_pairs(["", "Look:"], ["", ". The boat", "and a boat"])
)
def test_saying_a_label_is_greedy_generation(lm: fuse.CausalLM, prefix: str, suffix: str) -> None:
    """For labels of one and of many tokens, true and false, all prompts in one batch."""
    answers: Counter[bool] = Counter()
    texts = [before_label(prefix, prompt, suffix) for prompt in PROMPTS]
    decode = lm.vocabulary.tokenizer.decode
    own = [decode(continuation(lm, text)[:3]).strip() for text in texts[:3]]
    for label in (*LABELS, *own):
        if not label or "<|" in label:
            continue
        loss = fuse.CrossEntropy(label)
        objective = fuse.Objective(fuse.Term(lm, loss, prefix=prefix, suffix=suffix))
        rows = [objective.primary.encode([prompt])[0].free_ids for prompt in PROMPTS]
        expected = [says(lm, text, label) for text in texts]
        assert objective.says_label(rows) == expected
        assert [objective.says_label([row])[0] for row in rows] == expected
        answers.update(expected)
    assert answers[True] >= 3
    assert answers[False] > answers[True]


def test_a_label_of_the_first_words_alone_is_not_said(lm: fuse.CausalLM) -> None:
    """The tokens are compared to the last."""
    said = lm.vocabulary.tokenizer.decode(continuation(lm, "A red house")[:4])
    other = f"{said} turquoise".strip()
    for label, expected in ((said.strip(), True), (other, False)):
        objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy(label)))
        assert objective.says_label([objective.spell("A red house")]) == [expected]


def test_without_a_label_nothing_is_said(
    lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor
) -> None:
    for term in (fuse.Term(lm, fuse.NLL()), fuse.Term(clip, fuse.CosineDistance(house))):
        objective = fuse.Objective(term)
        assert not objective.elicits
        assert objective.says_label([objective.spell("a red house")]) == [False]


@pytest.mark.parametrize(
    ("label", "suffix", "start"),
    [
        pytest.param("in the", "", "kmeans", marks=pytest.mark.full),
        pytest.param("in the", ". The boat stands", "random", marks=pytest.mark.full),
        ("and", "", "label"),
    ],
)
def test_what_embedding_collects_makes_the_model_say_the_label(
    lm: fuse.CausalLM, label: str, suffix: str, start: str
) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy(label), suffix=suffix))
    method = fuse.Embedding(search_width=16, prompt_length=4, start=start)
    generator = torch.Generator().manual_seed(0)
    result = fuse.search(objective, method, fuse.Beam(1), steps=15, generator=generator)
    assert len(result.found) >= 3
    assert len(set(result.found)) == len(result.found)
    for prompt in result.found:
        assert says(lm, before_label("", prompt, suffix), label)
        assert prompt.isascii()
    # how often they hold each token
    tokens = list(chain.from_iterable(objective.spell(prompt) for prompt in result.found))
    assert sum(result.token_counts.values()) == len(tokens)
    counts: Counter[str] = Counter()
    for text, count in result.token_counts.items():
        counts[text.strip()] += count
    assert counts == Counter(lm.vocabulary.token_texts[token].strip() for token in tokens)


@dataclass(frozen=True)
class Collector(fuse.Caption):
    """Starts from its texts, and collects the rows given."""

    rows: Sequence[Ids] = ()

    def found(self, state: Any) -> Sequence[Ids]:
        return self.rows


def test_token_counts_hold_every_token(lm: fuse.CausalLM) -> None:
    """Also tokens that differ in nothing but the space before them."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    texts = ("A red A and A house", "There is A cup", "A cup, A cup")
    rows = [objective.spell(text) for text in texts]
    result = fuse.search(objective, Collector(texts, rows=rows), fuse.Beam(1))
    assert result.found == texts
    assert sum(result.token_counts.values()) == sum(map(len, rows))
    assert max(result.token_counts.values()) >= 4  # " A", if not "A" too
    counts = list(result.token_counts.values())
    assert counts == sorted(counts, reverse=True)


def test_what_is_found_twice_is_in_the_result_once(lm: fuse.CausalLM) -> None:
    """Over both methods of a chain."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    rows = [objective.spell("A red house"), objective.spell("A cup")]
    method = Collector(("A red house",), rows=rows)
    result = fuse.search(objective, method, fuse.Beam(1), refine=method, steps=4)
    assert result.found == ("A red house", "A cup")


def test_methods_that_collect_nothing_have_nothing_in_the_result(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    result = fuse.search(objective, fuse.AutoDAN(search_width=4), fuse.Beam(1), steps=2)
    assert (result.found, result.token_counts) == ((), {})


@pytest.mark.full
def test_collecting_is_the_same_with_the_same_seed(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the")))
    method = fuse.Embedding(search_width=12, prompt_length=4)
    found = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        result = fuse.search(objective, method, fuse.Beam(1), steps=8, generator=generator)
        found.append(result.found)
    assert found[0] == found[1] != found[2]


def test_a_fluent_elicitation_weighs_the_prompts_own_likelihood(lm: fuse.CausalLM) -> None:
    losses = (fuse.CrossEntropy("in the"), fuse.CrossEntropy("in the", 0.5), fuse.NLL())
    plain, fluent, nll = (fuse.Objective(fuse.Term(lm, loss)) for loss in losses)
    for text in PROMPTS:
        both = plain.evaluate_text(text)[0] + 0.5 * nll.evaluate_text(text)[0]
        assert fluent.evaluate_text(text)[0] == pytest.approx(both, abs=1e-4)
