"""Fitted adapters on disk: safetensors files, found again by a fingerprint of all that was fitted.

A file describes itself: its metadata hold the pair, the corpus, the settings and the fidelity at
each point that was measured. Files may be copied: a run looks for its adapter in its own folder,
then in a shared one or a hub repository, and fits it last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fuse.adapters.base import Adapter, Progress
from fuse.adapters.checks import check_shape
from fuse.adapters.corpus import corpus_fingerprint, corpus_words, vocabulary_words
from fuse.adapters.fidelity import Fidelity, mean_fidelity
from fuse.files import write_at_once
from fuse.models import Model
from fuse.nn.embedding_table import POINTS, EmbeddedVocabulary

log = logging.getLogger(__name__)

Key = dict[str, object]
"""Everything that the fitted tensors depend on."""
Measure = Callable[[Adapter, str], Fidelity | None]
"""Measures an adapter's fidelity at a point."""

DEMO = Path(__file__).parent.parent / "demo/gradients"
"""Where those of the demo models are, which come with the package."""
FORMAT = "5"
"""Changes whenever a fit of the same inputs would give other tensors."""
MAX_BYTES = 2**33
"""A larger file was written by no fit."""


def load_or_fit(
    kind: type[Adapter],
    source: EmbeddedVocabulary,
    target: Model,
    *,
    folder: Path,
    name: str,
    shared: str | None = None,
    corpus: str | None = None,
    settings: dict[str, int | float] | None = None,
    progress: Progress = iter,
    measure: Measure = lambda adapter, point: None,
    points: Sequence[str] = ("current",),
    description: Mapping[str, str] | None = None,
) -> Adapter:
    """Return the adapter kept for this pair, corpus and settings; else fit one, and keep it.

    Args:
        folder: where adapters are kept.
        name: how the file's name begins.
        shared: a folder, or the id of a hub repository, to look for the file in before anything is
            fitted.
        corpus: a text file or a `datasets` id, for adapters that are fitted on words; where there
            is none, or it cannot be reached, the words of both vocabularies take its place.
        progress: as `Adapter.fit` takes it.
        measure: measures the fidelity at a point; it is asked for those that are not kept yet.
        points: where the run linearises losses. The adapter's `fidelity` is the mean over them.
        description: what else the file's metadata shall hold, such as the models' names.

    Raises:
        FuseError: a corpus that cannot be used.
    """
    settings = {**kind.defaults(), **(settings or {})}
    models = {"source": source.fingerprint, "target": target.fingerprint}
    without_corpus: Key = {"adapter": kind.__name__, **models, **settings}
    key = without_corpus
    if corpus is not None:
        key = {**key, "corpus": corpus_fingerprint(corpus)}
    files = _Files(folder, name, shared)
    adapter, words = files.find(kind, source, target, key), None
    if adapter is None and corpus is not None:
        words = corpus_words(corpus)
        if words is None:
            key = without_corpus
            adapter = files.find(kind, source, target, key)
    is_new = adapter is None
    if adapter is None:
        words = vocabulary_words(source, target.vocabulary) if words is None else words
        adapter = kind.fit(source, target, words, progress, **settings)
    if _measure_missing(adapter, measure, points) or is_new:
        metadata = {name: str(value) for name, value in key.items()}
        files.save(adapter, key, {**(description or {}), **metadata})
    adapter.fidelity = _mean_over(adapter, points)
    return adapter


def _measure_missing(adapter: Adapter, measure: Measure, points: Sequence[str]) -> bool:
    """Measure the fidelity at points where it is not known; return whether anything was found."""
    found = {}
    for point in points if adapter.ranks else ():
        if point not in adapter.fidelities:
            found[point] = measure(adapter, point)
    known = {point: fidelity for point, fidelity in found.items() if fidelity is not None}
    adapter.fidelities.update(known)
    return bool(known)


def _mean_over(adapter: Adapter, points: Sequence[str]) -> Fidelity | None:
    """Return the mean fidelity over the points where it is known; None where it is at none."""
    return mean_fidelity([adapter.fidelities[p] for p in points if p in adapter.fidelities])


