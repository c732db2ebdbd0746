"""Models that try to run code of their own: each writes a file where it succeeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import diffusion
from conftest import ROOT

DEMO = ROOT / "fuse/demo"


def code(canary: Path) -> str:
    """Return a module that writes the file when it is imported, with a class of every kind."""
    return f"open({str(canary)!r}, 'w').close()\n\nclass Own: pass\n\ndef generate(*a, **b): pass\n"


class Pickled:
    """Writes the file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.canary), "w")


def changed(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file, which is made where there is none; None takes one out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def copied(name: str, folder: Path, canary: Path) -> Path:
    """Return a copy of a demo model, with modules of its own beside its files."""
    shutil.copytree(DEMO / name, folder)
    own_modules(folder, canary)
    return folder


def own_modules(folder: Path, canary: Path) -> None:
    """Put modules that write the file beside those of a model."""
    for module in ("own.py", "modeling_own.py", "pipeline.py"):
        (folder / module).write_text(code(canary))


KINDS = (
    "Config Model ModelForCausalLM ModelForMaskedLM ModelForSequenceClassification "
    "ModelForImageTextToText ImageProcessor Processor VideoProcessor FeatureExtractor"
)
AUTO = {f"Auto{kind}": "own.Own" for kind in KINDS.split()}
ELSEWHERE = {name: f"somebody/else--{place}" for name, place in AUTO.items()}


def own_config(folder: Path, canary: Path) -> None:
    changed(folder / "config.json", auto_map=AUTO, model_type="own")


def config_from_elsewhere(folder: Path, canary: Path) -> None:
    changed(folder / "config.json", auto_map=ELSEWHERE, model_type="own")


def known_config_with_code(folder: Path, canary: Path) -> None:
    changed(folder / "config.json", auto_map=AUTO)


def known_network_with_code(folder: Path, canary: Path) -> None:
    auto = {name: AUTO[name] for name in ("AutoConfig", "AutoModel")}
    changed(folder / "config.json", auto_map=auto)


def own_tokenizer(folder: Path, canary: Path) -> None:
    auto = {"AutoTokenizer": ["own.Own", "own.Own"]}
    changed(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="Own")
    changed(folder / "config.json", auto_map=auto)
    (folder / "tokenizer.json").unlink()


def known_tokenizer_with_code(folder: Path, canary: Path) -> None:
    auto = {"AutoTokenizer": ["own.Own", "own.Own"]}
    changed(folder / "tokenizer_config.json", auto_map=auto)


def own_processors(folder: Path, canary: Path) -> None:
    for name in ("preprocessor", "processor", "video_preprocessor"):
        kinds = {f"{kind}_type": "Own" for kind in ("image_processor", "video_processor")}
        changed(
            folder / f"{name}_config.json",
            auto_map=AUTO,
            processor_class="Own",
            feature_extractor_type="Own",
            image_processor=None,
            **kinds,
        )


def own_generation(folder: Path, canary: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(code(canary))
    changed(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)
    changed(folder / "config.json", custom_generate=str(folder), trust_remote_code=True)


def attention_from_elsewhere(folder: Path, canary: Path) -> None:
    changed(folder / "config.json", _attn_implementation="somebody/kernel")


def pickled_weights(folder: Path, canary: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    names = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
    for name in names:
        torch.save({"weight": Pickled(canary)}, folder / name)


def pickled_shard(folder: Path, canary: Path) -> None:
    pickled_weights(folder, canary)
    index = {"weight_map": {"weight": "../model/pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def link_to_a_pickle(folder: Path, canary: Path) -> None:
    outside = folder.parent / "outside.bin"
    torch.save({"weight": Pickled(canary)}, outside)
    for path in folder.glob("*.safetensors"):
        path.unlink()
        path.symlink_to(outside)


def adapter_of_peft(folder: Path, canary: Path) -> None:
    changed(folder / "adapter_config.json", base_model_name_or_path="somebody/else", peft_type="L")
    torch.save({"weight": Pickled(canary)}, folder / "adapter_model.bin")


def text_settings(folder: Path, **changes: Any) -> None:
    """Change the text tower's settings of an open_clip folder."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= changes
    path.write_text(json.dumps(config))


def open_clip_trusts(folder: Path, canary: Path) -> None:
    own_tokenizer(folder, canary)
    text_settings(folder, tokenizer_kwargs={"trust_remote_code": True})


def open_clip_asks(folder: Path, canary: Path) -> None:
    own_tokenizer(folder, canary)


def open_clip_tower(folder: Path, canary: Path) -> None:
    own_config(folder, canary)
    text_settings(folder, hf_model_name=str(folder))


def open_clip_tower_from_elsewhere(folder: Path, canary: Path) -> None:
    text_settings(folder, hf_model_name="somebody/else")


def sentence_modules(folder: Path, first: str = "sentence_transformers.models.Transformer") -> None:
    """Make a folder one of sentence-transformers."""
    second = "sentence_transformers.models.Pooling"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": first},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": second},
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    changed(folder / "1_Pooling/config.json", embedding_dimension=width)


def own_module(folder: Path, canary: Path) -> None:
    sentence_modules(folder, "own.Transformer")


def own_transformer(folder: Path, canary: Path) -> None:
    own_config(folder, canary)
    changed(folder / "sentence_bert_config.json", model_args={"trust_remote_code": True})


def pickled_projection(folder: Path, canary: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    torch.save({"weight": Pickled(canary)}, folder / "2_Dense/pytorch_model.bin")


PARTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
"""The folders of a pipeline of diffusers."""


def diffusion_model(folder: Path, canary: Path) -> Path:
    """Return a tiny pipeline of diffusers, with modules of its own in all of its folders."""
    diffusion.pipeline().save_pretrained(folder)
    for part in ("", *PARTS):
        own_modules(folder / part, canary)
    return folder


def own_pipeline(folder: Path, canary: Path) -> None:
    changed(folder / "model_index.json", _class_name=["pipeline", "Own"], auto_map=AUTO)


def custom_pipeline(folder: Path, canary: Path) -> None:
    asked = {"custom_pipeline": str(folder), "trust_remote_code": True}
    changed(folder / "model_index.json", **asked)


def own_unet(folder: Path, canary: Path) -> None:
    changed(folder / "model_index.json", unet=["own", "Own"])
    changed(folder / "unet/config.json", _class_name="Own", auto_map=AUTO)


def known_unet_with_code(folder: Path, canary: Path) -> None:
    changed(folder / "model_index.json", unet=["own", "UNet2DConditionModel"])
    changed(folder / "unet/config.json", _class_name="Own", auto_map=AUTO)


def own_scheduler(folder: Path, canary: Path) -> None:
    changed(folder / "model_index.json", scheduler=["own", "Own"])
    changed(folder / "scheduler/scheduler_config.json", _class_name="Own", auto_map=AUTO)


def own_safety_checker(folder: Path, canary: Path) -> None:
    own = {"safety_checker": ["own", "Own"], "feature_extractor": ["own", "Own"]}
    changed(folder / "model_index.json", **own, image_encoder=["own", "Own"])
    for part in ("safety_checker", "image_encoder"):
        (folder / part).mkdir()
        torch.save({"weight": Pickled(canary)}, folder / part / "pytorch_model.bin")
        own_modules(folder / part, canary)


def parts_with_code(folder: Path, canary: Path) -> None:
    known_config_with_code(folder / "text_encoder", canary)
    known_tokenizer_with_code(folder / "tokenizer", canary)


def own_text_encoder(folder: Path, canary: Path) -> None:
    own_config(folder / "text_encoder", canary)


def attention_of_a_part(folder: Path, canary: Path) -> None:
    attention_from_elsewhere(folder / "text_encoder", canary)


def pickled_unet(folder: Path, canary: Path) -> None:
    _pickled_part(folder / "unet", canary)


def pickled_vae(folder: Path, canary: Path) -> None:
    _pickled_part(folder / "vae", canary)


def pickled_text_encoder(folder: Path, canary: Path) -> None:
    _pickled_part(folder / "text_encoder", canary)


def pickles_beside(folder: Path, canary: Path) -> None:
    """Put pickles beside the weights of all parts, and learned words and an adapter of weights."""
    for part in PARTS:
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
            torch.save({"weight": Pickled(canary)}, folder / part / name)
    for name in ("learned_embeds.bin", "pytorch_lora_weights.bin"):
        torch.save({"weight": Pickled(canary)}, folder / name)


def _pickled_part(part: Path, canary: Path) -> None:
    """Let the weights of a part of a pipeline be pickles alone."""
    pickled_weights(part, canary)
    torch.save({"weight": Pickled(canary)}, part / "diffusion_pytorch_model.bin")


def link_to_a_pickled_unet(folder: Path, canary: Path) -> None:
    link_to_a_pickle(folder / "unet", canary)
