"""A long prefix is attended to apart from what else a token sees, with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from test_models_kinds import ENDS, LLAMA
from test_proof import gpt2, lm_tokenizer, spread

import fuse
from fuse.engine import Engine
from fuse.nn import prefix_attention
from fuse.nn.prefix_attention import _attend_apart, _plain_attention

PREFIX = " ".join(["a red house in the snow"] * 12)
BEAM = ["dog the blue cup", "the snow in a", "red"]
ROWS = [
    "dog the blue dog",
    "dog the red cup",
    "the snow in the",
    "the cup in a",
    "dog",
    "red",
    "snow red",
]
SIZES = {**LLAMA, "max_position_embeddings": 128, "num_attention_heads": 4, "vocab_size": 64}


def llama(**options: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **ENDS, **options))


def mistral(window: int) -> Any:
    options = {**SIZES, **ENDS, "sliding_window": window, "num_key_value_heads": 2}
    return transformers.MistralForCausalLM(transformers.MistralConfig(**options))


def tokenizer() -> Any:
    found = lm_tokenizer()
    found.model_max_length = 128
    return found


NETWORKS = {
    "gpt2": lambda: gpt2(n_positions=128),
    "shared keys": lambda: spread(llama(num_key_value_heads=2)),
    "windows that hold all": lambda: spread(mistral(100)),
    "windows": lambda: spread(mistral(70)),
}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of how many keys were attended to apart, layer by layer, from now on."""
    found: list[int] = []

    def counting(*given: Any) -> Any:
        found.append(given[-1])
        return _attend_apart(*given)

    monkeypatch.setattr(prefix_attention, "_attend_apart", counting)
    return found


@pytest.mark.parametrize("beam", [BEAM, BEAM[:1]], ids=["beam", "greedy"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in NETWORKS),
        ("shared keys", torch.float64),
        ("shared keys", torch.bfloat16),
    ],
    ids=str,
)
def test_a_prefix_apart_changes_no_result(
    name: str, dtype: torch.dtype, beam: list[str], counts: list[int]
) -> None:
    model = fuse.CausalLM(NETWORKS[name]().to(dtype), tokenizer())
    term = fuse.Term(model, fuse.NLL(), prefix=PREFIX)
    plain = Engine(term.model, term.loss, term.surroundings, 128, prefix_cache=False)
    rows = term.encode(ROWS)
    term.engine.prefill(term.encode(beam))
    assert not counts
    found = term.engine.score(rows)
    assert set(counts) == (set() if name == "windows" else {73})
    torch.testing.assert_close(
        found, plain.score(rows), atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0
    )


def test_what_a_window_hides_is_not_attended_to_apart(counts: list[int]) -> None:
    model = fuse.CausalLM(spread(mistral(20)), tokenizer())
    term = fuse.Term(model, fuse.NLL(), prefix=PREFIX)
    term.engine.prefill(term.encode(BEAM))
    term.engine.score(term.encode(ROWS))
    assert not counts


def test_torchs_kernel_is_the_softmax() -> None:
    rng = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(3, count, 16, generator=rng) for count in (5, 90, 90))
    out, log_normaliser = _plain_attention(query, keys, values)
    scores = query @ keys.mT
    torch.testing.assert_close(out, scores.softmax(-1) @ values, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_normaliser, scores.logsumexp(-1), atol=1e-5, rtol=0)
    narrow, same = _plain_attention(query, keys, values[..., :8])
    torch.testing.assert_close(narrow, out[..., :8], atol=1e-5, rtol=0)
    torch.testing.assert_close(same, log_normaliser, atol=1e-5, rtol=0)
