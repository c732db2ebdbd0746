"""Look at the settings and weights of an open_clip model before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.errors import FuseError
from fuse.models.build_limits import StoredSize
from fuse.models.model_files import (
    HOW_TO_CONVERT,
    check_config,
    find_file,
    no_safetensors,
    read_object,
    size_of_files,
)

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""The files that open_clip looks for in a folder, in its order."""
TOKENIZER_OPTIONS = {
    "additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token",
}  # fmt: skip
"""What the settings may say of a tokenizer; the rest could make it run code or read elsewhere."""


def check_settings(source: str) -> None:
    """Check that the settings of a folder or a hub repository ask for nothing from elsewhere.

    Raises:
        FuseError: they do, or are no settings.
    """
    settings = read_object(source, CONFIG)
    if not settings:
        raise FuseError(
            f"model_id={source}: could not load it (it has no {CONFIG}, or cannot be reached); "
            "choose a model of open_clip"
        )
    check_config(source, CONFIG, settings)
    for name in ("model_cfg", "preprocess_cfg"):
        if not isinstance(settings.get(name, {}), dict):
            raise _odd(source, name, settings[name], "an object {...}")
    model = settings.get("model_cfg", {})
    for name in ("text_cfg", "vision_cfg", "multimodal_cfg"):
        if not isinstance(model.get(name, {}), dict):
            raise _odd(source, f"model_cfg.{name}", model[name], "an object {...}")
    _check_text(source, model.get("text_cfg", {}))
    check_config(source, "config.json", read_object(source, "config.json"))  # the tokenizer's
    timm = model.get("vision_cfg", {}).get("timm_model_name", "")
    if not isinstance(timm, str) or re.search(r"[:/\\]", timm):
        raise _odd(source, "vision_cfg.timm_model_name", timm, "the name of an architecture")


def _check_text(source: str, text: Mapping[str, Any]) -> None:
    """Check what the settings say of the text tower and its tokenizer."""
    options = text.get("tokenizer_kwargs", {})
    if not isinstance(options, dict):
        raise _odd(source, "text_cfg.tokenizer_kwargs", options, "an object {...}")
    for name, value in options.items():
        if name not in TOKENIZER_OPTIONS:
            known = ", ".join(sorted(TOKENIZER_OPTIONS))
            raise _odd(source, f"text_cfg.tokenizer_kwargs.{name}", value, f"only {known}")
    for name in ("hf_model_name", "hf_tokenizer_name"):
        if not isinstance(text.get(name) or "", str):
            raise _odd(source, f"text_cfg.{name}", text[name], "a name")
    tower = text.get("hf_model_name")
    if tower and Path(source).is_dir() and not Path(tower).is_dir():
        # A folder was asked for, and not the hub
        raise _odd(source, "text_cfg.hf_model_name", tower, "a folder with a config.json")
    if tower:
        check_config(tower, "config.json", read_object(tower, "config.json"))


def weights_of(source: str) -> StoredSize:
    """Return what the headers of the weights tell that open_clip will read.

    Raises:
        FuseError: there are no safetensors, or pickled weights stand before them.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        path = find_file(source, WEIGHTS[0])
        if path is None:
            raise no_safetensors(source)
        return size_of_files([path])
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    others += sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth"))
    found = next((name for name in (*WEIGHTS, *others) if find_file(source, name)), None)
    if found is None or not found.endswith(".safetensors"):
        raise no_safetensors(source)
    return size_of_files([folder / found])


def weights_of_file(pretrained: str) -> StoredSize:
    """Return what the header of a checkpoint file tells.

    Raises:
        FuseError: the file is pickled.
    """
    if not pretrained.endswith(".safetensors"):
        raise FuseError(f"pretrained={pretrained}: {HOW_TO_CONVERT}")
    return size_of_files([Path(pretrained)])


def _odd(source: str, key: str, value: object, expected: str) -> FuseError:
    return FuseError(
        f"model_id={source}: its {CONFIG} says {key}={str(value)[:60]}, expected {expected}; "
        "code and files from elsewhere are never used; repair it or choose another model"
    )
