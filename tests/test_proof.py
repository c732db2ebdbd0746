"""Models read as their networks do plainly, in every way that is on, or are refused in one line."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
from test_models_kinds import BERT, ENDS, GPT2, LLAMA, SIGHT, bert_tokenizer, save, word_tokenizer
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Model

import fuse
from fuse.models import CausalLM, MaskedLM, Model
from fuse.models.base import context_length
from fuse.nn import fixed_layers, packing, prefix_attention
from fuse.nn.lm_head import LMHead

TEXTS = ["a red house in the snow", "dog", "the blue cup", "a red house in the dog the snow"]
WAYS: tuple[dict[str, bool], ...] = ({}, {"packing": False}, {"prefix_cache": False})
SIZES: dict[str, Any] = {"vocab_size": 64, **GPT2, **ENDS}


def spread(network: Any) -> Any:
    """Give a network weights that are large enough for texts to differ."""
    torch.manual_seed(0)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return network.eval()


def gpt2(kind: Any = transformers.GPT2LMHeadModel, **options: Any) -> Any:
    return spread(kind(transformers.GPT2Config(**{**SIZES, **options})))


def lm_tokenizer() -> Any:
    return word_tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>", pad_token="[PAD]")


def causal_lm(network: Any, tokenizer: Any = None) -> CausalLM:
    return CausalLM(network, tokenizer or lm_tokenizer())


def plain_logits(network: Any, ids: Any) -> torch.Tensor:
    eager = copy.deepcopy(network)
    for module in eager.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    with torch.no_grad():
        return eager(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


def check(network: Any, tokenizer: Any = None) -> CausalLM:
    """Make a model, and compare it with the network as given in all ways to read."""
    model, expected = causal_lm(network, tokenizer), []
    for row in fuse.Term(model, fuse.NLL(), prefix="a picture").encode(TEXTS):
        log_probs = plain_logits(network, row.ids)
        nll = [-float(log_probs[p - 1, row.ids[p]]) for p in range(*row.free)]
        expected.append(sum(nll) / len(nll))
    for way in WAYS:
        term = fuse.Term(model, fuse.NLL(), prefix="a picture", **way)
        term.engine.prefill(term.encode(["a red house in the dog", "the blue"]))
        assert term.engine.score(term.encode(TEXTS)).tolist() == pytest.approx(expected, abs=1e-4)
    ids = [row.ids for row in term.encode(TEXTS[:2])]
    found = term.engine.next_token_log_probs(ids)
    for row, log_probs in zip(ids, found, strict=True):
        wanted = plain_logits(network, row)[-1, : log_probs.shape[-1]]
        torch.testing.assert_close(log_probs[: len(wanted)], wanted, atol=1e-4, rtol=0)
    return model


def gradient(model: Model) -> torch.Tensor:
    """Return a gradient by embeddings."""
    term = fuse.Term(model, fuse.NLL())
    rows = term.encode(TEXTS[:1])
    return term.engine.gradient(rows, [range(*row.free) for row in rows]).embedding


# ---- networks of no family ----
class OwnMask(GPT2Attention):
    """Lets each token see two, whatever mask it is given."""

    def forward(self, hidden_states: Any, cache: Any = None, *_: Any, **__: Any) -> Any:
        heads = []
        for states in self.c_attn(hidden_states).split(self.split_size, dim=2):
            heads.append(states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2))
        query, key, value = heads
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        shape = query.shape[2], key.shape[2]
        seen = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
        seen = seen.triu(shape[1] - shape[0] - 1)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen)
        return self.c_proj(out.transpose(1, 2).flatten(2)), None


class ScaledInCache(GPT2Attention):
    """Keeps values in the cache that are not those attended to."""

    def forward(self, hidden_states: Any, cache: Any = None, *rest: Any, **options: Any) -> Any:
        if cache is not None:
            cache = _Halved(cache)
        return super().forward(hidden_states, cache, *rest, **options)


class _Halved:
    """Halves what is put into a cache, and doubles what is taken from it."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def update(self, keys: Any, values: Any, *rest: Any, **options: Any) -> Any:
        keys, values = self.cache.update(keys / 2, values / 2, *rest, **options)
        return 2 * keys, 2 * values


