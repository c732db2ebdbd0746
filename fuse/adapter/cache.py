"""Fitted adapters on disk: safetensors files, found again by a fingerprint of everything that went into the fit."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fuse.adapter.base import Adapter
from fuse.adapter.corpus import corpus_fingerprint, corpus_words, vocabulary_words
from fuse.vocabulary import Vocabulary

log = logging.getLogger(__name__)

Key = dict[str, object]
"""Everything that the fitted tensors depend on."""

FORMAT = "3"
"""Changes whenever a fit of the same inputs would give other tensors."""


def load_or_fit(
    kind: type[Adapter],
    source: Vocabulary,
    target: Vocabulary,
    *,
    folder: Path,
    name: str,
    corpus: str | None = None,
    settings: dict[str, int | float] | None = None,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> Adapter:
    """The adapter that `folder` keeps for this pair, corpus and settings; else a new one, which is then kept.

    Args:
        name: how the file's name begins.
        corpus: a text file or a `datasets` id, for adapters that are fitted on words; where it cannot be reached, the
            words of both vocabularies take its place, under a key of their own.
        progress: wraps the words, to show how far the fit is.

    Raises:
        FuseError: a corpus that cannot be used.
    """
    settings = {**kind.defaults, **(settings or {})}
    pair: Key = {"adapter": kind.__name__, "source": source.fingerprint, "target": target.fingerprint, **settings}
    key = pair if corpus is None else {**pair, "corpus": corpus_fingerprint(corpus)}
    adapter = _load(kind, source, target, folder, name, key)
    if adapter is not None:
        return adapter
    words = [] if corpus is None else corpus_words(corpus)
    if words is None:
        words = vocabulary_words(source, target)
        key = {**pair, "corpus": "words of both vocabularies"}
        adapter = _load(kind, source, target, folder, name, key)
    if adapter is None:
        adapter = kind.fit(source, target, progress(words), **settings)
        _save(adapter, folder, name, key)
    return adapter


def _place(folder: Path, name: str, key: Key) -> tuple[Path, str]:
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **key}, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}-{digest[:16]}.safetensors", digest


def _load(kind: type[Adapter], source: Vocabulary, target: Vocabulary, folder: Path, name: str, key: Key) -> Adapter | None:
    """The adapter kept under this key; None, with one line of warning, for a file that cannot be trusted."""
    path, digest = _place(folder, name, key)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != digest:
                raise ValueError("it belongs to another pair or other settings")
            tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118
        return kind.from_tensors(source, target, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        log.warning("%s cannot be used (%s); fitting the adapter anew", path, error)
        return None


def _save(adapter: Adapter, folder: Path, name: str, key: Key) -> None:
    path, digest = _place(folder, name, key)
    metadata = {"fingerprint": digest, **{k: str(v) for k, v in key.items()}}
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({tensor: value.contiguous() for tensor, value in adapter.tensors().items()}, partial, metadata=metadata)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        log.warning("%s could not be written (%s); the adapter will be fitted again next time", path, error)
