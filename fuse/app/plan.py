"""What a run would load, need and do: found without loading any weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import hub
from fuse.adapters.store import DEMO
from fuse.app.build import adapter_name
from fuse.app.hints import Config
from fuse.app.reach import Wanted, check_revisions, wanted
from fuse.models.build_limits import StoredSize
from fuse.models.diffusion_loading import stored_networks
from fuse.models.gguf_files import SUFFIX, read_header
from fuse.models.lora import read_adapter
from fuse.models.model_files import read_object, size_of_files, stored_size
from fuse.models.open_clip_files import CONFIG as OPEN_CLIP_CONFIG
from fuse.models.open_clip_files import weights_of
from fuse.options import options_of
from fuse.registry import METHODS

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
BYTES |= {f"mixed_{name}": BYTES[name] + BYTES["float32"] for name in ("float16", "bfloat16")}
"""Of one weight, by `dtype`; with a mixed one there is a copy in float32."""
QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5, "torchao_int8": 1.0}


@dataclass(frozen=True)
class ModelPlan:
    """One model of a run.

    Args:
        where: a folder, the local cache, or that it is to be fetched.
        num_weights: None where that is not known before it is fetched.
        fetched_bytes: 0 for what is here; None where the hub does not say.
    """

    key: str
    model_id: str
    where: str
    num_weights: int | None
    memory_bytes: float | None
    fetched_bytes: float | None


@dataclass(frozen=True)
class Plan:
    """A run as it would be.

    Args:
        adapters: what is known of each secondary's, by its name.
        steps: at most.
        search_width: candidates a step; None where the method does not say.
    """

    models: list[ModelPlan]
    adapters: dict[str, str]
    method: str
    steps: int
    search_width: int | None
    num_searches: int | None
    missing: list[str]
    """A line for each model that is not here and cannot be fetched."""


def plan_of(config: Config, num_searches: int | None = 1) -> Plan:
    """Return what a checked configuration would do.

    Raises:
        FuseError: a model whose files are odd.
    """
    models = wanted(config)
    check_revisions(models)
    absent = [model for model in models if not model.is_here]
    reason = hub.why_unreachable() if absent else ""
    adapters = {name: _adapter_state(config, name) for name in config["secondary"]}
    options = {**_defaults(METHODS[config["method"]["name"]]), **_given(config["method"])}
    return Plan(
        [_model_plan(model, reachable=not reason) for model in models],
        adapters,
        config["method"]["name"],
        options["steps"] if config["steps"] is None else config["steps"],
        options.get("search_width"),
        num_searches,
        [model.not_here(reason) for model in absent if reason],
    )


def _model_plan(model: Wanted, reachable: bool) -> ModelPlan:
    """Return what is known of one model."""
    entry = model.entry
    if not model.is_here:
        size = _size_at_hub(model) if reachable else None
        where = "to be fetched" if reachable else "missing"
        return ModelPlan(model.key, entry["model_id"], where, None, None, size)
    with hub.working_offline():
        stored = _stored(model)
    where = "folder" if model.repository is None else "local cache"
    if stored is None:
        return ModelPlan(model.key, entry["model_id"], where, None, None, 0)
    each = QUANTISED_BYTES.get(entry["quantization"], BYTES[entry["dtype"]])
    count = stored.num_numbers
    return ModelPlan(model.key, entry["model_id"], where, count, count * each, 0)


def _stored(model: Wanted) -> StoredSize | None:
    """Return what the headers of a model's weights tell; None where they come by an address."""
    entry, source = model.entry, model.repository or model.entry["model_id"]
    where = {"revision": entry["revision"]}
    if model.files:
        found = [hub.cached(source, file, **where) for file in model.files]
        return _stored_in(next(path for path in found if path is not None))
    path = Path(source).expanduser()
    if source.endswith(SUFFIX):
        return _stored_in(path)
    if model.repository is None and not path.is_dir():
        return None
    if entry.get("kind") == "open_clip" and read_object(source, OPEN_CLIP_CONFIG, **where):
        return weights_of(source)
    if entry.get("kind") == "diffusion":
        return stored_networks(source, **where)
    adapter = read_adapter(source, **where)
    if adapter:
        source, where = adapter["base_model_name_or_path"], {"revision": adapter.get("revision")}
        if source.endswith(SUFFIX):
            return _stored_in(Path(source).expanduser()) if Path(source).exists() else None
    return stored_size(source, read_object(source, "config.json", **where), **where)


def _stored_in(path: Path) -> StoredSize | None:
    """Return what the header of one file tells; None for a pickled one."""
    if path.suffix == SUFFIX:
        return read_header(path).stored
    return size_of_files([path]) if path.suffix == ".safetensors" else None


def _size_at_hub(model: Wanted) -> float | None:
    """Return how many bytes of weights would be fetched; None where the hub does not say."""
    from huggingface_hub import HfApi

    assert model.repository is not None
    revision, seconds = model.entry["revision"], hub.PROBE_SECONDS
    try:
        info = HfApi().model_info(
            model.repository, revision=revision, files_metadata=True, timeout=seconds
        )
    except Exception:  # the client raises many kinds; each means that nothing is known
        return None
    total = 0
    for file in info.siblings or ():
        asked = file.rfilename in model.files or file.rfilename.endswith(".safetensors")
        total += (file.size or 0) * asked
    return total or None


def _adapter_state(config: Config, name: str) -> str:
    """Return whether an adapter is kept for a pair, or is to be fitted.

    Which weights it was fitted to is known when they are loaded.
    """
    kind = config["adapter"]["name"]
    if all(
        config["primary"][key] == config["secondary"][name][key] for key in ("kind", "model_id")
    ):
        return "none needed, its tokens are the primary's"
    begin = adapter_name(config, name)
    for folder in (Path(config["adapter"]["cache_dir"]).expanduser(), DEMO):
        if any(folder.glob(f"{begin}-*.safetensors")):
            return f"{kind}: kept in {folder}"
    if config["adapter"].get("shared"):
        return f"{kind}: looked for in {config['adapter']['shared']}, else to be fitted"
    return f"{kind}: to be fitted"


def _defaults(kind: Any) -> dict[str, Any]:
    return {name: option.default for name, option in options_of(kind).items()}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