@dataclass(frozen=True)
class _Files:
    """Where one pair's adapters are kept: in a folder of its own, and perhaps in a shared one."""

    folder: Path
    name: str
    shared: str | None

    def path(self, key: Key) -> Path:
        """Return the path in the own folder, which a fingerprint of the key is part of."""
        return self.folder / f"{self.name}-{_fingerprint(key)[:16]}.safetensors"

    def find(
        self, kind: type[Adapter], source: EmbeddedVocabulary, target: Model, key: Key
    ) -> Adapter | None:
        """Return the adapter that was kept under a key; None where there is none, or a bad one."""
        path = self.path(key)
        if not path.is_file() and (DEMO / path.name).is_file():
            path = DEMO / path.name
        if not path.is_file() and self.shared:
            path = _shared(self.shared, path.name) or path
        if not path.is_file():
            return None
        return load(kind, source, target, path, _fingerprint(key))

    def save(self, adapter: Adapter, key: Key, metadata: Mapping[str, str]) -> None:
        """Keep an adapter under a key, in the own folder."""
        save(adapter, self.path(key), {"fingerprint": _fingerprint(key), **metadata})


def _fingerprint(key: Key) -> str:
    return hashlib.sha256(
        json.dumps({"format": FORMAT, **key}, sort_keys=True).encode()
    ).hexdigest()


def _shared(folder_or_id: str, name: str) -> Path | None:
    """Return the file of this name in a folder or a hub repository; None where it has none."""
    folder = Path(folder_or_id).expanduser()
    if folder.is_dir():
        return folder / name
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(folder_or_id, name))
    except Exception as error:  # the hub's client raises many kinds; each means that there is none
        log.warning(
            "adapter.shared=%s: holds no %s, or cannot be reached (%s)",
            folder_or_id, name, type(error).__name__,
        )  # fmt: skip
        return None


def load(
    kind: type[Adapter], source: EmbeddedVocabulary, target: Model, path: Path, fingerprint: str
) -> Adapter | None:
    """Read the adapter of a file, with its fidelities.

    Returns:
        None, with one line of warning, for a file that cannot be trusted, whatever it holds.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                raise ValueError("it belongs to another pair or other settings")
            names = list(file.keys())
            for tensor in names:
                check_shape(tensor, file.get_slice(tensor).get_shape(), source, target.vocabulary)
            tensors = {tensor: file.get_tensor(tensor) for tensor in names}
        adapter = kind.from_tensors(source, target, tensors)
        adapter.fidelities.update(_fidelities(metadata))
    except Exception as error:  # what a damaged file raises depends on the damage
        reason = (str(error) or type(error).__name__).splitlines()[0]
        log.warning("%s cannot be used (%s); fitting the adapter anew", path, reason)
        return None
    return adapter


def _fidelities(metadata: Mapping[str, str]) -> dict[str, Fidelity]:
    """Return the fidelity at each point where it was measured, and came out finite.

    Raises:
        ValueError, TypeError, AttributeError, OverflowError: the metadata hold something else.
    """
    found = {}
    for point in POINTS:
        if _fidelity_key(point) in metadata:
            numbers = json.loads(metadata[_fidelity_key(point)])
            fidelity = Fidelity(**{name: float(value) for name, value in numbers.items()})
            if all(math.isfinite(value) for value in asdict(fidelity).values()):
                found[point] = fidelity
    return found


def _fidelity_key(point: str) -> str:
    """Return the name in the metadata of the fidelity at a point."""
    return "fidelity" if point == "current" else f"fidelity_{point}"


def save(adapter: Adapter, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an adapter's tensors and fidelities, at once or not at all.

    A warning where that is not possible.
    """
    described = dict(metadata)
    for point, fidelity in adapter.fidelities.items():
        described[_fidelity_key(point)] = json.dumps(asdict(fidelity))
    write_tensors(adapter.tensors(), path, described)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, at once or not at all.

    A warning where that is not possible.
    """
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    try:
        write_at_once(path, lambda partial: save_file(contiguous, partial, dict(metadata)))
    except (OSError, SafetensorError) as error:
        log.warning("%s could not be written (%s); what it holds will be made again", path, error)