class CountsAnew(GPT2Model):
    """Counts positions from 0, whatever it has read before."""

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        options["position_ids"] = torch.arange(input_ids.shape[1])[None]
        return super().forward(input_ids, **options)


class ReadsMask(GPT2Model):
    """Says something else where it is given a mask of the tokens."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        out = super().forward(input_ids, attention_mask=attention_mask, **options)
        if attention_mask is not None:
            out.last_hidden_state = out.last_hidden_state.flip(-1)
        return out


class WrongBySDPA(GPT2Attention):
    """Has other scores with any attention but eager."""

    def forward(self, hidden_states: Any, *arguments: Any, **options: Any) -> Any:
        if self.config._attn_implementation != "eager":
            hidden_states = hidden_states * 1.5
        return super().forward(hidden_states, *arguments, **options)


class EditsInPlace(transformers.GPT2LMHeadModel):
    """Writes to what it has looked up, and to what a layer returns."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer.wte.register_forward_hook(lambda _, __, out: None)
        self.transformer.drop.register_forward_pre_hook(lambda _, given: (given[0].mul_(2),))


class HiddenLookups(GPT2Model):
    """Looks tokens up past its embedding layer."""

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        options["inputs_embeds"] = torch.nn.functional.embedding(input_ids, self.wte.weight)
        return super().forward(**options)


class Looks(GPT2Model):
    """Lets each state read the one after it."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        out = super().forward(*arguments, **options)
        states = out.last_hidden_state
        out.last_hidden_state = states + 0.1 * states.roll(-1, 1)
        return out


class Drops(GPT2Model):
    """Draws random numbers in evaluation mode."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        out = super().forward(*arguments, **options)
        out.last_hidden_state = torch.nn.functional.dropout(out.last_hidden_state, 0.1, True)
        return out


def with_attention(kind: type) -> Any:
    network = gpt2()
    for block in network.transformer.h:
        block.attn.__class__ = kind
    return network


def with_model(kind: type) -> Any:
    network = gpt2()
    network.transformer.__class__ = kind
    return network


@pytest.mark.parametrize(
    ("network", "cache", "packing"),
    [
        (lambda: with_attention(OwnMask), True, False),
        (lambda: with_attention(ScaledInCache), True, False),
        (lambda: with_model(CountsAnew), False, False),
        (lambda: with_model(ReadsMask), False, False),
        (lambda: with_attention(WrongBySDPA), True, False),
        (lambda: gpt2(EditsInPlace), True, True),
        (gpt2, True, True),
    ],
    ids=["own mask", "cache", "positions", "mask", "sdpa", "in place", "plain"],
)
def test_what_a_network_does_otherwise_is_left_off(
    network: Any, cache: bool, packing: bool
) -> None:
    model = check(network())
    assert (model.supports_prefix_cache, model.supports_packing) == (cache, packing)
    assert gradient(model).norm() > 0


def test_an_attention_that_disagrees_with_eager_is_not_used() -> None:
    model = check(with_attention(WrongBySDPA))
    assert model.network.config._attn_implementation == "eager"
    assert check(gpt2()).network.config._attn_implementation == prefix_attention.PREFIX_ATTENTION


def test_rows_are_read_alone_where_a_mask_changes_them() -> None:
    model = causal_lm(with_model(ReadsMask))
    assert not model.pads
    seen: list[torch.Size] = []
    hook = model.network.transformer.wte.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape)
    )
    term = fuse.Term(model, fuse.NLL())
    term.engine.score(term.encode(TEXTS))
    hook.remove()
    assert [shape[0] for shape in seen] == [1] * len(TEXTS)
    assert len({shape[1] for shape in seen}) > 1


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: with_model(Looks), "depends on the tokens after it.*masked_lm"),
        (lambda: with_model(Drops), "two passes over one text differ"),
    ],
)
def test_networks_that_are_no_causal_ones_are_refused(network: Any, words: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(fuse.FuseError, match=f"network=GPT2LMHeadModel: .*{words}") as raised:
            causal_lm(network().to(dtype))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["RobertaForCausalLM", "BertLMHeadModel"])
