"""The hub of models and its local cache: what is here, and what would be fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuse.errors import FuseError

PROBE_SECONDS = 3
"""How long the hub may take to answer before it counts as out of reach."""
CONFIGS = ("config.json", "open_clip_config.json", "adapter_config.json", "model_index.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")
"""How the names of files with weights end, also of those that are not read."""


def is_hub_id(model_id: str) -> bool:
    """Whether a name is that of a hub repository, or of a file in one, and no path."""
    path = Path(model_id).expanduser()
    return not (path.exists() or path.is_absolute() or model_id.startswith((".", "~")))


def why_unreachable() -> str:
    """Return why nothing can be fetched from the hub; "" where it answers."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # what a client raises without a network depends on the network
        return f"no answer within {PROBE_SECONDS} seconds, {type(error).__name__}"
    return ""


@contextmanager
def working_offline() -> Iterator[None]:
    """Let the hub's client look at its local cache alone, within a context, as HF_HUB_OFFLINE does.

    It would try each file several times otherwise, for minutes.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def reaching(repository: str, *files: str, **options: Any) -> Iterator[None]:
    """Read a hub repository within a context: from the local cache alone where the hub is silent.

    Args:
        files: names that the file of the weights may have; none for what `is_here` looks for.
        options: those of `from_pretrained`.

    Raises:
        FuseError: the cache lacks the repository, and it cannot be fetched.
    """
    reason = "local_files_only is set" if options.get("local_files_only") else why_unreachable()
    if not reason:
        yield
        return
    if not is_here(repository, *files, **options):
        file = files[0] if files else ""
        raise FuseError(not_here(repository, reason, file, options.get("revision")))
    with working_offline():
        yield


def is_here(repository: str, *files: str, **options: Any) -> bool:
    """Whether the local cache holds a repository's config and weights, or one of the files named.

    Args:
        options: `revision` and `cache_dir` are heeded.
    """
    if files:
        return any(cached(repository, file, **options) for file in files)
    found = [cached(repository, name, **options) for name in CONFIGS]
    folder = next((path.parent for path in found if path is not None), None)
    if folder is None:
        return False
    if (folder / "model_index.json").is_file():  # a pipeline: each of its networks has a folder
        parts = [path.parent for path in folder.glob("*/config.json")]
        return bool(parts) and all(map(_has_weights, parts))
    return _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    """Whether a folder of the local cache holds all weights that it speaks of."""
    names = {path.name for path in folder.iterdir() if path.suffix in WEIGHTS}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names |= {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return True  # whoever reads it will say what is wrong
    return bool(names) and all((folder / name).is_file() for name in names)


def cached(repository: str, file: str, **options: Any) -> Path | None:
    """Return the path of a repository's file in the local cache; None where it is not there.

    Args:
        options: `revision` and `cache_dir` are heeded.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    known = {name: options[name] for name in ("revision", "cache_dir") if options.get(name)}
    try:
        path = try_to_load_from_cache(repository, file, **known)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def not_here(repository: str, reason: str, file: str = "", revision: str | None = None) -> str:
    """Return one line about a repository, or a file of it, that is neither here nor in reach."""
    command = f"hf download {repository}"
    command += f" {file}" if file else ""
    command += f" --revision {revision}" if revision else ""
    what = f"{repository}/{file}" if file else repository
    return (
        f"model_id={what}: it would be fetched from the hub, which cannot be reached ({reason}), "
        f'and is not in the local cache; run "{command}" where there is a network, then set '
        "HF_HUB_OFFLINE=1"
    )
