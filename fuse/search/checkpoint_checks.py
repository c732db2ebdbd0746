"""Checks of the values that a checkpoint file holds, before a search goes on from them.

Each raises ValueError, with what is wrong with the file.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch

from fuse.search.search import Search
from fuse.search.state import SearchState


def check_fields(value: Any) -> None:
    """Check that the fields of a dataclass hold what their annotations say."""
    kind = type(value)
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # names that are imported for type checkers alone
        return
    for field in fields(value):
        if not _fits(getattr(value, field.name), hints[field.name]):
            found = type(getattr(value, field.name)).__name__
            raise ValueError(f"its {kind.__name__}.{field.name} is a {found}")


def check_state(state: Any, search: Search) -> None:
    """Check that a state is one of this search."""
    if not isinstance(state, SearchState):
        raise ValueError(f"it holds a {type(state).__name__} in place of a state")
    if not 0 <= state.stage < len(search.stages):
        raise ValueError(f"its stage is {state.stage}, of {len(search.stages)}")
    for name in ("proposed", "stage_proposed", "step", "evaluations", "num_non_finite"):
        if not 0 <= getattr(state, name) < 2**63:
            raise ValueError(f"its {name} is {getattr(state, name)}")
    if state.operations < 0:
        raise ValueError(f"its operations is {state.operations}")
    torch.Generator().set_state(state.rng.cpu())
    size = len(search.objective.vocabulary)
    rows = [*state.beam, *state.found, *(entry.ids for entry in state.front)]
    rows += [state.best.ids] if state.best else []
    for row in rows:
        if not all(0 <= token < size for token in row):
            raise ValueError("it holds tokens that the primary does not know")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as that can be told."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is float:
        return isinstance(value, int | float)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(inner)
    if isinstance(origin, type):
        return isinstance(value, origin) and _items_fit(value, inner)
    return not isinstance(hint, type) or isinstance(value, hint)


def _items_fit(value: Any, hints: tuple[Any, ...]) -> bool:
    """Whether all items of a collection are what the first hint says; those of a mapping both."""
    if isinstance(value, Mapping):
        keys, values = list(value.keys()), list(value.values())
        return not hints or (_items_fit(keys, hints[:1]) and _items_fit(values, hints[1:]))
    if isinstance(value, Iterable) and hints:
        return all(_fits(item, hints[0]) for item in value)
    return True
