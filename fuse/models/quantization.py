"""Weights of fewer bits, made while a network is loaded, by packages that know how."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fuse.errors import FuseError, one_of
from fuse.models.gguf_files import SUFFIX


def _int8(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _torchao_int8(dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


KINDS: dict[str, tuple[str, Callable[[torch.dtype], Any]]] = {
    "int8": ("bitsandbytes", _int8),
    "nf4": ("bitsandbytes", _nf4),
    "torchao_int8": ("torchao", _torchao_int8),
}
"""By their names in the configuration: the package that is needed, and its settings."""


def stored_as(model_id: str, network: Any) -> str | None:
    """Return how the weights of a network are quantised, or were in their file; None if not."""
    if model_id.endswith(SUFFIX):
        return "gguf"
    config = getattr(getattr(network, "config", None), "quantization_config", None)
    if config is None:
        return None
    values = config if isinstance(config, dict) else config.to_dict()
    method = getattr(values.get("quant_method"), "value", values.get("quant_method"))
    if method == "bitsandbytes":
        return "int8" if values.get("load_in_8bit") else str(values.get("bnb_4bit_quant_type"))
    return str(method)


def check_quantised(name: str, network: Any) -> None:
    """Raise FuseError where a package has left all weights of a network as they were."""
    if all(type(weight) in (Tensor, Parameter) for weight in network.parameters()):
        raise FuseError(
            f"quantization={name}: it changes nothing of this network; give another, or none"
        )


def quantization_config(
    model_id: str, device: str | torch.device, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what `from_pretrained` is given for `options["quantization"]`, which is taken out.

    Raises:
        FuseError: there is no such kind, its package is not installed, or the weights are of few
            bits already.
    """
    from transformers.utils import is_accelerate_available

    name = options.pop("quantization", None)
    if name is None:
        return {}
    if name not in KINDS:
        raise FuseError(f"quantization={name}: {one_of(name, KINDS)}")
    if model_id.endswith(SUFFIX):
        raise FuseError(
            f"quantization={name}: the weights of {model_id} are quantised already; "
            "give quantization=null"
        )
    package, make = KINDS[name]
    needed = [package] if is_accelerate_available() else [package, "accelerate"]
    if find_spec(package) is None or len(needed) > 1:
        raise FuseError(f"quantization={name}: needs a package; pip install {' '.join(needed)}")
    config = make(options.get("dtype", torch.float32))
    # Weights are quantised where they are put
    return {"quantization_config": config, "device_map": options.get("device_map", str(device))}
