"""How a language model goes on from a text: greedily, and by sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fuse.app.inspection.continuing import Continuing, Shaping
from fuse.app.inspection.view import View, plain
from fuse.types import Ids

GREEDY = Shaping(temperature=0.0)


def generate(
    reader: Continuing,
    text: str,
    length: int,
    count: int,
    shaping: Shaping,
    generator: torch.Generator,
) -> list[View]:
    """Show the greedy continuation of a text, and some that are drawn.

    Args:
        length: tokens of a continuation, at most; it ends where the model ends a text.
        count: how many are drawn.
    """
    start = reader.ids(text)
    rows: list[dict[str, Any]] = []
    for number in range(1 + count):
        how = f"drawn {number}" if number else "greedy"
        row, log_probs = continued(reader, start, length, shaping if number else GREEDY, generator)
        whole, before = reader.vocabulary.decode([row, start]) if start else ("", "")
        if not start:
            whole = reader.vocabulary.decode([row])[0]
        mean = sum(log_probs) / len(log_probs) if log_probs else None
        new = whole.removeprefix(before)
        rows.append({"how": how, "continuation": new, "tokens": len(log_probs), "mean log p": mean})

    def draw(axes: Any) -> None:
        values = [row["mean log p"] or 0.0 for row in rows]
        axes.barh(range(len(rows)), values, color="#4c78a8")
        labels = [plain(f"{row['how']}: {row['continuation'][:60]}") for row in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("mean log p of a token", fontsize=8)

    return [View(f"After {text!r}", rows, draw, size=(9.0, 0.9 + 0.3 * len(rows)))]


def continued(
    reader: Continuing,
    start: Ids,
    length: int,
    shaping: Shaping,
    generator: torch.Generator,
) -> tuple[Ids, Sequence[float]]:
    """Return a row with its continuation, and the model's log p of each token that was added."""
    row = start
    found: list[float] = []
    while len(found) < length and len(row) < reader.room:
        log_probs = reader.log_probs(row)
        token = int(shaping.apply(log_probs, row).multinomial(1, generator=generator))
        if token in reader.ends:
            break
        row = (*row, token)
        found.append(float(log_probs[token]))
    return row, found
