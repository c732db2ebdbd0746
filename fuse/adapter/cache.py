"""Fitted adapters on disk: safetensors files, found again by a fingerprint of everything that went into the fit."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fuse.adapter.base import Adapter
from fuse.vocabulary import Vocabulary

log = logging.getLogger(__name__)

FORMAT = "fuse-adapter-1"


def fingerprint(parts: dict[str, object]) -> str:
    """A hash of named settings and hashes, whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_or_fit(folder: Path, name: str, key: dict[str, object], kind: type[Adapter], source: Vocabulary, target: Vocabulary, fit: Callable[[], Adapter]) -> Adapter:
    """The adapter that `folder` keeps under `key`, or else a new one by `fit()`, which is then kept.

    A file that is corrupt or of another key is never used: one line of warning, and the adapter is fitted anew.
    """
    digest = fingerprint({"format": FORMAT, **key})
    path = folder / f"{name}-{digest[:16]}.safetensors"
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != digest:
                    raise ValueError("it belongs to another pair or other settings")
                tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118
            return kind.from_tensors(source, target, tensors)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            log.warning("%s cannot be used (%s); fitting the adapter anew", path, error)
    adapter = fit()
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {tensor: value.contiguous() for tensor, value in adapter.tensors().items()},
        partial,
        metadata={"fingerprint": digest, **{k: str(v) for k, v in key.items()}},
    )
    partial.replace(path)
    return adapter
