"""Load what transformers knows, from the hub or from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fuse.errors import FuseError
from fuse.models.build_limits import limited_build
from fuse.models.foreign_code import WHAT_TO_DO, asks_for_code, without_foreign_code
from fuse.models.model_files import check_config, find_file, first_line, read_object, stored_size

TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@contextmanager
def loading(model_id: str) -> Iterator[None]:
    """Load a model within a context: no code of its own runs, and what goes wrong is one line.

    Raises:
        FuseError: whatever was raised.
    """
    try:
        with without_foreign_code():
            yield
    except FuseError:
        raise
    except BaseException as error:
        # What an odd file raises depends on how odd it is; libraries in Rust panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if asks_for_code(error):
            raise FuseError(f"model_id={model_id}: {WHAT_TO_DO}") from error
        reason = first_line(error)
        if isinstance(error, (KeyError, TypeError, AttributeError, IndexError)):
            reason = f"{type(error).__name__}: {reason}"
        raise FuseError(
            f"model_id={model_id}: expected a hub id or a local model folder; "
            f"could not load it ({reason})"
        ) from error


@contextmanager
def preparing(what: str, file: str) -> Iterator[None]:
    """Make something of a picture, as a model's files say, within a context.

    Raises:
        FuseError: the files say something odd.
    """
    try:
        with without_foreign_code():
            yield
    except (FuseError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what odd settings raise depends on how odd they are
        raise FuseError(
            f"image: the model can make no {what} of it ({type(error).__name__}: "
            f"{first_line(error)}); repair its {file}, or choose another model"
        ) from error


@torch.inference_mode(False)
def load_pretrained(auto_class: Any, model_id: str, **options: Any) -> Any:
    """Call `auto_class.from_pretrained` on a hub id or a local folder; run no code from there.

    Raises:
        FuseError: there is no such model, or it could not be read.
    """
    source = _source(model_id, options)
    with loading(model_id):
        _check_files(auto_class.__name__, source, options)
        return auto_class.from_pretrained(source, trust_remote_code=False, **options)


def _check_files(class_name: str, source: str, options: dict[str, Any]) -> None:
    """Check the files that a class of transformers reads of a model, beside its weights.

    Raises:
        FuseError: one is not what it should be.
    """
    # Tokenizers and processors read the network's config, too
    processor = "Processor" in class_name
    for name in ("config.json", *(PROCESSOR if processor else ())):
        check_config(source, name, read_object(source, name, **options))
    if processor or "Tokenizer" in class_name:
        for name in TOKENIZER:
            read_object(source, name, **options)
        find_file(source, "tokenizer.json", **options)


def load_network(auto_class: Any, model_id: str, device: str | torch.device, **options: Any) -> Any:
    """Load a network with all of its weights, which must be safetensors.

    Args:
        device: where it is put, unless `options` hold a `device_map`.

    Raises:
        FuseError: it cannot be read, the files lack weights (which transformers would fill with
            random numbers), or its config asks for more than they hold.
    """
    source = _source(model_id, options)
    with loading(model_id):
        with _limits(source, options):
            network, info = load_pretrained(
                auto_class, model_id, output_loading_info=True, **options
            )
        lacking = []
        for key in (*info["missing_keys"], *info["mismatched_keys"]):
            if "pooler" not in str(key):
                lacking.append(str(key))
        if lacking:
            raise FuseError(
                f"model_id={model_id}: not a model for {auto_class.__name__}, "
                f"{len(lacking)} weights such as {min(lacking)} are missing; choose another"
            )
        return network if "device_map" in options else network.to(device)


def _limits(source: str, options: dict[str, Any]) -> Any:
    """Return the context in which a network is made, after a look at its config and weights."""
    if {"gguf_file", "state_dict"} & set(options):
        return nullcontext()
    options["use_safetensors"] = True
    if "config" in options:
        return nullcontext()
    config = read_object(source, "config.json", **options)
    check_config(source, "config.json", config)
    if find_file(source, "adapter_config.json", **options) is not None:
        raise FuseError(
            f"model_id={source}: holds an adapter of PEFT, which leads to another model; "
            "merge both (merge_and_unload, save_pretrained) and give that folder"
        )
    if not config and Path(source).is_dir():
        raise FuseError(
            f"model_id={source}: could not load it (it has no config.json); choose a model folder"
        )
    if not config:
        return nullcontext()  # transformers says whether the hub can be reached
    return limited_build(source, stored_size(source, config, **options))


def _source(model_id: str, options: dict[str, Any]) -> str:
    """Return the folder or the hub id, and take `trust_remote_code` out of the options.

    Raises:
        FuseError: there is no such folder, or code was to be trusted.
    """
    if options.pop("trust_remote_code", False):
        raise FuseError(
            "trust_remote_code=True: code that comes with a model is never run; "
            "make the network yourself and hand it over"
        )
    path = Path(model_id).expanduser()
    if not path.is_dir() and (
        path.is_absolute() or model_id.startswith(".") or model_id.count("/") > 1
    ):
        raise FuseError(
            f"model_id={model_id}: no such folder; give a hub id or a local model folder"
        )
    return str(path) if path.is_dir() else model_id
