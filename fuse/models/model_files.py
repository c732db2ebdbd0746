"""Look at a model's files before anything is made of them: odd ones are refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fuse.errors import FuseError
from fuse.models.build_limits import StoredSize

HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "proxies")
"""What `from_pretrained` and a look at a single file have in common."""
MAX_JSON_BYTES = 2**25
MAX_SIZE = 2**26
"""The largest whole number that a config may hold, beside ids and the like."""
MAX_COUNT = 2**16
"""The largest number of layers, heads, experts or labels."""
MAX_EDGE = 2**13
"""The largest edge, in pixels, that a picture is brought to."""
COUNTS = re.compile(r"layer|block|depth|heads|experts|labels")
NO_SIZE = re.compile(
    r"theta|base|seed|_ids?$|token|param|^total|pixels|longest_edge|limit|version|hash"
)
"""Numbers of these names say nothing of how much is made."""
EDGES = ("height", "width", "shortest_edge", "image_size")
IMPLEMENTATIONS = re.compile(r"^_?(attn|experts)_implementation")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".npy", ".h5", ".msgpack")
SHARDS = ".index.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


def find_file(source: str, name: str, **options: Any) -> Path | None:
    """Return the path of a file of a model's folder or hub repository; None where it has none.

    Args:
        options: those of `HUB_OPTIONS` are heeded.

    Raises:
        FuseError: something else is in its place.
        OSError: the repository cannot be read.
    """
    from transformers.utils import cached_file

    folder = Path(source).expanduser()
    if folder.is_dir():
        path = folder / (options.get("subfolder") or "") / name
        if path.exists() and not path.is_file():
            raise FuseError(f"model_id={source}: its {name} is no file; repair the folder")
        return path if path.is_file() else None
    known = {key: options[key] for key in HUB_OPTIONS if key in options}
    found = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,  # the library itself will say so
        **known,
    )
    return None if found is None else Path(found)


def read_json(source: str, name: str, **options: Any) -> Any:
    """Return the content of a JSON file of a model; None where it has none.

    Raises:
        FuseError: the file cannot be read, or holds something else.
    """
    path = find_file(source, name, **options)
    if path is None:
        return None
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FuseError(
            f"model_id={source}: its {name} cannot be read ({first_line(error)}); "
            "repair the folder or choose another model"
        ) from error


def read_object(source: str, name: str, **options: Any) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object; an empty one where there is none.

    Raises:
        FuseError: the file cannot be read, or holds something else.
    """
    content = read_json(source, name, **options)
    if content is not None and not isinstance(content, dict):
        raise FuseError(
            f"model_id={source}: its {name} holds a {type(content).__name__}, expected an object "
            "{...}; repair the folder or choose another model"
        )
    return content or {}


def check_config(source: str, name: str, config: Mapping[str, Any]) -> None:
    """Check that a config asks for nothing absurd, and for nothing from elsewhere.

    Raises:
        FuseError: it does.
    """
    by_area = _measures_areas(config)
    for path, value in _leaves(config):
        key = path.rpartition(".")[2]
        limit = _limit(key, by_area)
        whole = isinstance(value, int) and not NO_SIZE.search(key)
        if (whole and abs(value) > limit) or value != value:
            raise _odd(source, name, path, value, f"a number up to {limit}")
        if IMPLEMENTATIONS.search(key) and isinstance(value, str) and "/" in value:
            raise _odd(source, name, path, value, "no code from elsewhere")
        if key in ("use_pretrained_backbone", "use_pretrained") and value:
            raise _odd(source, name, path, value, "all weights in the model's own files")


def _measures_areas(config: Any) -> bool:
    """Whether an image processor among nested settings takes an area where others take an edge."""
    if not isinstance(config, Mapping):
        return False
    own = {"patch_size", "merge_size"} <= set(config)
    return own or any(map(_measures_areas, config.values()))


def _limit(key: str, by_area: bool) -> int:
    """Return how large the number of an entry may be."""
    if COUNTS.search(key):
        return MAX_COUNT
    return MAX_EDGE if key in EDGES and not by_area else MAX_SIZE


def stored_size(source: str, config: Mapping[str, Any], **options: Any) -> StoredSize:
    """Return what the headers of a model's weights tell; nothing is read beside them.

    Raises:
        FuseError: the weights are missing, pickled, or lie elsewhere.
    """
    usual = DIFFUSERS_WEIGHTS if "_diffusers_version" in config else "model.safetensors"
    weights = config.get("transformers_weights") or usual
    if not isinstance(weights, str) or not _is_plain(weights.removesuffix(SHARDS)):
        raise _odd(
            source, "config.json", "transformers_weights", weights, "a safetensors file beside"
        )
    if options.get("variant"):
        weights = weights.replace(".safetensors", f".{options['variant']}.safetensors")
    path = find_file(source, weights, **options)
    if path is not None and not weights.endswith(SHARDS):
        return size_of_files([path], "quantization_config" in config)
    index = read_object(source, f"{weights.removesuffix(SHARDS)}{SHARDS}", **options)
    parts = index.get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise no_safetensors(source, options.get("subfolder") or "")
    names = sorted({str(part) for part in parts.values()})
    paths = []
    for name in names:
        part = find_file(source, name, **options) if _is_plain(name) else None
        if part is None:
            raise _odd(
                source, f"{weights}{SHARDS}", "weight_map", name, "a safetensors file beside"
            )
        paths.append(part)
    return size_of_files(paths, "quantization_config" in config)


def size_of_files(paths: list[Path], quantised: bool = False) -> StoredSize:
    """Return what the headers of safetensors files tell.

    Raises:
        SafetensorError, OSError: one cannot be read.
    """
    from safetensors import safe_open

    num_tensors = num_numbers = 0
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                num_tensors, num_numbers = num_tensors + 1, num_numbers + size
    return StoredSize(num_tensors, num_numbers, quantised)


def no_safetensors(source: str, subfolder: str = "") -> FuseError:
    """Return what to say of a model without safetensors weights."""
    folder, pickled = Path(source).expanduser() / subfolder, ""
    if folder.is_dir():
        pickled = ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)[:3])
    found = f"pickled weights ({pickled})" if pickled else "no safetensors weights"
    part = f"its {subfolder} " if subfolder else ""
    return FuseError(f"model_id={source}: {part}has {found}; {HOW_TO_CONVERT}")


HOW_TO_CONVERT = (
    "only safetensors are read, since a pickle can run code; if you trust the model, convert it "
    "with torch.load(FILE, weights_only=True) and safetensors.torch.save_file"
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened; its kind where it has none.

    A line that ends with a colon comes with the next one.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].endswith(":") and len(lines) > 1:
        lines[0] += f" {lines[1].strip()}"
    return lines[0][:300]


def _is_plain(name: str) -> bool:
    """Whether a name is that of a safetensors file in the same folder."""
    return name.endswith(".safetensors") and not re.search(r"[/\\:]", name)


def _odd(source: str, name: str, key: str, value: object, expected: str) -> FuseError:
    """Return what to say of an entry of a model's file."""
    return FuseError(
        f"model_id={source}: its {name} says {key}={str(value)[:60]}, expected {expected}; "
        "repair it or choose another model"
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values in nested objects and lists, each with its dotted key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value
