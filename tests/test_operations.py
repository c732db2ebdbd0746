"""The count of operations: torch's own counter agrees, and a search has a count of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import fuse

PROMPTS = ["A red house stands alone in the snow.", "There is a cup", "A blue boat by the sea."]
WIDE = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
NETWORKS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=256, n_layer=3, n_head=4, **WIDE)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            **WIDE,
        )
    ),
}


def small_lm(name: str, lm: fuse.CausalLM) -> fuse.CausalLM:
    """A network of random weights with the demo model's tokens."""
    torch.manual_seed(0)
    WIDE["vocab_size"] = len(lm.vocabulary)
    return fuse.CausalLM(NETWORKS[name](), lm.vocabulary.tokenizer)


def counted(model: fuse.CausalLM, work: Callable[[], Any]) -> tuple[int, int]:
    """How many operations a piece of work takes: ours, and torch's."""
    before = model.operations.total
    with FlopCounterMode(display=False) as flops:
        work()
    return model.operations.total - before, flops.get_total_flops()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("label", ["", "in the rain and by the sea"])
def test_the_count_is_torchs_own(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch, name: str, label: str
) -> None:
    """Whole rows, what a prefix cache leaves of them, and gradients; attention is a small part."""
    # Torch does not count oneDNN's products
    monkeypatch.setattr("fuse.nn.prepacked._onednn_works", lambda: False)
    model = small_lm(name, lm)
    loss = fuse.CrossEntropy(label) if label else fuse.NLL()
    for reuse in (False, True):
        term = fuse.Term(model, loss, prefix="Look:", prefix_cache=reuse)
        rows = term.encode(PROMPTS)
        free = [row.free_ids for row in rows]
        term.engine.prefill(rows[:1])
        work = (
            lambda term=term, rows=rows: term.score(rows),
            lambda term=term, free=free: term.token_gradient(free, [0, 1, 2], "current"),
            lambda term=term, free=free: term.engine.next_token_log_probs(free),
        )
        for one in work:
            ours, torchs = counted(model, one)
            assert ours > 0
            assert ours == pytest.approx(torchs, rel=0.04)


def test_what_is_not_computed_is_not_counted(lm: fuse.CausalLM) -> None:
    term = fuse.Term(lm, fuse.NLL())
    rows = term.encode(PROMPTS)
    term.score(rows)
    before = lm.operations.total
    term.score(rows)
    assert lm.operations.total == before


def test_vectors_are_counted_too(clip: fuse.CLIP, house: torch.Tensor) -> None:
    term = fuse.Term(clip, fuse.CosineDistance(house))
    before = clip.operations.total
    term.score(term.encode(PROMPTS))
    assert clip.operations.total > before


def searches(lm: fuse.CausalLM, number: int) -> list[fuse.Search]:
    found = []
    for seed in range(number):
        generator = torch.Generator().manual_seed(seed)
        objective = fuse.Objective(fuse.Term(lm, fuse.CrossEntropy("in the")))
        method = fuse.GCG(search_width=12, prompt_length=5, moves=("swap",))
        found.append(fuse.Search(objective, method, steps=4, generator=generator))
    return found


def test_a_search_counts_all_that_its_model_does(lm: fuse.CausalLM) -> None:
    (search,) = searches(lm, 1)
    before = lm.operations.total
    state = search.start()
    while not state.ended:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
    assert state.operations == lm.operations.total - before
    result = search.run()
    counts = [step.operations for step in result.trace]
    assert counts == sorted(set(counts))
    assert counts[-1] == result.operations > 0


def test_searches_side_by_side_pay_for_what_they_ask(lm: fuse.CausalLM) -> None:
    """Their counts make up what the model did, and each is about what it is alone."""
    alone = [search.run().operations for search in searches(lm, 3)]
    before = lm.operations.total
    running = fuse.search_together(searches(lm, 3))
    spent = lm.operations.total - before
    together = [result.operations for result in running if isinstance(result, fuse.Result)]
    assert len(together) == 3
    # The results are scored once more at the end
    assert 0.9 * spent < sum(together) <= spent
    assert together == pytest.approx(alone, rel=0.1)


def test_a_second_view_of_a_network_has_a_count_of_its_own(lm: fuse.CausalLM) -> None:
    again = fuse.CausalLM(lm.network, lm.vocabulary.tokenizer)
    before = lm.operations.total
    term = fuse.Term(again, fuse.NLL())
    term.score(term.encode(PROMPTS))
    assert lm.operations.total == before
    assert again.operations.total > 0
