"""Search states on disk: one safetensors file, whose metadata hold all that is no tensor as JSON.

Nothing is unpickled: a state is made of numbers, texts, tensors, tuples, lists, dictionaries, sets,
and dataclasses that stand in the modules of the search's own method and strategy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fuse import types
from fuse.errors import FuseError
from fuse.search import state as state_module
from fuse.search.checkpoint_checks import check_fields, check_state
from fuse.search.search import Search
from fuse.search.state import ScoredLog, SearchState

FORMAT = 2
"""Changes whenever a state of an older version can no longer be read."""
MAX_BYTES = 2**32
"""A larger file was written by no search."""


def to_bytes(states: Mapping[str, SearchState], rounds: int) -> bytes:
    """Return states by name, after so many steps side by side, as the content of a checkpoint file.

    Raises:
        FuseError: a state holds something that cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = {name: _encode(state, tensors) for name, state in states.items()}
    metadata = {"format": str(FORMAT), "rounds": str(rounds), "states": json.dumps(tree)}
    return save(tensors, metadata)


def snapshot(state: SearchState) -> tuple[str, bytes]:
    """Return all that is in a state: equal for equal states, tensors compared bit by bit."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encode(state, tensors))
    return tree, save(tensors)


def names(path: Path) -> set[str]:
    """Return the names of the searches in a checkpoint file; none where there is no such file."""
    if not path.exists():
        return set()
    try:
        _check_size(path)
        with safe_open(path, framework="pt") as file:
            return set(json.loads((file.metadata() or {})["states"]))
    except Exception as error:  # what a damaged file raises depends on the damage
        raise _unreadable(path, error) from error


def read(path: Path, searches: Mapping[str, Search]) -> tuple[int, dict[str, SearchState]]:
    """Return the rounds and the states of a checkpoint file for searches of the same names and
    options.

    Raises:
        FuseError: the file cannot be read, or belongs to other searches.
    """
    try:
        _check_size(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != str(FORMAT):
                raise ValueError("it was written by another version")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        trees = json.loads(metadata["states"])
        if not set(trees) & set(searches):
            raise ValueError(f"it holds the searches {', '.join(sorted(trees))}")
        found = {}
        for name in trees:
            if name in searches:
                found[name] = _Decoder(searches[name], tensors).decode(trees[name])
                check_state(found[name], searches[name])
        return int(metadata["rounds"]), found
    except Exception as error:  # what a damaged file raises depends on the damage
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FuseError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:300]
    return FuseError(f"{path}: cannot be resumed from ({reason}); begin anew in another folder")


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; its tensors go into `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name, "device": value.device.type}
    if isinstance(value, ScoredLog):
        return {"scored": _encode(value.tensors(), tensors)}
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _encode(getattr(value, f.name), tensors) for f in fields(value)}
        return {"class": _class_name(type(value)), "fields": own}
    for kind, name in ((tuple, "tuple"), (list, "list"), (frozenset, "frozenset"), (set, "set")):
        if type(value) is kind:
            items = sorted(value, key=repr) if kind in (set, frozenset) else value
            return {name: [_encode(item, tensors) for item in items]}
    if isinstance(value, Mapping):
        items = [(_encode(k, tensors), _encode(v, tensors)) for k, v in value.items()]
        return {"dict": items}
    raise FuseError(
        f"{type(value).__name__}: cannot be written to a checkpoint; "
        "keep numbers, texts, tensors, tuples, lists, dictionaries or dataclasses in a state"
    )


class _Decoder:
    """From JSON back to values, for one search."""

    def __init__(self, search: Search, tensors: Mapping[str, Tensor]) -> None:
        parts: list[object] = []
        for stage in search.stages:
            parts += [stage.method, stage.strategy]
        self._classes = _classes_beside(parts)
        self._tensors = tensors
        self._device = search.objective.vocabulary.embedding.device

    def decode(self, tree: Any) -> Any:
        """Return the value that was encoded as this."""
        if not isinstance(tree, dict):
            return tree
        if "class" in tree:
            own = {name: self.decode(value) for name, value in tree["fields"].items()}
            value = self._classes[tree["class"]](**own)
            check_fields(value)
            return value
        if "tensor" in tree:
            tensor = self._tensors[tree["tensor"]]
            return tensor if tree["device"] == "cpu" else tensor.to(self._device)
        ((name, content),) = tree.items()
        if name == "scored":
            return ScoredLog.from_tensors({k: v.cpu() for k, v in self.decode(content).items()})
        if name == "dict":
            return {self.decode(key): self.decode(value) for key, value in content}
        kinds = {"tuple": tuple, "list": list, "frozenset": frozenset, "set": set}
        return kinds[name](self.decode(item) for item in content)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _classes_beside(parts: Sequence[object]) -> dict[str, type]:
    """Return the dataclasses in the modules of some objects' classes, and those of a search's own
    state.
    """
    modules = [types, state_module]
    for part in parts:
        modules += [sys.modules[kind.__module__] for kind in type(part).__mro__]
    found = {}
    for module in modules:
        for kind in vars(module).values():
            if isinstance(kind, type) and is_dataclass(kind):
                found[_class_name(kind)] = kind
    return found
