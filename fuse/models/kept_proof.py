"""What a proof at load found of a causal network, kept on disk, so that it is found but once.

A file of JSON holds what was found beside all that it depends on: the network's classes, config and
weights (a sample of each), where it runs, the versions of the libraries and this package's code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import TypeAdapter, ValidationError

from fuse.files import write_at_once

log = logging.getLogger(__name__)

LONG = 1.0
"""Seconds: a quicker proof is made at each start."""
CODE = Path(__file__).parent.parent
"""This package's folder."""


@dataclass(frozen=True)
class Findings:
    """What a causal network showed of itself."""

    num_predicted: int
    """How many tokens it predicts."""
    max_length: int
    """How many tokens its tables of positions have room for."""
    has_eager: bool
    """Whether it can read with eager attention."""
    ways: tuple[str, ...]
    """The names of the fast ways that change no result."""
    no_gradient: str | None
    """Why it has no gradient by embeddings; None if it has one."""


def settle_once(
    folder: Path | None,
    model: Any,
    prove: Callable[[], Findings],
    apply: Callable[[Findings], None],
) -> None:
    """Apply what was kept of a model's network; else prove it, and keep what is found.

    Args:
        folder: where it is kept; None to prove the network each time.
        prove: settles in which ways the model reads.
        apply: settles them as `prove` did when it found this.
    """
    if folder is None:
        prove()
        return
    key = _key(model)
    path = folder / f"proof-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    kept = _read(path, key)
    if kept is not None:
        apply(kept)
        return
    start = time.perf_counter()
    found = prove()
    if time.perf_counter() - start > LONG:
        _write(path, key, found)


def _key(model: Any) -> str:
    """Return what a proof depends on, as JSON."""
    network = model.network
    kinds = {f"{type(part).__module__}.{type(part).__qualname__}" for part in network.modules()}
    facts = {
        "network": type(network).__qualname__,
        "parts": sorted(kinds),
        "config": network.config.to_json_string(),
        "attention": network.config._attn_implementation,
        "weights": model.compute_fingerprint(),
        "where": sorted({f"{weight.device} {weight.dtype}" for weight in network.parameters()}),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "code": _code(),
    }
    return json.dumps(facts, sort_keys=True)


@cache
def _code() -> str:
    """Return a hash of the code that proofs run."""
    digest = hashlib.sha256()
    for folder in ("models", "nn"):
        for path in sorted((CODE / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> Findings | None:
    """Read what was kept; None where there is nothing, or nothing that can be trusted."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["key"] != key:
            raise ValueError("it belongs to another network")
        return TypeAdapter(Findings).validate_python(record["found"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        log.warning("%s cannot be used (%s); proving the network anew", path, reason)
        return None


def _write_record(record: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _write(path: Path, key: str, found: Findings) -> None:
    """Keep what was found; a warning where that is not possible."""
    record = {"key": key, "found": asdict(found)}
    try:
        write_at_once(path, partial(_write_record, record))
    except OSError as error:
        log.warning("%s could not be written (%s); the proof will be made again", path, error)
