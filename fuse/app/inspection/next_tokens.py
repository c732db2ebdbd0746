"""The likeliest next tokens of a text, step by step, and what temperature and the like change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fuse.app.inspection.continuing import Continuing, Shaping
from fuse.app.inspection.tokens import shown
from fuse.app.inspection.view import View, plain
from fuse.types import Ids

Ranked = list[tuple[int, float]]
"""Tokens and their probabilities, the likeliest first."""


def next_tokens(
    reader: Continuing, text: str, top_k: int, steps: int, shapings: Mapping[str, Shaping]
) -> list[View]:
    """Show the next token's distribution, and greedy decoding with the runners-up of each step.

    Args:
        shapings: ways to change the distribution, by their names; each is a column.
    """
    row = reader.ids(text)
    log_probs = reader.log_probs(row)
    found = _likeliest(log_probs.exp(), top_k)
    changed = {name: one.apply(log_probs, row) for name, one in shapings.items()}
    rows, mass = [], 0.0
    for rank, (token, p) in enumerate(found):
        mass += p
        cells: dict[str, Any] = {"rank": rank + 1, "token": _spelled(reader, token), "id": token}
        cells |= {"p": p, "cumulative": mass}
        rows.append(cells | {name: float(one[token]) for name, one in changed.items()})

    def draw(axes: Any) -> None:
        _draw_pareto(axes, rows, ["p", *shapings])

    size = (max(5.0, 0.5 * len(rows)), 3.5)
    return [
        View(f"Next token after {text!r}", rows, draw, size=size),
        _step_by_step(reader, row, top_k, steps),
    ]


def _step_by_step(reader: Continuing, row: Ids, top_k: int, steps: int) -> View:
    """Show greedy decoding: each step's likeliest tokens, the first of which is taken."""
    table, data = [], []
    for step in range(steps):
        found = _likeliest(reader.log_probs(row).exp(), top_k)
        spelled = [(_spelled(reader, token), token, p) for token, p in found]
        cells = {str(i + 1): f"{text} {p:.3f}" for i, (text, _, p) in enumerate(spelled)}
        table.append({"step": step + 1, **cells})
        data.append([{"token": text, "id": token, "probability": p} for text, token, p in spelled])
        row = (*row, found[0][0])
        if found[0][0] in reader.ends:
            break
    text = reader.vocabulary.decode([row])[0]
    return View(f"Greedy, step by step: {text}", table, data={"text": text, "steps": data})


def _likeliest(probabilities: Float[Tensor, " v"], top_k: int) -> Ranked:
    best = probabilities.topk(min(top_k, len(probabilities)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _spelled(reader: Continuing, token: int) -> str:
    """Return what a token adds to a text, or its name where it is a special one."""
    texts = reader.vocabulary.token_texts
    text = texts[token] if token < len(texts) else ""
    return shown(text) or str(reader.vocabulary.tokenizer.convert_ids_to_tokens(token))


def _draw_pareto(axes: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Draw a Pareto chart: bars of the probabilities, and a line of the model's own, summed up."""
    width = 0.85 / len(columns)
    for number, name in enumerate(columns):
        places = [i + width * (number - (len(columns) - 1) / 2) for i in range(len(rows))]
        axes.bar(places, [row[name] for row in rows], width, label=plain(name))
    sums = [row["cumulative"] for row in rows]
    axes.plot(range(len(rows)), sums, color="black", marker="o", ms=3, label="cumulative")
    labels = [plain(row["token"]) for row in rows]
    axes.set_xticks(range(len(rows)), labels, rotation=60, ha="right", fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7)
