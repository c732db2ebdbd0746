"""No code but ours runs, nothing is fetched unasked, and what is odd is one clear line."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import canaries
import command_line
import pytest
import torch
from canaries import changed, copied
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save_file

import fuse
from fuse.models import chat
from fuse.models.build_limits import StoredSize, limited_build
from fuse.models.model_files import check_config
from fuse.search import checkpoint

KINDS: dict[str, Any] = {
    "lm": fuse.CausalLM,
    "clip": fuse.CLIP,
    "mood": fuse.Classifier,
    "captioner": fuse.Captioner,
    "open_clip": fuse.OpenCLIP,
    "sentence": fuse.SentenceEncoder,
    "diffusion": fuse.Diffusion,
}
NEVER_RUN = "code that comes with a model is never run"
FIRES: list[tuple[str, Callable[[Path, Path], None], str]] = [
    # what it says; "" where it loads without its code
    ("lm", canaries.own_config, NEVER_RUN),
    ("lm", canaries.known_config_with_code, ""),
    ("lm", canaries.own_tokenizer, "could not load it"),
    ("lm", canaries.known_tokenizer_with_code, ""),
    ("lm", canaries.own_generation, ""),
    ("lm", canaries.attention_from_elsewhere, "no code from elsewhere"),
    ("lm", canaries.pickled_weights, "pickled weights"),
    ("lm", canaries.pickled_shard, "expected a safetensors file beside"),
    ("lm", canaries.link_to_a_pickle, "could not load it"),
    ("lm", canaries.adapter_of_peft, "expected LORA"),
    ("clip", canaries.config_from_elsewhere, NEVER_RUN),
    ("clip", canaries.own_processors, NEVER_RUN),
    ("mood", canaries.own_config, NEVER_RUN),
    ("mood", canaries.own_processors, ""),
    ("captioner", canaries.config_from_elsewhere, NEVER_RUN),
    ("captioner", canaries.own_processors, NEVER_RUN),
    ("open_clip", canaries.open_clip_trusts, "tokenizer_kwargs.trust_remote_code"),
    ("open_clip", canaries.open_clip_asks, NEVER_RUN),
    ("open_clip", canaries.open_clip_tower, NEVER_RUN),
    ("open_clip", canaries.open_clip_tower_from_elsewhere, "hf_model_name=somebody/else"),
    ("open_clip", canaries.pickled_weights, "pickled weights"),
    ("sentence", canaries.own_module, "own.Transformer"),
    ("sentence", canaries.own_transformer, NEVER_RUN),
    ("sentence", canaries.known_config_with_code, NEVER_RUN),  # a processor of its own
    ("sentence", canaries.known_network_with_code, ""),
    ("sentence", canaries.own_tokenizer, "could not load it"),
    ("sentence", canaries.own_processors, NEVER_RUN),
    ("sentence", canaries.attention_from_elsewhere, "no code from elsewhere"),
    ("sentence", canaries.pickled_weights, "pickled weights"),
    ("sentence", canaries.pickled_projection, "pickled weights"),
    ("sentence", canaries.adapter_of_peft, "PEFT"),
    ("diffusion", canaries.own_pipeline, "expected a StableDiffusionPipeline"),
    ("diffusion", canaries.custom_pipeline, ""),
    ("diffusion", canaries.own_unet, "expected UNet2DConditionModel"),
    ("diffusion", canaries.known_unet_with_code, ""),
    ("diffusion", canaries.own_scheduler, ""),
    ("diffusion", canaries.own_safety_checker, ""),
    ("diffusion", canaries.parts_with_code, ""),
    ("diffusion", canaries.own_text_encoder, ""),
    ("diffusion", canaries.attention_of_a_part, "no code from elsewhere"),
    ("diffusion", canaries.pickled_unet, "pickled weights"),
    ("diffusion", canaries.pickled_vae, "pickled weights"),
    ("diffusion", canaries.pickled_text_encoder, "pickled weights"),
    ("diffusion", canaries.pickles_beside, ""),
    ("diffusion", canaries.link_to_a_pickled_unet, "could not load it"),
]


def load(name: str, folder: Path) -> str:
    """Load a model; return the one line that it is refused with, "" where it is not."""
    try:
        KINDS[name].load(str(folder))
    except fuse.FuseError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def model(name: str, folder: Path) -> Path:
    """Return a copy of a demo model; the classifier's is a sentence encoder's, too. Of a diffusion
    model there is none: a tiny one is made.
    """
    if name == "diffusion":
        return canaries.diffusion_model(folder / "model", folder / "canary")
    if name != "sentence":
        return copied(name, folder / "model", folder / "canary")
    made = copied("mood", folder / "model", folder / "canary")
    canaries.sentence_modules(made)
    return made


@pytest.mark.parametrize(
    ("name", "change", "words"), FIRES, ids=[f"{one[0]}-{one[1].__name__}" for one in FIRES]
)
def test_no_model_runs_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[Path, Path], None],
    words: str,
) -> None:
    folder, canary = model(name, tmp_path), tmp_path / "canary"
    change(folder, canary)
    answers = io.StringIO("y\n" * 1000)
    monkeypatch.setattr(sys, "stdin", answers)
    refused = load(name, folder)
    assert not canary.exists()
    assert answers.tell() == 0, "somebody was asked"
    assert bool(refused) == bool(words) and words in refused


def test_the_canaries_can_fire(tmp_path: Path) -> None:
    import transformers

    folder = model("lm", tmp_path)
    canaries.own_config(folder, tmp_path / "canary")
    with pytest.raises(AttributeError, match="register_for_auto_class"):
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert (tmp_path / "canary").exists()
    torch.save(canaries.Pickled(tmp_path / "second"), tmp_path / "pickle")
    torch.load(tmp_path / "pickle", weights_only=False).close()
    assert (tmp_path / "second").exists()


@pytest.mark.parametrize("asked", [{"trust_remote_code": True}, {"custom_pipeline": "own"}])
def test_no_argument_makes_a_pipeline_run_code(tmp_path: Path, asked: dict[str, Any]) -> None:
    folder = model("diffusion", tmp_path)
    with pytest.raises(fuse.FuseError) as raised:
        fuse.Diffusion.load(str(folder), **asked)
    assert "\n" not in str(raised.value) and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", ["pt", "bin", "npz", "ckpt"])
def test_a_pickled_checkpoint_of_open_clip_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights.{suffix}"
    torch.save(canaries.Pickled(tmp_path / "canary"), file)
    with pytest.raises(fuse.FuseError, match=r"^pretrained=.*safetensors") as raised:
        fuse.OpenCLIP.load("ViT-B-32", pretrained=str(file))
    assert "\n" not in str(raised.value) and not (tmp_path / "canary").exists()


# ---- odd files ----
ODD = {
    "empty": b"",
    "no text": b"\x00\xff{{",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "deep": b"[" * 100_000,
}
FILES = [
    ("lm", "config.json", set()),
    ("lm", "tokenizer.json", set()),
    ("lm", "tokenizer_config.json", set()),
    ("clip", "preprocessor_config.json", set()),
    ("captioner", "processor_config.json", set()),
    ("open_clip", "open_clip_config.json", set()),
    ("sentence", "modules.json", {"missing"}),
    ("sentence", "1_Pooling/config.json", set()),
    ("sentence", "config_sentence_transformers.json", {"missing"}),
    ("diffusion", "model_index.json", set()),
    ("diffusion", "unet/config.json", set()),
    ("diffusion", "scheduler/scheduler_config.json", set()),
]


@pytest.mark.parametrize(("name", "file", "fine"), FILES, ids=[file for _, file, _ in FILES])
def test_an_odd_file_is_one_line(tmp_path: Path, name: str, file: str, fine: set[str]) -> None:
    folder = model(name, tmp_path)
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    for what, content in ODD.items():
        path.write_bytes(content)
        assert bool(load(name, folder)) == (what not in fine), what
    path.unlink()
    needed = file not in ("tokenizer_config.json",)
    assert bool(load(name, folder)) == (needed and "missing" not in fine), "missing"
    path.mkdir()
    assert "is no file" in load(name, folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 8 + b"{}", b"\0" * 100], ids=str)
def test_odd_weights_are_one_line(tmp_path: Path, content: bytes) -> None:
    for name, file in (("lm", "model.safetensors"), ("open_clip", "open_clip_model.safetensors")):
        folder = model(name, tmp_path / name)
        (folder / file).write_bytes(content)
        assert "could not load it" in load(name, folder)
        (folder / file).unlink()
        (folder / file).mkdir()
        assert "is no file" in load(name, folder)


ABSURD = [
    {"vocab_size": 10**12},
    {"n_layer": 10**9},
    {"n_layer": 60_000},
    {"num_labels": 10**9},
    {"n_positions": 10**12},
    {"n_positions": math.nan},
    {"n_embd": "wide"},
    {"n_head": [6]},
    {"n_head": 0},
    {"text_config": {"hidden_size": 10**12}},
    {"transformers_weights": "../model.safetensors"},
]


@pytest.mark.parametrize("changes", ABSURD, ids=str)
def test_an_absurd_config_is_one_line_before_memory_is_taken(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = model("lm", tmp_path)
    changed(folder / "config.json", **changes)
    assert load("lm", folder).startswith(f"model_id={folder}: ")


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_cfg", {"context_length": 60_000}),
        ("text_cfg", {"vocab_size": 2**26}),
        ("text_cfg", {"layers": 10**9}),
        ("vision_cfg", {"width": 10**12}),
        ("vision_cfg", {"image_size": 10**6}),
        ("vision_cfg", {"timm_model_name": "hf-hub:somebody/else"}),
        ("text_cfg", {"heads": math.nan}),
        ("text_cfg", None),
    ],
    ids=str,
)
def test_absurd_settings_of_open_clip_are_one_line(
    tmp_path: Path, part: str, changes: dict[str, Any] | None
) -> None:
    folder = model("open_clip", tmp_path)
    settings = json.loads((folder / "open_clip_config.json").read_text())
    own = settings["model_cfg"]
    own[part] = {**own[part], **changes} if changes else []
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    assert load("open_clip", folder).startswith(f"model_id={folder}: ")


@pytest.mark.parametrize("key", ["size", "crop_size"])
def test_pictures_are_not_blown_up(tmp_path: Path, key: str) -> None:
    folder = model("clip", tmp_path)
    for size in ({"height": 10**5, "width": 10**5}, {"shortest_edge": 10**5}):
        changed(folder / "preprocessor_config.json", **{key: size})
        assert "expected a number up to" in load("clip", folder)


def test_what_large_models_say_is_no_reason_to_refuse_them() -> None:
    """Numbers of known models that say nothing of a size, or large but true ones."""
    config = {
        "max_position_embeddings": 10_485_760,
        "rope_theta": 10**10,
        "vocab_size": 256_000,
        "eos_token_id": [128_001, 128_009],
        "attention_invalid_logits_value": -1e9,
        "time_step_limit": [0.0, math.inf],
        "num_experts": 512,
        "text_config": {"num_hidden_layers": 126, "layer_norm_eps": 1e-5},
    }
    check_config("model", "config.json", config)
    pixels = {"patch_size": 16, "merge_size": 2}
    edges = {"size": {"longest_edge": 16_777_216, "shortest_edge": 65_536}, **pixels}
    check_config("model", "preprocessor_config.json", edges)


def test_a_network_larger_than_its_weights_is_broken_off() -> None:
    def build(width: int, parts: int = 1) -> None:
        torch.nn.ParameterList([torch.empty(width, width, device="meta")])
        torch.nn.ModuleList([torch.nn.Identity() for _ in range(parts)])

    with limited_build("x", StoredSize(1, 4)):
        build(1000, 50)
        with pytest.raises(fuse.FuseError, match="more numbers than the 4 numbers"):
            build(10**6)
    with limited_build("x", StoredSize(1, 4)), pytest.raises(fuse.FuseError, match="more parts"):
        build(1, 20_000)
    build(10**6, 20_000)  # the limit is over


@pytest.mark.parametrize(
    "changes",
    [{"image_mean": "x"}, {"resample": [1]}, {"size": {"height": 8, "width": 8}}, {"size": {}}],
    ids=str,
)
def test_a_picture_that_cannot_be_prepared_is_one_line(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = model("clip", tmp_path)
    changed(folder / "preprocessor_config.json", do_center_crop=False, **changes)
    with pytest.raises(fuse.FuseError) as raised:
        fuse.CLIP.load(str(folder)).embed_images([fuse.open_image(ROOT / "images/house.png")])
    assert "\n" not in str(raised.value)


def test_a_chat_template_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "user", "content": "dog"}]
    template = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}:{% endif %}"
    assert chat.render(template, messages, {"bos_token": "<s>"}) == "<s>dog:"
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    monkeypatch.setattr(chat, "RENDER", chat.RENDER.replace(f"+ {chat.MAX_SECONDS}", "+ 2"))
    for odd, words in (
        (loop, "more than"),
        ("{{ 'x' * 10**10 }}", "MemoryError"),
    ):
        with pytest.raises(fuse.FuseError, match=words) as raised:
            chat.render(odd, messages, {})
        assert "\n" not in str(raised.value)


# ---- what runs left on disk ----
def search(lm: fuse.CausalLM, method: fuse.Method) -> fuse.Search:
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    return fuse.Search(objective, method, steps=2, generator=torch.Generator().manual_seed(0))


def crafted(tree: Any, random: Random) -> Any:
    """Return a tree in which one leaf or branch, chosen at random, is something else."""
    odd = random.choice(
        [None, -1, 10**30, math.nan, "x", [], {}, {"tuple": [[1]]}, {"tensor": "9"}]
    )
    if not isinstance(tree, dict | list) or not tree or random.random() < 0.15:
        return odd
    if isinstance(tree, list):
        at = random.randrange(len(tree))
        return [*tree[:at], crafted(tree[at], random), *tree[at + 1 :]]
    key = random.choice(list(tree))
    return {**tree, key: crafted(tree[key], random)}


@pytest.mark.parametrize("method", [fuse.AutoDAN(search_width=4), fuse.GCG(search_width=4)])
def test_a_crafted_checkpoint_is_one_line_or_goes_on(
    lm: fuse.CausalLM, tmp_path: Path, method: fuse.Method
) -> None:
    ours = search(lm, method)
    state = ours.start()
    state = ours.accept(state, ours.evaluate(state, ours.propose(state)))
    path, random = tmp_path / "checkpoint.safetensors", Random(0)
    path.write_bytes(checkpoint.to_bytes({"": state}, 1))
    assert checkpoint.read(path, {"": ours})[1][""].step == state.step
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    trees = json.loads(metadata["states"])
    refused = 0
    for _ in range(150):
        changes = {**metadata, "states": json.dumps(crafted(trees, random))}
        save_file(tensors, path, changes)
        try:
            assert checkpoint.names(path) is not None
            read = checkpoint.read(path, {"": ours})[1][""]
        except fuse.FuseError as error:
            assert "\n" not in str(error) and "begin anew" in str(error)
            refused += 1
        else:
            ours.propose(read)
    assert refused > 75


@pytest.mark.parametrize("content", [b"", b"x", (10**10).to_bytes(8, "little") + b"{}"], ids=len)
def test_a_damaged_checkpoint_is_one_line(
    lm: fuse.CausalLM, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ours = tmp_path / "checkpoint.safetensors", search(lm, fuse.GCG())
    path.write_bytes(content)
    for read in (lambda: checkpoint.names(path), lambda: checkpoint.read(path, {"": ours})):
        with pytest.raises(fuse.FuseError, match="cannot be resumed from"):
            read()
    path.write_bytes(checkpoint.to_bytes({"": ours.start()}, 0))
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 100)
    with pytest.raises(fuse.FuseError, match="more than 100 bytes"):
        checkpoint.names(path)


# ---- what a run touches ----
def absolute(path: Any) -> str:
    """Return a path as it is noted; "" for the number of an open file."""
    return "" if isinstance(path, int) else str(Path.cwd() / os.fsdecode(path))


def watch(folder: str) -> None:
    """Note what this process writes, starts and connects to, from now on."""
    notes = os.open(Path(folder) / "notes", os.O_WRONLY | os.O_CREAT, 0o600)
    os.environ |= {"HOME": f"{folder}/home", "TMPDIR": f"{folder}/temp"}
    tempfile.tempdir = None

    def note(event: str, values: tuple[Any, ...]) -> None:
        text = ""
        if event == "open" and isinstance(values[0], str | bytes):
            mode, flags = values[1] or "", values[2] or 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode) & set("wax+"):
                text = absolute(values[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
            text = absolute(values[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            text = absolute(values[1])
        elif event.startswith(("socket.connect", "socket.getaddrinfo", "socket.send")):
            text = event
        elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
            text = f"{event} {values[0]}"
        if text:
            os.write(notes, f"{text}\n".encode())
        if text.startswith("socket."):
            raise ConnectionError("no network here")

    sys.addaudithook(note)


def watched(arguments: tuple[str, ...], folder: str, out: str, err: str) -> None:
    """Be a run that is watched."""
    watch(folder)
    command_line._main(arguments, out, err)


def attempt(folder: str) -> None:
    """Do, watched, all that a run must not do."""
    watch(folder)
    (Path(folder) / "elsewhere").write_text("x")
    subprocess.run(["true"], check=True)
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=1)


def test_the_watch_sees_what_a_run_must_not_do(tmp_path: Path) -> None:
    process = command_line.processes.Process(target=attempt, args=(str(tmp_path),))
    process.start()
    process.join(120)
    notes = (tmp_path / "notes").read_text()
    for words in (f"{tmp_path}/elsewhere\n", "subprocess.Popen true", "socket."):
        assert words in notes


def test_a_run_writes_into_its_own_folders_and_fetches_nothing(tmp_path: Path) -> None:
    for name in ("home", "temp", "cache"):
        (tmp_path / name).mkdir()
    own = (f"hydra.run.dir={tmp_path}/run", f"adapter.cache_dir={tmp_path}/cache", "steps=2")
    texts = ("primary.prefix=A picture:", "adapter.max_words=200", "checkpoint_every=1")
    streams = str(tmp_path / "out"), str(tmp_path / "err")
    arguments = (*own, *texts), str(tmp_path), *streams
    process = command_line.processes.Process(target=watched, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0, Path(streams[1]).read_text()[-2000:]
    notes = (tmp_path / "notes").read_text().splitlines()
    allowed = tuple(f"{tmp_path}/{name}" for name in ("run", "cache", "temp", "out", "err"))
    assert any(line.startswith(f"{tmp_path}/run/") for line in notes)
    other = [line for line in notes if not line.startswith((*allowed, "/dev/"))]
    assert not [line for line in other if "__pycache__" not in line]
    assert not list((tmp_path / "home").iterdir())
    assert list((tmp_path / "cache").iterdir())