def test_a_masked_model_taken_for_a_causal_one_is_refused(kind: str) -> None:
    config = kind.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "Config"
    sizes = {"vocab_size": 64, **BERT, "max_position_embeddings": 48}
    made = getattr(transformers, config)(**sizes)
    with pytest.raises(fuse.FuseError, match="depends on the tokens after it"):
        causal_lm(spread(getattr(transformers, kind)(made)))
    made.is_decoder = True
    check(spread(getattr(transformers, kind)(made)))


def test_weights_of_nan_are_refused() -> None:
    network = gpt2()
    network.transformer.ln_f.weight.data.fill_(torch.nan)
    with pytest.raises(fuse.FuseError, match=r"its logits are not finite \(nan or inf\)"):
        causal_lm(network)
    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=64, **BERT))
    bert.cls.predictions.bias.data[3] = torch.inf
    with pytest.raises(fuse.FuseError, match="its logits are not finite"):
        MaskedLM(bert, bert_tokenizer())


def test_a_network_that_reads_more_than_text_is_refused() -> None:
    class Sees(transformers.GPT2LMHeadModel):
        def forward(self, input_ids: Any = None, picture: Any = None, **options: Any) -> Any:
            return super().forward(input_ids + picture, **options)

    with pytest.raises(fuse.FuseError, match=r"cannot read a text alone \(TypeError"):
        causal_lm(gpt2(Sees))


# ---- gradients ----
def test_a_gradient_that_is_not_the_networks_is_refused() -> None:
    model = check(with_model(HiddenLookups))
    with pytest.raises(fuse.FuseError, match=r"GPT2LMHeadModel: .*choose a method that needs none"):
        gradient(model)


def test_prepacked_weights_are_left_off_where_their_products_are_written_to() -> None:
    network = gpt2(n_layer=1)
    for name in ("c_fc", "c_attn"):
        part = network.transformer.h[0].mlp if name == "c_fc" else network.transformer.h[0].attn
        getattr(part, name).register_forward_hook(lambda _, __, out: out.view(out.shape).mul_(0.5))
    model = check(network)
    expected = gradient(model)
    # The network's own
    (row,) = fuse.Term(model, fuse.NLL()).encode(TEXTS[:1])
    embeddings = network.transformer.wte.weight[list(row.ids)].detach().requires_grad_()
    log_probs = network(inputs_embeds=embeddings[None] * 1).logits[0].log_softmax(-1)
    free = torch.arange(*row.free)
    loss = -log_probs[free - 1, torch.tensor(row.ids)[free]].mean()
    (own,) = torch.autograd.grad(loss, embeddings)
    torch.testing.assert_close(expected[0], own[free], atol=1e-5, rtol=1e-4)


BART: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 15,
    "decoder_start_token_id": 18,
    "eos_token_id": 19,
}


