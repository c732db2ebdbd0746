"""Find and make models of open_clip: folders, hub repositories, and architectures."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fuse import hub
from fuse.errors import FuseError, did_you_mean
from fuse.models.build_limits import StoredSize, limited_build
from fuse.models.loading import loading
from fuse.models.open_clip_files import WEIGHTS, check_settings, weights_of, weights_of_file

LOCATIONS = ("local-dir:", "hf-hub:")
"""How open_clip's names of folders and hub repositories begin."""


def create(
    library: Any, model_id: str, name: str, pretrained: str | None, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Make a network with its weights, and its tokenizer.

    Raises:
        FuseError: either cannot be made.
    """
    refuse_options(options)
    with loading(model_id), _reaching(library, name, pretrained):
        weights, stored = _checkpoint(name, pretrained)
        if stored is not None:
            _try_size(library, model_id, name, stored, options)
        # Files of a tag are those that open_clip itself names; they may be pickled
        safely = {**options, "weights_only": True, "require_pretrained": True}
        network = library.create_model(name, weights, **safely)
        tokenizer = library.get_tokenizer(name)
    mode = getattr(tokenizer, "tokenizer_mode", "")
    if mode:
        raise FuseError(
            f"model_id={model_id}: its tokenizer_mode={mode} is not offered; choose another model"
        )
    return network, tokenizer


def refuse_options(options: dict[str, Any]) -> None:
    """Refuse what the entry of a model may say, and open_clip does not offer.

    Raises:
        FuseError: it is given.
    """
    for name in ("revision", "device_map", "attn_implementation", "quantization"):
        if name in options:
            raise FuseError(f"{name}={options[name]}: models of open_clip have none; leave it out")


def repository_of(library: Any, name: str, pretrained: str | None) -> str | None:
    """Return the hub repository that weights come from; None for those of files and addresses."""
    if name.startswith("hf-hub:"):
        return name.partition(":")[2]
    if name.startswith("local-dir:"):
        return None
    place = str(library.get_pretrained_cfg(name, pretrained or "").get("hf_hub") or "")
    return place.rpartition("/")[0] or None


def weights_of_tag(library: Any, name: str, pretrained: str | None) -> tuple[str, ...]:
    """Return the names that the file of a tag's weights may have: of its repository nothing else is
    fetched.
    """
    place = str(library.get_pretrained_cfg(name, pretrained or "").get("hf_hub") or "")
    own = place.rpartition("/")[2]
    return (own,) if own else WEIGHTS


def _reaching(library: Any, name: str, pretrained: str | None) -> Any:
    """Return the context in which weights are read from where they are."""
    repository = repository_of(library, name, pretrained)
    if repository is None:
        return nullcontext()
    files = () if name.startswith("hf-hub:") else weights_of_tag(library, name, pretrained)
    return hub.reaching(repository, *files)


def full_name(library: Any, model_id: str, pretrained: str | None) -> str:
    """Return open_clip's name of a folder, a hub repository, or an architecture with weights."""
    path = Path(model_id).expanduser()
    if path.is_dir() or "/" in model_id:
        return _full_location(path, model_id, pretrained)
    names = library.list_models()
    if model_id not in names:
        raise FuseError(
            f"model_id={model_id}: {did_you_mean(model_id, names)}expected a model folder, "
            "a hub id, or an architecture of open_clip such as ViT-B-32"
        )
    tags = library.list_pretrained_tags_by_model(model_id)
    choices = f"one of {', '.join(tags)}, or a checkpoint file" if tags else "a checkpoint file"
    if not pretrained:
        raise FuseError(
            f"pretrained=null: {model_id} is an architecture without weights; "
            f"give pretrained={choices}"
        )
    known = library.get_pretrained_cfg(model_id, pretrained)
    if not known and not Path(pretrained).expanduser().is_file():
        raise FuseError(
            f"pretrained={pretrained}: {did_you_mean(pretrained, tags)}"
            f"model_id={model_id} has no such weights; give {choices}"
        )
    return model_id


def _full_location(path: Path, model_id: str, pretrained: str | None) -> str:
    """Return open_clip's name of a folder or a hub repository."""
    if pretrained:
        raise FuseError(
            f"pretrained={pretrained}: model_id={model_id} has weights of its own; "
            "give pretrained=null"
        )
    if path.is_dir():
        return f"local-dir:{path}"
    hub_id = model_id.removeprefix("hf-hub:")
    if path.is_absolute() or hub_id.startswith(".") or hub_id.count("/") > 1:
        raise FuseError(
            f"model_id={model_id}: no such folder; give a model folder, a hub id, "
            "or an architecture such as ViT-B-32"
        )
    return f"hf-hub:{hub_id}"


def _checkpoint(name: str, pretrained: str | None) -> tuple[str | None, StoredSize | None]:
    """Return the tag or the path of the weights, and their size unless they are a tag's.

    Raises:
        FuseError: settings that ask for something from elsewhere, or pickled weights.
    """
    if name.startswith(LOCATIONS):
        source = name.partition(":")[2]
        check_settings(source)
        return pretrained, weights_of(source)
    path = Path(pretrained or "").expanduser()
    if not path.is_file():
        return pretrained, None
    return str(path), weights_of_file(str(path))


def _try_size(
    library: Any, model_id: str, name: str, stored: StoredSize, options: dict[str, Any]
) -> None:
    """Make the network without memory for its weights, to see how large it would be.

    Raises:
        FuseError: it is far larger than its weights.
    """
    trial = {**options, "load_weights": False, "pretrained_text": False, "device": "meta"}
    root = logging.getLogger()
    root.addFilter(_nothing)  # it would warn that there are no weights
    try:
        with limited_build(model_id, stored), torch.device("meta"):
            library.create_model(name, **trial)
    except NotImplementedError:
        return  # some networks look at numbers while they are made
    finally:
        root.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    """Let no record of a log through."""
    return False
