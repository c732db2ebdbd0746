"""Packing and the prefix cache are used only with networks that read the same through them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
from test_models_kinds import ENDS, GPT2, LLAMA, word_tokenizer
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

import fuse
from fuse.models import CLIP, CausalLM, Model
from fuse.nn.prefix_attention import PREFIX_ATTENTION
from fuse.term import Term

TEXTS = ["a red house in the snow", "dog", "the blue cup", "a red house in the dog the snow"]
LOGGER = "fuse.models.proof"


def gpt2(kind: Any = transformers.GPT2LMHeadModel, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    network = kind(transformers.GPT2Config(vocab_size=64, **GPT2, **ENDS)).eval()
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return network


def causal_lm(network: Any) -> CausalLM:
    return CausalLM(network, word_tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>"))


def losses(model: Model, loss: Any, **options: Any) -> list[float]:
    """Score texts after a step whose candidates share their beginnings."""
    term = Term(model, loss, prefix="a picture", **options)
    term.engine.prefill(term.encode(["a red house in the dog", "the blue"]))
    return term.engine.score(term.encode(TEXTS)).tolist()


def check(model: CausalLM) -> None:
    """Losses are those of whole rows, read one by one by the network itself."""
    term, plain = Term(model, fuse.NLL(), prefix="a picture"), []
    for row in term.encode(TEXTS):
        logits = model.network(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        nll = [-float(logits[position - 1, row.ids[position]]) for position in range(*row.free)]
        plain.append(sum(nll) / len(nll))
    assert losses(model, fuse.NLL()) == pytest.approx(plain, abs=1e-4)


def test_a_class_from_a_notebook_packs() -> None:
    """Its source cannot be read, and `set_attn_implementation` does nothing."""
    made = type("Notebook", (transformers.GPT2LMHeadModel,), {"__module__": "no_such_module"})
    assert not made._can_set_attn_implementation()
    model = causal_lm(gpt2(made))
    check(model)
    assert model.supports_prefix_cache
    assert model.supports_packing


class AnyArguments(transformers.GPT2LMHeadModel):
    """Does not name its arguments."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return super().forward(*arguments, **options)


def test_arguments_that_are_passed_on_need_no_names() -> None:
    model = causal_lm(gpt2(AnyArguments))
    check(model)
    assert model.supports_packing


class StockAttention(GPT2Attention):
    """Does not look its attention up."""

    def forward(
        self, hidden_states: Any, cache: Any = None, attention_mask: Any = None, **options: Any
    ) -> Any:
        cache = options.get("past_key_values", cache)  # as older transformers name it
        heads = []
        for states in self.c_attn(hidden_states).split(self.split_size, dim=2):
            heads.append(states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2))
        query, key, value = heads
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        if attention_mask is None:
            shape = query.shape[2], key.shape[2]
            attention_mask = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask)
        return self.c_proj(out.transpose(1, 2).flatten(2)), None


class ForgetfulAttention(StockAttention):
    """Puts nothing into the cache that others could go on from."""

    def forward(self, hidden_states: Any, cache: Any = None, *rest: Any, **options: Any) -> Any:
        options.pop("past_key_values", None)
        return super().forward(hidden_states, None, *rest, **options)


@pytest.mark.parametrize(
    ("attention", "layers", "caches"),
    [(StockAttention, 2, True), (StockAttention, 1, True), (ForgetfulAttention, 2, False)],
)
def test_attention_that_is_not_replaced_is_found_out(
    attention: type, layers: int, caches: bool, caplog: pytest.LogCaptureFixture
) -> None:
    network = gpt2()
    for block in network.transformer.h[:layers]:
        block.attn.__class__ = attention
    with caplog.at_level(logging.DEBUG, logger=LOGGER):
        model = causal_lm(network)
    check(model)
    assert not model.supports_packing
    assert model.supports_prefix_cache == caches
    assert model.network.config._attn_implementation == "sdpa", "the attention is put back"
    assert "packed rows that go on from it: no" in caplog.text


