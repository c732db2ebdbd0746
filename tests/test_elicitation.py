"""Elicitation: what counts as said is what the network itself generates, and what is collected says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

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


def continuation(lm: fuse.CausalLM, text: str, count: int) -> tuple[int, ...]:
    """What the network generates after a text, greedily, by its own code."""
    ids = torch.tensor([[*lm.vocabulary.head, *lm.vocabulary.encode([text])[0][0]]])
    out = lm.network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return tuple(out[0, ids.shape[1] :].tolist())


def says(lm: fuse.CausalLM, text: str, label: str) -> bool:
    """Whether the network goes on with the label after a text."""
    wanted = lm.vocabulary.encode([f" {label}"])[0][0]
    return continuation(lm, text, len(wanted)) == wanted


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


@pytest.mark.parametrize("prefix", ["", "Look:"])
@pytest.mark.parametrize("suffix", ["", "and a boat", ". The boat"])
def test_saying_a_label_is_greedy_generation(lm: fuse.CausalLM, prefix: str, suffix: str) -> None:
    """For labels of one and of many tokens, true and false, all prompts in one batch."""
    told: Counter[bool] = Counter()
    own = [lm.vocabulary.tokenizer.decode(continuation(lm, before_label(prefix, prompt, suffix), 3)).strip() for prompt in PROMPTS[:3]]
    for label in (*LABELS, *own):
        if not label or "<|" in label:
            continue
        objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy(label), prefix=prefix, suffix=suffix))
        rows = [objective.primary.encode([prompt])[0].free_ids for prompt in PROMPTS]
        expected = [says(lm, before_label(prefix, prompt, suffix), label) for prompt in PROMPTS]
        assert objective.says_label(rows) == expected
        assert [objective.says_label([row])[0] for row in rows] == expected
        told.update(expected)
    assert told[True] >= 3
    assert told[False] > told[True]


def test_a_label_of_the_first_words_alone_is_not_said(lm: fuse.CausalLM) -> None:
    """The tokens are compared to the last."""
    said = lm.vocabulary.tokenizer.decode(continuation(lm, "A red house", 4))
    other = f"{said} turquoise".strip()
    for label, expected in ((said.strip(), True), (other, False)):
        objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy(label)))
        assert objective.says_label([objective.spell("A red house")]) == [expected]


def test_without_a_label_nothing_is_said(lm: fuse.CausalLM, clip: fuse.CLIP, house: torch.Tensor) -> None:
    for term in (fuse.Term(lm, fuse.NLL()), fuse.Term(clip, fuse.CosineDistance(house))):
        objective = fuse.Objective(term)
        assert not objective.elicits
        assert objective.says_label([objective.spell("a red house")]) == [False]


@pytest.mark.parametrize(
    ("label", "suffix", "start"), [("in the", "", "kmeans"), ("in the", ". The boat stands", "random"), ("and", "", "label")]
)
def test_what_embedding_collects_makes_the_model_say_the_label(lm: fuse.CausalLM, label: str, suffix: str, start: str) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy(label), suffix=suffix))
    method = fuse.Embedding(search_width=16, prompt_length=4, start=start)
    result = fuse.search(objective, method, fuse.Beam(1), steps=15, generator=torch.Generator().manual_seed(0))
    assert len(result.found) >= 3
    assert len(set(result.found)) == len(result.found)
    for prompt in result.found:
        assert says(lm, before_label("", prompt, suffix), label)
        assert prompt.isascii()
    # how often they hold each token
    tokens = [token for prompt in result.found for token in objective.spell(prompt)]
    assert sum(result.token_counts.values()) == len(tokens)
    told: Counter[str] = Counter()
    for text, count in result.token_counts.items():
        told[text.strip()] += count
    assert told == Counter(lm.vocabulary.token_texts[token].strip() for token in tokens)


class Collector(fuse.Caption):
    """Collects what it proposes."""

    def found(self, state: Any) -> Sequence[Ids]:
        return self.rows  # type: ignore[attr-defined,no-any-return]


def test_token_counts_tell_every_token(lm: fuse.CausalLM) -> None:
    """Also tokens that differ in nothing but the space before them."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    texts = ("A red A and A house", "There is A cup", "A cup, A cup")
    method = Collector(texts)
    rows = [objective.spell(text) for text in texts]
    object.__setattr__(method, "rows", rows)
    result = fuse.search(objective, method, fuse.Beam(1))
    assert result.found == texts
    assert sum(result.token_counts.values()) == sum(map(len, rows))
    assert max(result.token_counts.values()) >= 4  # " A", if not "A" too
    assert list(result.token_counts.values()) == sorted(result.token_counts.values(), reverse=True)


def test_what_is_found_twice_is_told_once(lm: fuse.CausalLM) -> None:
    """Over both methods of a chain."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    method = Collector(("A red house",))
    object.__setattr__(method, "rows", [objective.spell("A red house"), objective.spell("A cup")])
    result = fuse.search(objective, method, fuse.Beam(1), refine=method, steps=4)
    assert result.found == ("A red house", "A cup")


def test_methods_that_collect_nothing_tell_nothing(lm: fuse.CausalLM) -> None:
    result = fuse.search(fuse.Objective(fuse.Term(lm, fuse.NLL())), fuse.AutoDAN(search_width=4), fuse.Beam(1), steps=2)
    assert (result.found, result.token_counts) == ((), {})


def test_collecting_is_the_same_with_the_same_seed(lm: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the")))
    method = fuse.Embedding(search_width=12, prompt_length=4)
    found = [fuse.search(objective, method, fuse.Beam(1), steps=8, generator=torch.Generator().manual_seed(s)).found for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_a_fluent_elicitation_weighs_the_prompts_own_likelihood(lm: fuse.CausalLM) -> None:
    plain, fluent, nll = (
        fuse.Objective(fuse.Term(lm, loss)) for loss in (fuse.CrossEntropy("in the"), fuse.CrossEntropy("in the", 0.5), fuse.NLL())
    )
    for text in PROMPTS:
        both = plain.evaluate_text(text)[0] + 0.5 * nll.evaluate_text(text)[0]
        assert fluent.evaluate_text(text)[0] == pytest.approx(both, abs=1e-4)
