"""Adapters of PEFT: low-rank changes of another model's weights, which are merged into it.

Only what says how the weights are laid out is taken from an adapter's config: other entries of it
can import modules, unpickle files, or start a computation of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.errors import FuseError
from fuse.models.model_files import check_config, find_file, no_safetensors, read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYOUT = (
    "r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "fan_in_fan_out", "use_rslora", "use_dora", "bias", "lora_bias", "modules_to_save",
    "layers_to_transform", "layers_pattern", "target_parameters",
)  # fmt: skip
"""The entries of a config that are heeded."""
UNHEEDED = ("layer_replication", "trainable_token_indices", "use_qalora", "use_bdlora")
"""Entries that change what the weights mean; a config in which one is set is refused."""


def read_adapter(source: str, **options: Any) -> dict[str, Any]:
    """Return the config of an adapter in a folder or hub repository; empty where there is none.

    Raises:
        FuseError: it is of another kind than LoRA, or odd.
    """
    config = read_object(source, CONFIG, **options)
    if not config:
        return {}
    check_config(source, CONFIG, config)
    if config.get("peft_type") != "LORA":
        raise _odd(source, "peft_type", config.get("peft_type"), "LORA")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise _odd(source, "base_model_name_or_path", base, "the folder or hub id of its model")
    for key in UNHEEDED:
        if config.get(key):
            raise _odd(source, key, config[key], "none")
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        _check_names(source, key, config.get(key))
    return config


def base_of(source: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `from_pretrained` is given to find the model that an adapter belongs to.

    A folder makes nothing be fetched: its model has to be here already.
    """
    own = {"revision": config.get("revision")} if config.get("revision") else {}
    kept = {key: value for key, value in options.items() if key not in ("revision", "subfolder")}
    if Path(source).is_dir():
        kept["local_files_only"] = True
    return {**kept, **own}


def merged(network: Any, source: str, config: Mapping[str, Any], **options: Any) -> Any:
    """Return a network with an adapter merged into its weights.

    Raises:
        FuseError: PEFT is not installed, or the adapter does not fit the network.
    """
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        raise FuseError(
            f"model_id={source}: adapters of PEFT need its package; pip install peft"
        ) from error
    from safetensors.torch import load_file

    path = find_file(source, WEIGHTS, **options)
    if path is None:
        raise no_safetensors(source)
    weights = load_file(path)
    _check_ranks(source, config, weights)
    layout = {key: config[key] for key in LAYOUT if config.get(key) is not None}
    model: Any = get_peft_model(network, LoraConfig(inference_mode=True, **layout))
    found: Any = set_peft_model_state_dict(model, weights)
    lacking = [key for key in found.missing_keys if "lora_" in key or "modules_to_save" in key]
    for wrong in (lacking, found.unexpected_keys):
        if wrong:
            raise FuseError(
                f"model_id={source}: does not fit its model "
                f"{config['base_model_name_or_path']}, {len(wrong)} weights such as {min(wrong)} "
                "are missing or too many; choose another"
            )
    return model.merge_and_unload()


def _check_ranks(source: str, config: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Check that an adapter is no larger than its weights, before memory is taken for it."""
    largest = max((max(weight.shape, default=1) for weight in weights.values()), default=0)
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    for rank in ranks:
        if not isinstance(rank, int) or rank > largest:
            raise _odd(source, "r", rank, f"a number up to {largest}, as its weights have it")


def _check_names(source: str, key: str, names: Any) -> None:
    """Check that parts of a network are named, and not described by a pattern."""
    if isinstance(names, str):
        names = [] if names == "all-linear" else [names]
    for name in names or ():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.^$\\-]+", name):
            raise _odd(source, key, name, "names of the network's parts")


def _odd(source: str, key: str, value: object, expected: str) -> FuseError:
    return FuseError(
        f"model_id={source}: its {CONFIG} of PEFT says {key}={str(value)[:60]}, expected "
        f"{expected}; merge adapter and model yourself (merge_and_unload, save_pretrained)"
    )