def test_nothing_is_said_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    network = gpt2(type("Notebook", (transformers.GPT2LMHeadModel,), {"__module__": "nowhere"}))
    network.transformer.h[0].attn.__class__ = StockAttention
    causal_lm(network)
    assert capfd.readouterr() == ("", "")


class StockCLIPAttention(CLIPAttention):
    """Does not look its attention up."""

    def forward(self, hidden_states: Any, attention_mask: Any = None, **_: Any) -> Any:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        heads = []
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            heads.append(layer(hidden_states).view(shape).transpose(1, 2))
        causal = attention_mask is None
        out = torch.nn.functional.scaled_dot_product_attention(
            *heads, attention_mask, is_causal=causal, scale=self.scale
        )
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def demo_clip(stock: bool) -> CLIP:
    folder = ROOT / "fuse/demo/clip"
    network = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32)
    if stock:
        for layer in network.text_model.encoder.layers:
            layer.self_attn.__class__ = StockCLIPAttention
    return CLIP(network, transformers.AutoTokenizer.from_pretrained(folder), None)


def test_a_clip_whose_attention_is_not_replaced_is_found_out(house: torch.Tensor) -> None:
    model, stock = demo_clip(False), demo_clip(True)
    expected = losses(model, fuse.CosineDistance(house), prefix_cache=False)
    assert losses(stock, fuse.CosineDistance(house)) == pytest.approx(expected, abs=1e-5)
    assert model.supports_prefix_cache
    assert model.supports_packing
    assert not stock.supports_prefix_cache
    assert not stock.supports_packing


@pytest.mark.parametrize("options", [{}, {"packing": False}, {"prefix_cache": False}])
def test_ways_to_read_change_no_vector_of_clip(
    options: dict[str, bool], clip: CLIP, house: torch.Tensor
) -> None:
    vectors = clip.embed_texts([f"a picture {text}" for text in TEXTS])
    expected = (1 - vectors @ house).tolist()
    found = losses(clip, fuse.CosineDistance(house), **options)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_pack(dtype: torch.dtype) -> None:
    for kind, name in ((CausalLM, "lm"), (CLIP, "clip")):
        model = kind.load(str(ROOT / "fuse/demo" / name), dtype=dtype)
        assert model.supports_packing


def test_a_half_type_does_not_hide_stock_attention() -> None:
    network = gpt2().to(torch.bfloat16)
    for block in network.transformer.h:
        block.attn.__class__ = StockAttention
    assert not causal_lm(network).supports_packing


@pytest.mark.parametrize("option", ["softcap", "s_aux", "sliding_window"])
def test_attention_that_asks_for_more_is_not_packed(option: str) -> None:
    class Asking(GPT2Attention):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            value = torch.zeros(2) if option == "s_aux" else 3
            packed = self.config._attn_implementation == PREFIX_ATTENTION
            return super().forward(*arguments, **options, **({option: value} if packed else {}))

    network = gpt2()
    for block in network.transformer.h:
        block.attn.__class__ = Asking
    model = causal_lm(network)
    check(model)
    assert not model.supports_packing
    assert model.supports_prefix_cache


def test_a_context_too_short_for_a_trial_is_read_plainly() -> None:
    tokenizer = word_tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    tokenizer.model_max_length = 5
    model = CausalLM(gpt2(), tokenizer)
    assert not model.supports_packing
    term = Term(model, fuse.NLL())
    assert term.engine.score(term.encode(["a dog"])).isfinite().all()


def test_a_trial_costs_few_passes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=64, **LLAMA, **ENDS)
    )
    passes: list[int] = []
    network.model.register_forward_hook(lambda *_: passes.append(1))
    model = causal_lm(network)
    assert model.supports_packing
    assert len(passes) <= 16


def test_the_first_pass_computes_the_bits_of_all_others() -> None:
    model = CausalLM.load(str(ROOT / "fuse/demo/lm"))
    first, second = losses(model, fuse.NLL()), losses(model, fuse.NLL())
    assert first == second


def test_a_model_of_a_view_packs_as_the_first() -> None:
    model = causal_lm(gpt2())
    assert causal_lm(model.network).supports_packing
