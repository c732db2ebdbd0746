"""Fitted adapters on disk: safetensors files, found again by a fingerprint of everything that went into the fit.

A file describes itself: its metadata hold the pair, the corpus, the settings and the measured fidelity. Files may be
copied: a run looks for its adapter in its own folder, then in a shared one or a hub repository, and fits it last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fuse.adapter.base import Adapter, Progress
from fuse.adapter.corpus import corpus_fingerprint, corpus_words, vocabulary_words
from fuse.adapter.fidelity import Fidelity
from fuse.models import Model
from fuse.vocabulary import Vocabulary

log = logging.getLogger(__name__)

Key = dict[str, object]
"""Everything that the fitted tensors depend on."""

FORMAT = "5"
"""Changes whenever a fit of the same inputs would give other tensors."""


def load_or_fit(
    kind: type[Adapter],
    source: Vocabulary,
    target: Model,
    *,
    folder: Path,
    name: str,
    shared: str | None = None,
    corpus: str | None = None,
    settings: dict[str, int | float] | None = None,
    progress: Progress = iter,
    measure: Callable[[Adapter], Fidelity | None] = lambda _: None,
    description: Mapping[str, str] | None = None,
) -> Adapter:
    """The adapter that `folder` keeps for this pair, corpus and settings; else a new one, which is then kept.

    Args:
        name: how the file's name begins.
        shared: a folder, or the id of a hub repository, to look for the file in before anything is fitted.
        corpus: a text file or a `datasets` id, for adapters that are fitted on words; where there is none, or it cannot
            be reached, the words of both vocabularies take its place.
        progress: as `Adapter.fit` takes it.
        measure: tells the fidelity of a new adapter, which is kept with it.
        description: what else the file shall tell of itself, such as the models' names.

    Raises:
        FuseError: a corpus that cannot be used.
    """
    settings = {**kind.defaults, **(settings or {})}
    pair: Key = {"adapter": kind.__name__, "source": source.fingerprint, "target": target.fingerprint, **settings}

    def find(key: Key) -> Adapter | None:
        path, digest = _place(folder, name, key)
        if not path.is_file() and shared:
            path = _shared(shared, path.name) or path
        return load(kind, source, target.vocabulary, path, digest) if path.is_file() else None

    key = pair if corpus is None else {**pair, "corpus": corpus_fingerprint(corpus)}
    adapter = find(key)
    if adapter is not None:
        return adapter
    words = vocabulary_words(source, target.vocabulary) if corpus is None else corpus_words(corpus)
    if words is None:
        words = vocabulary_words(source, target.vocabulary)
        key = pair
        adapter = find(key)
    if adapter is None:
        adapter = kind.fit(source, target, words, progress, **settings)
        adapter.fidelity = measure(adapter)
        path, digest = _place(folder, name, key)
        save(adapter, path, {"fingerprint": digest, **(description or {}), **{k: str(v) for k, v in key.items()}})
    return adapter


def load(kind: type[Adapter], source: Vocabulary, target: Vocabulary, path: Path, fingerprint: str) -> Adapter | None:
    """The adapter of a file, with its fidelity; None, with one line of warning, for a file that cannot be trusted."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                raise ValueError("it belongs to another pair or other settings")
            tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError("it holds numbers that are not finite")
        adapter = kind.from_tensors(source, target, tensors)
        told = metadata.get("fidelity")
        adapter.fidelity = Fidelity(**{k: float(v) for k, v in json.loads(told).items()}) if told else None
        return adapter
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        log.warning("%s cannot be used (%s); fitting the adapter anew", path, error)
        return None


def save(adapter: Adapter, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an adapter's tensors and fidelity, at once or not at all; a warning where that is not possible."""
    told = {**metadata, **({"fidelity": json.dumps(asdict(adapter.fidelity))} if adapter.fidelity else {})}
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: another process may be writing the same adapter
        with NamedTemporaryFile(dir=path.parent, prefix=f"{path.stem}-", suffix=".partial", delete=False) as file:
            partial = Path(file.name)
        save_file({tensor: value.contiguous() for tensor, value in adapter.tensors().items()}, partial, metadata=told)
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        log.warning("%s could not be written (%s); the adapter will be fitted again next time", path, error)
        if partial is not None:
            partial.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask of permissions, which temporary files do not follow."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _place(folder: Path, name: str, key: Key) -> tuple[Path, str]:
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **key}, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}-{digest[:16]}.safetensors", digest


def _shared(place: str, name: str) -> Path | None:
    """The file of this name in a folder or a hub repository; None, where it has none."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder / name
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(place, name))
    except Exception as error:  # the hub's client raises many kinds; each means that there is no such file
        log.warning("adapter.shared=%s: holds no %s, or cannot be reached (%s)", place, name, type(error).__name__)
        return None
