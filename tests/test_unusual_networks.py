"""Networks that are loaded, moved or quantised in unusual ways are read, or refused in a line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
from test_models_kinds import ENDS, LLAMA, bert_tokenizer, given, save, word_tokenizer

import fuse
from fuse.models import CausalLM, Classifier, Model
from fuse.models.base import context_length
from fuse.models.loading import load_pretrained

TEXTS = ["a red house in the snow", "the blue cup"]
LM = str(ROOT / "fuse/demo/lm")


def results(model: Model, loss: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses, and their gradient by the embeddings of the prompts."""
    term = fuse.Term(model, loss)
    rows = term.encode(TEXTS)
    positions = [range(*row.free) for row in rows]
    return term.engine.score(rows), term.engine.gradient(rows, positions).embedding


def lm_network() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32)


def causal_lm(network: Any) -> CausalLM:
    return CausalLM(network, transformers.AutoTokenizer.from_pretrained(LM))


# ---- modes of torch ----
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("where", ["load", "make", "use"])
def test_modes_without_gradients_change_nothing(
    lm: CausalLM, mode: Callable[[], AbstractContextManager[None]], where: str
) -> None:
    expected = results(lm, fuse.NLL())
    with mode():
        network = lm_network()
        model = CausalLM.load(LM) if where == "load" else causal_lm(network)
        if where == "use":
            found = results(model, fuse.NLL())
    if where != "use":
        found = results(model, fuse.NLL())
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)


def test_weights_made_in_inference_mode_have_gradients() -> None:
    config = transformers.LlamaConfig(vocab_size=64, **LLAMA, **ENDS)
    with torch.inference_mode():
        network = transformers.LlamaForCausalLM(config)
    tokenizer = word_tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    _, gradient = results(CausalLM(network, tokenizer), fuse.NLL())
    assert gradient.norm() > 0


# ---- quantised layers ----
def quantised(network: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network, {torch.nn.Linear}, torch.qint8)


def test_a_quantised_output_layer_is_read_plainly(lm: CausalLM) -> None:
    model = causal_lm(quantised(lm_network()))
    expected, _ = results(lm, fuse.NLL())
    term = fuse.Term(model, fuse.NLL())
    rows = term.encode(TEXTS)
    torch.testing.assert_close(term.engine.score(rows), expected, atol=0.2, rtol=0)
    after = term.engine.next_token_log_probs([row.ids for row in rows])
    torch.testing.assert_close(after.exp().sum(1), torch.ones(2), atol=1e-4, rtol=0)
    assert model.fingerprint != lm.fingerprint
    assert model.size == lm.size
    assert not model.tied


def test_quantised_layers_have_no_gradient(tmp_path: Path) -> None:
    auto_class = transformers.AutoModelForSequenceClassification
    folder = save(tmp_path / "bert", auto_class, *given("bert"))
    plain = Classifier.load(str(folder))
    model = Classifier(quantised(auto_class.from_pretrained(folder)), bert_tokenizer())
    term = fuse.Term(model, fuse.ClassNLL(1))
    rows = term.encode(TEXTS)
    expected = fuse.Term(plain, fuse.ClassNLL(1)).engine.score(rows)
    torch.testing.assert_close(term.engine.score(rows), expected, atol=0.3, rtol=0)
    with pytest.raises(fuse.FuseError, match=r"attention\.self\.query is quantised.*random"):
        results(model, fuse.ClassNLL(1))
    with pytest.raises(fuse.FuseError, match="network=GPT2LMHeadModel: its layer lm_head"):
        results(causal_lm(quantised(lm_network())), fuse.NLL())


def test_quantised_weights_are_shared() -> None:
    network = quantised(lm_network())
    view = causal_lm(network).network
    packed = [one.lm_head._packed_params._packed_params for one in (network, view)]
    assert packed[0] is packed[1]


