"""Find and make models of open_clip: folders, hub repositories, and architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuse.errors import FuseError, did_you_mean


def create(
    library: Any, model_id: str, name: str, pretrained: str | None, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Make a network with its weights, and its tokenizer.

    Raises:
        FuseError: either cannot be made.
    """
    try:
        weights = _checkpoint(pretrained)
        network = library.create_model(name, weights, require_pretrained=True, **options)
        tokenizer = library.get_tokenizer(name)
    except Exception as error:  # config, network, hub, archive, weights: each fails in its own way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FuseError(
            f"model_id={model_id}: could not load it ({reason}); repair it or choose another"
        ) from error
    mode = getattr(tokenizer, "tokenizer_mode", "")
    if mode:
        raise FuseError(
            f"model_id={model_id}: its tokenizer_mode={mode} is not offered; choose another model"
        )
    return network, tokenizer


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


def _checkpoint(pretrained: str | None) -> str | None:
    """Return the tag, or the path of the file."""
    path = Path(pretrained).expanduser() if pretrained else None
    return str(path) if path is not None and path.is_file() else pretrained
