"""Models work on a view of the caller's network: it stays what it is, and weights are shared."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
from test_models_kinds import BERT, ENDS, GPT2, bert_tokenizer, save_open_clip, word_tokenizer

import fuse
from fuse.models import (
    CLIP,
    Captioner,
    CausalLM,
    Classifier,
    MaskedLM,
    Model,
    OpenCLIP,
)
from fuse.nn.network_view import network_view


def gpt2(**options: Any) -> Any:
    torch.manual_seed(0)
    options = {"vocab_size": 64, "activation_function": "gelu_new", **GPT2, **ENDS, **options}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**options))


def causal_lm(network: Any) -> CausalLM:
    return CausalLM(network, word_tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>"))


def decoder_classifier() -> Any:
    config = transformers.GPT2Config(vocab_size=64, num_labels=3, **GPT2, **ENDS)
    return transformers.GPT2ForSequenceClassification(config)


def bert(kind: str) -> Any:
    return getattr(transformers, kind)(transformers.BertConfig(vocab_size=64, **BERT))


def clip_network() -> Any:
    return transformers.CLIPModel.from_pretrained(ROOT / "fuse/demo/clip", dtype=torch.float32)


def clip(network: Any) -> CLIP:
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "fuse/demo/clip")
    return CLIP(network, tokenizer, None)


def blip_network() -> Any:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "intermediate_size": 48, "vocab_size": 64, "encoder_hidden_size": 32}
    vision = {**size, "intermediate_size": 48, "image_size": 32, "patch_size": 16}
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    return transformers.BlipForConditionalGeneration(config)


IDS = torch.tensor([[15, 1, 2, 3, 16]])
KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], dict[str, Any]]] = {
    "causal": (gpt2, causal_lm, {}),
    "clip": (clip_network, clip, {"pixel_values": torch.ones(1, 3, 64, 64)}),
    "classifier": (decoder_classifier, lambda n: Classifier(n, word_tokenizer(None, None)), {}),
    "masked": (lambda: bert("BertForMaskedLM"), lambda n: MaskedLM(n, bert_tokenizer()), {}),
    "captioner": (
        blip_network,
        lambda n: Captioner(n, None),
        {"pixel_values": torch.ones(1, 3, 32, 32)},
    ),
}


def tensors(out: Any) -> list[torch.Tensor]:
    return [value for value in out.values() if isinstance(value, torch.Tensor)]


def structure(network: Any) -> list[Any]:
    """Return what may not change about a network, but for its numbers."""
    found: list[Any] = []
    for name, module in network.named_modules():
        hooks = [len(vars(module)[key]) for key in vars(module) if key.endswith("_hooks")]
        found.append((name, type(module), module.training, hooks, sorted(vars(module))))
        if hasattr(module, "config"):
            attention = module.config._attn_implementation
            found.append((id(module.config), attention, copy.deepcopy(module.config.to_dict())))
    for name, weight in network.named_parameters():
        found.append((name, id(weight), weight.requires_grad, weight.dtype, weight.data_ptr()))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_network_stays_what_it_is(kind: str) -> None:
    make, wrap, options = KINDS[kind]
    network = make().eval()
    with torch.no_grad():
        expected = tensors(network(input_ids=IDS, **options))
    network.train()
    before = structure(network)
    model = wrap(network)
    assert structure(network) == before
    network.eval()
    for found, wanted in zip(tensors(network(input_ids=IDS, **options)), expected, strict=True):
        assert torch.equal(found, wanted)
    view = model.network
    assert view is not network
    assert not any(module.training for module in view.modules())
    assert not any(weight.requires_grad for weight in view.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_takes_no_memory_for_weights(kind: str) -> None:
    make, wrap, _ = KINDS[kind]
    network = make()
    view = wrap(network).network
    memory = {name: weight.data_ptr() for name, weight in network.state_dict().items()}
    assert {name: weight.data_ptr() for name, weight in view.state_dict().items()} == memory
    own = {weight.data_ptr() for weight in (*network.parameters(), *network.buffers())}
    held = {weight.data_ptr() for weight in (*view.parameters(), *view.buffers())}
    assert held <= own


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_open_clip_network_stays_what_it_is(tmp_path: Path, kind: str) -> None:
    import open_clip

    name = f"local-dir:{save_open_clip(tmp_path / kind, kind)}"
    network, preprocess = open_clip.create_model_from_pretrained(name)
    network.train()
    tokenizer = open_clip.get_tokenizer(name)
    texts, before = ["A dog, a Cup"], structure(network)
    ids = tokenizer(texts)
    model = OpenCLIP(network, tokenizer, preprocess)
    model.embed_texts(texts)
    assert structure(network) == before
    assert torch.equal(tokenizer(texts), ids)
    if kind == "siglip":
        assert model.vocabulary.tokenizer is not tokenizer.tokenizer


def test_a_model_converts_its_own_numbers_alone() -> None:
    network = gpt2()
    model = causal_lm(network)
    model.network.double()
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert {weight.dtype for weight in model.network.parameters()} == {torch.float64}


def nll(model: Model, texts: tuple[str, ...] = ("a red dog", "the cup")) -> torch.Tensor:
    term = fuse.Term(model, fuse.NLL(), prefix="house")
    return term.engine.score(term.encode(list(texts)))


def test_weights_that_the_caller_changes_are_read_anew() -> None:
    """Prepacked weights notice it, too."""
    network = gpt2()
    model = causal_lm(network)
    before = nll(model)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5)
    assert not torch.allclose(nll(model), before, atol=1e-3)
    torch.testing.assert_close(nll(model), nll(causal_lm(network)))


def test_tied_weights_stay_tied() -> None:
    view, _ = network_view(gpt2())
    assert view.lm_head.weight is view.transformer.wte.weight


@pytest.mark.parametrize("part", ["network", "layer", "call"])
def test_compiled_networks_are_read_as_they_were(part: str) -> None:
    network = gpt2()
    expected = nll(causal_lm(network))
    if part == "layer":
        network.transformer.h[1] = torch.compile(network.transformer.h[1])
    elif part == "call":
        network.compile()
    model = causal_lm(torch.compile(network) if part == "network" else network)
    assert not [one for one in model.network.modules() if hasattr(one, "_orig_mod")]
    assert torch.equal(nll(model), expected)


class Recorder:
    """Holds something that cannot be copied."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0

    def __call__(self, *_: Any) -> None:
        raise NotImplementedError

    def record(self, *_: Any) -> None:
        self.calls += 1


def test_hooks_of_the_caller_are_shared_with_their_owner() -> None:
    network, recorder = gpt2(), Recorder()
    network.transformer.h[0].register_forward_hook(recorder.record)
    model = causal_lm(network)
    before = recorder.calls
    nll(model)
    assert recorder.calls > before


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    network = gpt2()
    network.transformer.lock = threading.Lock()
    with pytest.raises(fuse.FuseError, match="network=GPT2LMHeadModel: cannot be copied"):
        causal_lm(network)
