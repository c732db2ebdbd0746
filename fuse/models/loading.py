"""Load what transformers knows, from the hub or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fuse.errors import FuseError


@torch.inference_mode(False)
def load_pretrained(auto_class: Any, model_id: str, **options: Any) -> Any:
    """Call `auto_class.from_pretrained` on a hub id or a local folder; run no code from there.

    Raises:
        FuseError: there is no such model, or it could not be read.
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
    source = str(path) if path.is_dir() else model_id
    try:
        return auto_class.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FuseError(
            f"model_id={model_id}: expected a hub id or a local model folder; "
            f"could not load it ({reason})"
        ) from error


def load_network(auto_class: Any, model_id: str, device: str | torch.device, **options: Any) -> Any:
    """Load a network with all of its weights.

    Args:
        device: where it is put, unless `options` hold a `device_map`.

    Raises:
        FuseError: it cannot be read, or the files lack weights (which transformers would fill with
            random numbers).
    """
    network, info = load_pretrained(auto_class, model_id, output_loading_info=True, **options)
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