@pytest.mark.parametrize("scaled", [False, True])
def test_a_table_that_encoder_and_decoder_share_has_one_gradient(scaled: bool) -> None:
    config = transformers.BartConfig(**BART, scale_embedding=scaled)
    model = MaskedLM(
        spread(transformers.BartForConditionalGeneration(config)).double(), bert_tokenizer()
    )
    term = fuse.Term(model, fuse.NLL())
    (row,) = rows = term.encode(["a red house in the snow"])
    assert model.no_gradient is None
    found = term.engine.gradient(rows, [range(*row.free)]).embedding[0, 2]
    # The token "house" stands once; its row of the table is no output layer's here
    table, step = model.vocabulary.embedding, torch.zeros(32, dtype=torch.float64)
    step[:] = torch.linspace(-1, 1, 32)
    token, losses = row.ids[row.free[0] + 2], []
    out = model.network.get_output_embeddings()
    out.weight = torch.nn.Parameter(out.weight.detach().clone(), requires_grad=False)
    scale = config.d_model**-0.5 if scaled else 1.0
    for sign in (1, -1):
        weight = model.network.model.shared.weight
        old = weight[token].clone()
        weight[token] += sign * 1e-2 * scale * step
        term.clear()
        losses.append(float(term.engine.score(rows)))
        weight[token] = old
    numeric = (losses[0] - losses[1]) / 2e-2
    assert table.dtype == torch.float64
    assert float(found.double() @ step) == pytest.approx(numeric, rel=1e-2)


# ---- lengths and sizes ----
def test_positions_before_the_first_are_no_room_for_tokens() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = int(1e30)
    pad_id = tokenizer.pad_token_id  # before the first position
    sizes = {"vocab_size": 64, **BERT, "pad_token_id": pad_id}
    sizes["max_position_embeddings"] = pad_id + 1 + 24
    for kind, model_class in (("RobertaForMaskedLM", MaskedLM), ("RobertaForCausalLM", CausalLM)):
        config = transformers.RobertaConfig(**sizes, is_decoder=model_class is CausalLM)
        model: Any = model_class(spread(getattr(transformers, kind)(config)), tokenizer)
        assert model.vocabulary.max_length == 24
        longest = " ".join(["dog"] * (24 - len(model.vocabulary.head) - len(model.vocabulary.tail)))
        term = fuse.Term(model, fuse.NLL())
        assert term.engine.score(term.encode([longest])).isfinite().all()
        assert term.fits(term.encode([longest, f"{longest} dog"])) == [True, False]


@pytest.mark.parametrize("limit", [None, -1, 0, 1e30, int(1e30)])
def test_what_is_no_limit_limits_nothing(limit: Any) -> None:
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = limit
    assert context_length(transformers.BloomConfig(), tokenizer) == sys.maxsize
    config = transformers.LlamaConfig(**LLAMA)
    assert context_length(config, tokenizer) == LLAMA["max_position_embeddings"]


def test_a_context_ends_where_longer_rows_change_all_positions() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = int(1e30)
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    rope["original_max_position_embeddings"] = 12
    config = transformers.LlamaConfig(**LLAMA, rope_parameters=rope)
    assert context_length(config, tokenizer) == 12


def test_tokens_that_are_never_predicted_are_left_out() -> None:
    network = gpt2()
    network.lm_head = torch.nn.Linear(32, 40, bias=False)
    network.config.tie_word_embeddings = False
    model = check(spread(network))
    assert len(model.vocabulary) == 40
    assert gradient(model).norm() > 0
    network.lm_head = torch.nn.Linear(32, 80, bias=False)
    model = check(spread(network))
    assert len(model.vocabulary) == 64
    term = fuse.Term(model, fuse.NLL())
    rows = term.encode(TEXTS[:1])
    assert term.engine.gradient(rows, [range(*rows[0].free)]).labels.shape[-1] == 64


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused() -> None:
    with pytest.raises(fuse.FuseError, match=r"tokenizer=.*and the network knows 10"):
        causal_lm(gpt2(vocab_size=10, bos_token_id=1, eos_token_id=1))


def test_special_tokens_that_the_network_lacks_are_never_read() -> None:
    tokenizer = lm_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    model = causal_lm(gpt2(vocab_size=size), tokenizer)
    term = fuse.Term(model, fuse.NLL())
    assert term.fits(term.encode(["a dog", "a dog <|turn|>"])) == [True, False]
    with pytest.raises(fuse.FuseError, match=rf"hold token {size}, and the network knows {size}"):
        fuse.Term(model, fuse.NLL(), prefix="<|turn|>")


