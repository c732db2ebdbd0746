"""What a row of the matrix is: a family in a role, how its checkpoint is made and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""The largest difference of numbers that counts as none, relative to the larger of them and 1."""

VERDICTS = ("right", "refused", "wrong", "traceback", "no reference")


@dataclass(frozen=True)
class Family:
    """A family in a role.

    Args:
        build: writes a checkpoint into a folder.
        check: compares what the library makes of a folder with the family's own results.
        tokenizer: which kind of tokenizer the checkpoint has.
    """

    name: str
    role: str
    build: Callable[[Path], None]
    check: Callable[[Path, Findings], None]
    tokenizer: str = ""


class NoReference(Exception):
    """The family's own code does not read the checkpoint: there is no right answer."""


@dataclass
class Findings:
    """What a check has found so far: the largest error of each part, and the fast ways taken."""

    errors: dict[str, float] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    fast_ways: str = ""
    note: str = ""

    def compare(self, part: str, found: Any, expected: Any, place: str = "") -> None:
        """Keep the largest relative difference of two numbers or tensors under a part's name."""
        error = difference(found, expected)
        if not error <= self.errors.get(part, -1.0):
            self.errors[part], self.places[part] = error, place

    def require(self, part: str, ok: bool, place: str) -> None:
        """Note a part as wrong unless `ok`."""
        self.compare(part, 0.0 if ok else float("inf"), 0.0, place)

    @property
    def wrong(self) -> list[str]:
        """The parts whose error is too large."""
        return [part for part, error in self.errors.items() if not error <= TOLERANCE]

    def row(self) -> dict[str, Any]:
        """Return the part of the matrix's row that the check has found."""
        note = self.note
        if self.wrong:
            told = [f"{p} {self.errors[p]:.1e} ({self.places[p]})" for p in self.wrong]
            note = "; ".join([*told, *([note] if note else [])])
        verdict = "wrong" if self.wrong else "right"
        return {
            "verdict": verdict,
            "errors": self.errors,
            "fast ways": self.fast_ways,
            "note": note,
        }


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference, relative to the larger one of the expected numbers and 1."""
    found = torch.as_tensor(found).detach().double().cpu()
    expected = torch.as_tensor(expected).detach().double().cpu()
    if found.shape != expected.shape:
        return float("inf")
    scale = max(1.0, float(_largest(expected)))
    error = float(_largest(found - expected)) / scale
    return error if error == error else float("inf")


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the length of the difference of two tensors, relative to the expected one's."""
    length = expected.double().norm().clamp_min(1e-12)
    error = float((found.double() - expected.double()).norm() / length)
    return error if error == error else float("inf")


def _largest(values: Tensor) -> Tensor:
    return values.abs().max() if values.numel() else torch.zeros(())
