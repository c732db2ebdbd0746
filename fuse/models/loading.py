"""Load what transformers knows, from the hub or from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fuse import hub
from fuse.errors import FuseError
from fuse.models import gguf_files, lora
from fuse.models.build_limits import limited_build
from fuse.models.foreign_code import WHAT_TO_DO, asks_for_code, without_foreign_code
from fuse.models.model_files import (
    HUB_OPTIONS,
    check_config,
    find_file,
    first_line,
    read_object,
    stored_size,
)
from fuse.models.quantization import check_quantised, quantization_config

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
    """Load a tokenizer or a processor from the hub or a local folder; run no code from there.

    Args:
        options: those of the network; the ones that say where the files are count here, too.

    Raises:
        FuseError: there is no such model, or it could not be read.
    """
    source, where = source_of(model_id, options)
    with loading(model_id), reaching(source, where):
        adapter = lora.read_adapter(source, **where)
        if adapter and find_file(source, "tokenizer_config.json", **where) is None:
            base = lora.base_of(source, adapter, where)
            return load_pretrained(auto_class, adapter["base_model_name_or_path"], **base)
        _check_files(auto_class.__name__, source, where)
        with _reading_gguf(where):
            return auto_class.from_pretrained(source, trust_remote_code=False, **where)


def _check_files(class_name: str, source: str, where: dict[str, Any]) -> None:
    """Check the files that a class of transformers reads of a model, beside its weights.

    Raises:
        FuseError: one is not what it should be.
    """
    if "gguf_file" in where:
        _gguf_header(source, where)
        return
    # Tokenizers and processors read the network's config, too
    processor = "Processor" in class_name
    for name in ("config.json", *(PROCESSOR if processor else ())):
        check_config(source, name, read_object(source, name, **where))
    if processor or "Tokenizer" in class_name:
        for name in TOKENIZER:
            read_object(source, name, **where)
        find_file(source, "tokenizer.json", **where)


@torch.inference_mode(False)
def load_network(
    auto_class: Any,
    model_id: str,
    device: str | torch.device,
    *,
    may_lack: str = "pooler",
    **options: Any,
) -> Any:
    """Load a network with all of its weights: safetensors, a GGUF file, or an adapter of PEFT.

    Args:
        device: where it is put, unless `options` hold a `device_map`.
        may_lack: part of the names of weights that are not used, and are often left out.
        options: those of `from_pretrained`; `quantization` is one of `quantization.KINDS`.

    Raises:
        FuseError: it cannot be read, the files lack weights (which transformers would fill with
            random numbers), or its config asks for more than they hold.
    """
    source, where = source_of(model_id, options)
    with loading(model_id), reaching(source, where):
        adapter = lora.read_adapter(source, **where)
        if adapter:
            base = lora.base_of(source, adapter, {**options, **where})
            name = adapter["base_model_name_or_path"]
            network = load_network(auto_class, name, device, may_lack=may_lack, **base)
            return lora.merged(network, source, adapter, **where)
        _check_needs(model_id, options)
        if "gguf_file" in where:
            options |= gguf_files.as_dense()
        quantization = options.get("quantization")
        options |= quantization_config(where.get("gguf_file", model_id), device, options)
        with _reading_gguf(where), _limits(source, where, options):
            network, info = auto_class.from_pretrained(
                source, trust_remote_code=False, output_loading_info=True, **{**options, **where}
            )
        _check_whole(auto_class, model_id, info, may_lack)
        if quantization is not None:
            check_quantised(quantization, network)
        return network if "device_map" in options else network.to(device)


def _check_needs(model_id: str, options: dict[str, Any]) -> None:
    """Check that packages are installed that some options need.

    Raises:
        FuseError: one is not.
    """
    from transformers.utils import is_accelerate_available

    if options.get("device_map") is not None and not is_accelerate_available():
        raise FuseError(
            f"model_id={model_id}: device_map={options['device_map']} needs accelerate; "
            "pip install accelerate"
        )
    attention = options.get("attn_implementation")
    if isinstance(attention, str) and "/" in attention:
        raise FuseError(
            f"attn_implementation={attention}: code of the hub is never run; "
            "give one that transformers knows itself"
        )


def _check_whole(auto_class: Any, model_id: str, info: dict[str, Any], may_lack: str) -> None:
    """Check that a network has got all of its weights.

    Raises:
        FuseError: some are missing.
    """
    lacking = []
    for key in (*info["missing_keys"], *info["mismatched_keys"]):
        if not may_lack or may_lack not in str(key):
            lacking.append(str(key))
    if lacking:
        raise FuseError(
            f"model_id={model_id}: not a model for {auto_class.__name__}, "
            f"{len(lacking)} weights such as {min(lacking)} are missing; choose another"
        )


def _limits(source: str, where: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return the context in which a network is made, after a look at its config and weights."""
    if "state_dict" in options:
        return nullcontext()
    if "gguf_file" in where:
        return limited_build(source, _gguf_header(source, where).stored)
    options["use_safetensors"] = True
    if "config" in options:
        return nullcontext()
    config = read_object(source, "config.json", **where)
    check_config(source, "config.json", config)
    if not config and Path(source).is_dir():
        raise FuseError(
            f"model_id={source}: could not load it (it has no config.json); choose a model folder"
        )
    if not config:
        return nullcontext()  # transformers says whether the hub can be reached
    return limited_build(source, stored_size(source, config, **{**options, **where}))


def _gguf_header(source: str, where: dict[str, Any]) -> gguf_files.Header:
    """Return the header of a GGUF file, if it asks for nothing absurd.

    Raises:
        FuseError: it does, there is no such file, or its package is not installed.
    """
    from transformers.utils import is_gguf_available

    name = where["gguf_file"]
    path = find_file(source, name, **where)
    if path is None:
        raise FuseError(f"model_id={source}/{name}: no such file; give a GGUF file that is there")
    if not is_gguf_available():
        raise FuseError(
            f"model_id={source}/{name}: GGUF files need two packages; pip install gguf accelerate"
        )
    header = gguf_files.read_header(path)
    check_config(source, name, header.metadata)
    return header


def _reading_gguf(where: dict[str, Any]) -> Any:
    """Return the context in which a GGUF file is read, if it is one."""
    return gguf_files.read_once() if "gguf_file" in where else nullcontext()


def reaching(source: str, where: dict[str, Any]) -> Any:
    """Return the context in which a folder or a hub repository is read."""
    if Path(source).is_dir():
        return nullcontext()
    files = [where["gguf_file"]] if "gguf_file" in where else []
    return hub.reaching(source, *files, **where)


def source_of(model_id: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the folder or the hub id, and the options that say which of its files are meant.

    These, and `trust_remote_code`, are taken out of the options.

    Raises:
        FuseError: there is no such folder, or code was to be trusted.
    """
    if options.pop("trust_remote_code", False):
        raise FuseError(
            "trust_remote_code=True: code that comes with a model is never run; "
            "make the network yourself and hand it over"
        )
    where = {}
    for name in (*HUB_OPTIONS, "gguf_file"):
        if options.get(name) is not None:
            where[name] = options[name]
        options.pop(name, None)
    place = model_id
    if model_id.endswith(gguf_files.SUFFIX):
        place, _, where["gguf_file"] = model_id.rpartition("/")
        place = place or "."
    path = Path(place).expanduser()
    if path.is_dir():
        return str(path), where
    if path.is_absolute() or place.startswith(".") or place.count("/") > 1:
        raise FuseError(
            f"model_id={model_id}: no such folder; give a hub id or a local model folder"
        )
    return place, where