@pytest.mark.parametrize("way", WAYS)
def test_a_first_token_that_follows_nothing_has_no_loss(way: dict[str, bool]) -> None:
    network = gpt2()
    model = causal_lm(network, word_tokenizer(None, None))
    assert model.vocabulary.head == ()
    row = fuse.Term(model, fuse.NLL(), **way).encode(["a red house"])[0]
    log_probs = plain_logits(network, row.ids)
    expected = -sum(float(log_probs[p - 1, row.ids[p]]) for p in range(1, 3)) / 3
    term = fuse.Term(model, fuse.NLL(), **way)
    term.engine.prefill(term.encode(["a red"]))
    found = term.engine.score(term.encode(["a red house"]))
    assert float(found) == pytest.approx(expected, abs=1e-4)


# ---- each way, broken ----
def wrong_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_layers, "linear", lambda points, weight, *_: points @ weight * 1.1)


def wrong_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    own = LMHead.logits
    monkeypatch.setattr(LMHead, "logits", lambda self, hidden: own(self, hidden * 1.1))


def wrong_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = packing._distance
    monkeypatch.setattr(packing, "_distance", lambda *arguments: own(*arguments).abs())


def wrong_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    own = transformers.DynamicCache.update

    def update(self: Any, keys: Any, values: Any, *rest: Any, **options: Any) -> Any:
        return own(self, keys, values * 1.1, *rest, **options)

    monkeypatch.setattr(transformers.DynamicCache, "update", update)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (wrong_products, "prepacked weights"),
        (wrong_logits, "logits read late"),
        (wrong_packing, "packed rows that go on from it"),
        (wrong_cache, "rows that go on from a prefix cache"),
    ],
)
def test_a_way_that_is_wrong_is_left_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: Any, name: str
) -> None:
    damage(monkeypatch)
    with caplog.at_level(logging.DEBUG, logger="fuse.models.proof"):
        check(gpt2())
    if damage is wrong_packing:
        assert "prefix cache: yes" in caplog.text
    else:
        assert f"GPT2LMHeadModel: {name}: no" in caplog.text
        assert "GPT2LMHeadModel: logits of what is read: yes" in caplog.text


def test_masked_models_leave_off_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    network = spread(transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=64, **BERT)))
    expected = fuse.Term(MaskedLM(network, bert_tokenizer()), fuse.NLL())
    wanted = expected.score(expected.encode(TEXTS))
    wrong_products(monkeypatch)
    found = fuse.Term(MaskedLM(network, bert_tokenizer()), fuse.NLL())
    torch.testing.assert_close(found.score(found.encode(TEXTS)), wanted, atol=1e-4, rtol=0)


# ---- loading ----
def test_a_network_that_sees_reads_text_alone(tmp_path: Path) -> None:
    text = transformers.LlamaConfig(vocab_size=64, **LLAMA, **ENDS)
    config = transformers.LlavaConfig(
        text_config=text, vision_config=transformers.CLIPVisionConfig(**SIGHT), image_token_index=60
    )
    kind = transformers.AutoModelForImageTextToText
    folder = str(save(tmp_path / "llava", kind, config, lm_tokenizer()))
    model = CausalLM.load(folder)
    network = kind.from_pretrained(folder).eval()
    term = fuse.Term(model, fuse.NLL())
    (row,) = term.encode(TEXTS[:1])
    log_probs = plain_logits(network, row.ids)
    nll = [-float(log_probs[p - 1, row.ids[p]]) for p in range(*row.free)]
    assert float(term.engine.score([row])) == pytest.approx(sum(nll) / len(nll), abs=1e-4)
    assert model.supports_packing


def test_the_demo_model_needs_no_exception(lm: CausalLM) -> None:
    assert lm.supports_packing
    assert lm.pads
    assert lm.no_gradient is None
    network = transformers.AutoModelForCausalLM.from_pretrained(ROOT / "fuse/demo/lm")
    assert lm.vocabulary.max_length == network.config.n_positions
