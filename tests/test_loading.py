"""Models as people have them: GGUF files, adapters of PEFT, revisions of the hub, fewer bits."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import tune_prior
from conftest import REALBED, ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fuse
from fuse import hub
from fuse.app import terms
from fuse.app.build import build, weights_of
from fuse.app.config import compose
from fuse.app.plan import plan_of
from fuse.models import chat, gguf_files
from fuse.models.loading import load_network
from fuse.text.template import Template

LM = ROOT / "fuse/demo/lm"
TEXT = "A red house stands alone in the snow."


def refused(model_id: object, **options: Any) -> str:
    """Return the one line that a model is refused with."""
    with pytest.raises(fuse.FuseError) as raised:
        fuse.CausalLM.load(str(model_id), **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def logits(network: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=ids).logits


# ---- GGUF files ----
@pytest.fixture(scope="module")
def llama() -> Any:
    """A Llama with random weights and the demo vocabulary."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=len(AutoTokenizer.from_pretrained(LM)), **sizes, **heads)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def small_gguf(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A GGUF file of the Llama and the demo tokenizer, and that network."""
    gguf = pytest.importorskip("gguf", reason="GGUF files come with the extra `test`")
    network = llama
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(network.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    model = json.loads((LM / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        [token for token, _ in sorted(model["vocab"].items(), key=lambda t: t[1])]
    )
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in network.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # rotated pairs stand side by side there
            count = 4 if "q_proj" in name else 2
            weight = weight.view(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        own = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(own, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, network


def test_a_gguf_file_is_read_with_its_tokenizer(small_gguf: tuple[Path, Any]) -> None:
    path, network = small_gguf
    model = fuse.CausalLM.load(str(path))
    tokenizer = AutoTokenizer.from_pretrained(LM)
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    assert list(model.vocabulary.encode([TEXT])[0][0]) == ids[0].tolist()
    assert model.vocabulary.tokenizer.chat_template
    torch.testing.assert_close(logits(model.network, ids), logits(network, ids))
    assert (
        fuse.CausalLM.load(str(path.parent), gguf_file=path.name).fingerprint == model.fingerprint
    )


def absurd(content: bytes) -> list[bytes]:
    """Return damaged files, and headers that tell of more than a file can hold."""
    many = (2**60).to_bytes(8, "little")
    entry = struct.pack("<Q", 1) + b"a"
    begin = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry
    listed = begin + struct.pack("<I", 9)
    tensor = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry
    return [
        b"",
        b"GGUF",
        b"x" * 100,
        content[:1000],
        content[:8] + many + content[16:],
        content[:16] + many + content[24:],
        content[:24] + many + content[32:],
        listed + struct.pack("<I", 8) + many + b"x" * 64,
        listed + struct.pack("<I", 4) + many + b"x" * 64,
        listed + struct.pack("<IQ", 9, 1) + b"x" * 64,
        begin + struct.pack("<I", 99) + b"x" * 64,
        tensor + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 0),
        tensor + struct.pack("<I", 2**31) + b"x" * 64,
    ]


def test_an_absurd_gguf_file_is_one_line(small_gguf: tuple[Path, Any], tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    for content in absurd(small_gguf[0].read_bytes()):
        path.write_bytes(content)
        assert "its header cannot be read" in refused(path), content[:50]
    assert "no such file" in refused(tmp_path / "missing.gguf")


def test_a_gguf_file_whose_config_is_larger_than_its_weights_is_one_line(
    small_gguf: tuple[Path, Any], tmp_path: Path
) -> None:
    content = small_gguf[0].read_bytes()
    key = b"llama.block_count" + struct.pack("<I", 4)
    at = content.index(key) + len(key)
    path = tmp_path / "odd.gguf"
    for count, words in ((50_000, "far more"), (2**31, "expected a number up to")):
        path.write_bytes(content[:at] + struct.pack("<I", count) + content[at + 4 :])
        assert words in refused(path)


def test_a_header_tells_what_a_gguf_file_holds(small_gguf: tuple[Path, Any]) -> None:
    path, network = small_gguf
    header = gguf_files.read_header(path)
    assert header.metadata["llama.block_count"] == 2
    assert header.stored.num_numbers == sum(w.numel() for w in network.state_dict().values())


def test_lists_of_a_gguf_file_are_those_of_its_library(
    small_gguf: tuple[Path, Any], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf", reason="GGUF files come with the extra `test`")
    path = tmp_path / "lists.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in {
        "texts": ["", "a", "\u00e9\U0001f600 ", "x" * 300],
        "numbers": [1, -2, 3],
        "shares": [0.5, -1.5],
        "truths": [True, False],
    }.items():
        writer.add_array(name, values)
    writer.add_string("text", "of its own")
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()

    def fields(path: Path) -> dict[str, Any]:
        read = {}
        for name, field in gguf.GGUFReader(path).fields.items():
            read[name] = [bytes(field.parts[i]) for i in field.data], field.types
        return read

    for file in (path, small_gguf[0]):
        expected = fields(file)
        with gguf_files.read_once():
            assert fields(file) == expected


def test_no_kernel_is_fetched_for_a_gguf_file(
    small_gguf: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers is told to unpack the weights; else it may fetch compiled code."""
    asked: dict[str, Any] = {}

    def noted(source: str, **options: Any) -> Any:
        asked.update(options)
        raise ValueError("noted")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    assert "noted" in refused(small_gguf[0])
    if hasattr(transformers, "GgufConfig"):
        assert asked["quantization_config"].dequantize
    assert "quantised already" in refused(small_gguf[0], quantization="int8")


# ---- adapters of PEFT ----
@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Any]:
    """A folder with an adapter of the demo LM, and the network with it, not merged."""
    peft = pytest.importorskip("peft", reason="PEFT comes with the extra `test`")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"])
    base = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32)
    model = peft.get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    return folder, model.eval()


def test_a_prior_is_fitted_to_a_gguf_file(small_gguf: tuple[Path, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="PEFT comes with the extra `test`")
    corpus, out = tmp_path / "corpus.txt", tmp_path / "prior"
    corpus.write_text("".join(f"a boat and {i} cups zzz\n" for i in range(20)))
    base, model = ("primary=causal_lm", "secondary=[]"), f"primary.model_id={small_gguf[0]}"
    tune_prior.tune([*base, model, f"corpus={corpus}", f"out={out}", "max_steps=8", "rate=0.05"])
    losses = []
    for model_id in (out, small_gguf[0]):
        term = fuse.Term(fuse.CausalLM.load(str(model_id)), fuse.NLL())
        losses.append(float(term.score(term.encode(["a boat and 3 cups zzz"]))[0]))
    assert losses[0] < losses[1] - 0.2
    (planned,) = plan_of(compose([*base, f"primary.model_id={out}"])).models
    assert planned.num_weights == plan_of(compose([*base, model])).models[0].num_weights


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapter_is_merged_into_its_model(adapter: tuple[Path, Any]) -> None:
    folder, expected = adapter
    model = fuse.CausalLM.load(str(folder))
    ids = AutoTokenizer.from_pretrained(LM)(TEXT, return_tensors="pt").input_ids
    found = logits(model.network, ids)
    torch.testing.assert_close(found, logits(expected, ids), atol=1e-4, rtol=1e-4)
    assert (found - logits(fuse.CausalLM.load(str(LM)).network, ids)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": "somebody/else"}, "hf download somebody/else"),
        ({"base_model_name_or_path": "/nowhere"}, "no such folder"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"peft_type": "PROMPT_TUNING"}, "expected LORA"),
        ({"r": 10**6}, "r=1000000"),
        ({"r": 2}, "could not load it"),
        ({"target_modules": "(a+)+b"}, "target_modules"),
        ({"target_modules": ["nothing"]}, "could not load it"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
    ],
    ids=str,
)
def test_an_odd_adapter_is_one_line(
    adapter: tuple[Path, Any], changes: dict[str, Any], words: str
) -> None:
    folder = adapter[0]
    rewrite(folder, **changes)
    assert words in refused(folder)


def test_an_adapter_runs_no_code(adapter: tuple[Path, Any], tmp_path: Path) -> None:
    """Its config can name a module to import, and files to unpickle."""
    folder, canary = adapter[0], tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w')")
    megatron = {"megatron_core": "canary_module", "megatron_config": {"a": 1}}
    rewrite(folder, **megatron, init_lora_weights="corda")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        fuse.CausalLM.load(str(folder))
    assert not canary.exists()
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    assert "pickled weights" in refused(folder)


def test_the_tokenizer_of_an_adapter_comes_first(adapter: tuple[Path, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(LM)
    tokenizer.chat_template = "own"
    tokenizer.save_pretrained(adapter[0])
    assert fuse.CausalLM.load(str(adapter[0])).vocabulary.tokenizer.chat_template == "own"


# ---- the hub ----
Publish = Callable[[str, str, Path], None]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Return a function that puts a folder into the hub's local cache; there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "why_unreachable", lambda: "no network")

    def put(repository: str, revision: str, folder: Path) -> None:
        place = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        commit = revision.encode().hex().ljust(40, "0")
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)

    return put


def test_a_revision_counts_for_weights_and_tokenizer(publish: Publish, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(LM, other)
    weights = load_file(other / "model.safetensors")
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"] + 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "x"}))
    publish("some/lm", "main", LM)
    publish("some/lm", "second", other)
    first, second = (fuse.CausalLM.load("some/lm", revision=name) for name in (None, "second"))
    bias = [model.network.transformer.ln_f.bias for model in (first, second)]
    torch.testing.assert_close(bias[1], bias[0] + 1, atol=1e-3, rtol=0)
    templates = [model.vocabulary.tokenizer.chat_template for model in (first, second)]
    assert templates == [None, "x"]
    assert "hf download some/lm --revision third" in refused("some/lm", revision="third")


def test_what_is_not_here_is_one_line(publish: Publish, tmp_path: Path) -> None:
    for missing in ("gpt2", "some/lm", "some/lm/file.gguf"):
        assert "HF_HUB_OFFLINE=1" in refused(missing)
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(LM / "config.json", half)
    publish("some/half", "main", half)
    assert "hf download some/half" in refused("some/half")
    parts = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(parts))
    shutil.copy(LM / "model.safetensors", half / "model-1.safetensors")
    publish("some/shards", "main", half)
    assert "hf download some/shards" in refused("some/shards")


def test_a_silent_hub_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no answer" in hub.why_unreachable()
    with hub.working_offline():
        assert hub.why_unreachable() == "HF_HUB_OFFLINE is set"
    assert not constants.HF_HUB_OFFLINE


# ---- how weights are held ----
def test_options_reach_the_network() -> None:
    options = {"attn_implementation": "eager", "dtype": torch.bfloat16}
    network = load_network(AutoModelForCausalLM, str(LM), "cpu", **options)
    assert network.config._attn_implementation == "eager" and network.dtype == torch.bfloat16
    assert "code of the hub is never run" in refused(LM, attn_implementation="some/kernel")


def test_quantisation_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected one of" in refused(LM, quantization="int3")
    monkeypatch.setattr("fuse.models.quantization.find_spec", lambda name: None)
    assert "pip install bitsandbytes" in refused(LM, quantization="int8")
    assert "pip install torchao" in refused(LM, quantization="torchao_int8")


@pytest.mark.parametrize("name", ["int8", "nf4", "torchao_int8"])
def test_a_quantised_model_says_so(name: str, llama: Any, tmp_path: Path) -> None:
    from fuse.models.quantization import KINDS, stored_as

    pytest.importorskip(KINDS[name][0], reason="comes with the extra `quantization`")
    llama.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(LM).save_pretrained(tmp_path)
    model = fuse.CausalLM.load(str(tmp_path), quantization=name)
    assert stored_as("", model.network) == ("torchao" if "torchao" in name else name)
    ids = AutoTokenizer.from_pretrained(LM)(TEXT, return_tensors="pt").input_ids
    exact = logits(llama, ids)
    assert 0 < (logits(model.network, ids).float() - exact).abs().mean() < exact.abs().mean()
    if name == "torchao_int8":
        assert "changes nothing of this network" in refused(LM, quantization=name)


def test_a_report_says_how_weights_were_held() -> None:
    config = compose(["secondary=[]", "image=null", "primary.dtype=bfloat16"])
    held = weights_of(config, build(config).objective)["primary"]
    assert held == {
        "model_id": config["primary"]["model_id"],
        "revision": None,
        "dtype": "bfloat16",
        "quantization": "none",
    }


def test_the_best_are_scored_again_in_full_precision(
    lm: fuse.CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(kind: Any, config: Any, key: str, models: Any) -> fuse.CausalLM:
        asked.append((config["dtype"], config["quantization"]))
        return lm

    monkeypatch.setattr(terms, "load", noted)
    entry = compose(["primary.dtype=mixed_bfloat16", "primary.quantization=int8"])["primary"]
    terms.term_of(entry, "primary", {})
    assert asked == [("mixed_bfloat16", "int8"), ("float32", "none")]


@pytest.mark.full
def test_smollm2_is_read_from_its_gguf_file() -> None:
    path = REALBED / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    model = fuse.CausalLM.load(str(path))
    tokenizer = model.vocabulary.tokenizer
    prefix, suffix = chat.text_around(tokenizer, [{"role": "user", "content": "{prompt}"}])
    template = Template(prefix, suffix, "Paris", start="none", join="none")
    question = "What is the capital of France?"
    (encoded,) = template.encode(model.vocabulary, [question])
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(encoded.ids) == ids + tokenizer("Paris").input_ids
    said = model.network.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, len(ids) :])