# ---- accelerate ----
def offloaded(kind: str, network: Any, folder: Path) -> Any:
    reason = "accelerate, which moves weights about, is not installed"
    accelerate = pytest.importorskip("accelerate", reason=reason)
    if kind == "hooks":
        hooks = accelerate.hooks
        for module in network.modules():
            if not list(module.children()):
                hook = hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True)
                hooks.add_hook_to_module(module, hook)
    elif kind == "cpu":
        accelerate.cpu_offload(network)
    else:
        accelerate.disk_offload(network, str(folder))
    return network


@pytest.mark.parametrize("kind", ["hooks", "cpu", "disk"])
def test_networks_that_accelerate_moves_about(lm: CausalLM, kind: str, tmp_path: Path) -> None:
    network = offloaded(kind, lm_network(), tmp_path)
    held = {weight.data_ptr() for weight in network.parameters()}
    model = causal_lm(network)
    for found, expected in zip(results(model, fuse.NLL()), results(lm, fuse.NLL()), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert model.fingerprint == lm.fingerprint
    assert model.size == lm.size
    assert {weight.data_ptr() for weight in model.network.parameters()} == held
    assert model.supports_packing


def test_other_networks_that_accelerate_moves_about(
    clip: fuse.CLIP, mood: Classifier, house: torch.Tensor, tmp_path: Path
) -> None:
    folder = ROOT / "fuse/demo"
    network = transformers.CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32)
    tower = offloaded("cpu", network, tmp_path)
    moved: Model = fuse.CLIP(tower, clip.vocabulary.tokenizer, clip.image_processor)
    loss: Any = fuse.CosineDistance(house)
    torch.testing.assert_close(results(moved, loss), results(clip, loss), atol=1e-5, rtol=1e-5)
    auto_class = transformers.AutoModelForSequenceClassification
    network = auto_class.from_pretrained(folder / "mood", dtype=torch.float32)
    moved, loss = offloaded("cpu", network, tmp_path), fuse.ClassNLL(1)
    moved = Classifier(moved, mood.vocabulary.tokenizer)
    torch.testing.assert_close(results(moved, loss), results(mood, loss), atol=1e-5, rtol=1e-5)


def test_a_device_map_is_followed(lm: CausalLM, tmp_path: Path) -> None:
    pytest.importorskip(
        "accelerate", reason="accelerate, which reads device maps, is not installed"
    )
    places = {"transformer.h.3": "disk", "lm_head": "cpu"}
    for name in ("wte", "wpe", "h.0", "h.1", "h.2", "ln_f"):
        places[f"transformer.{name}"] = "cpu"
    model = CausalLM.load(LM, device_map=places, offload_folder=str(tmp_path))
    expected = results(lm, fuse.NLL())
    torch.testing.assert_close(results(model, fuse.NLL()), expected, atol=1e-5, rtol=1e-5)


# ---- loading ----
class FakeAuto:
    """Notes what it is given."""

    options: dict[str, Any]

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> str:
        cls.options = options
        return source


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    assert load_pretrained(FakeAuto, str(tmp_path), revision="main") == str(tmp_path)
    assert FakeAuto.options == {"revision": "main", "trust_remote_code": False}
    with pytest.raises(fuse.FuseError, match="trust_remote_code=True"):
        CausalLM.load(LM, trust_remote_code=True)


@pytest.mark.parametrize(
    ("positions", "tokens", "length"),
    [(64, 32, 32), (32, 64, 32), (None, 64, 64), (64, int(1e30), 64)],
)
def test_the_shorter_limit_is_the_context_length(
    positions: int | None, tokens: int, length: int
) -> None:
    config = transformers.BloomConfig()  # has no such field of its own
    if positions is not None:
        config.max_position_embeddings = positions
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = tokens
    assert context_length(config, tokenizer) == length


def test_a_network_without_an_output_layer_is_refused() -> None:
    with pytest.raises(fuse.FuseError, match="network=GPT2Model: it has no output layer"):
        causal_lm(lm_network().transformer)


def test_float64_is_made_where_every_device_has_it() -> None:
    """Some devices (mps) have no such type: `in_double` knows them."""
    for folder in ("models", "nn"):
        for path in (ROOT / "fuse" / folder).glob("*.py"):
            if path.name != "embedding_table.py":
                assert ".double()" not in path.read_text(), path
                assert "float64" not in path.read_text(), path
