"""The beam's history: which prompt came from which, as a line and as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fuse.app.changes import changed_parts
from fuse.app.report.svg import svg
from fuse.types import Step

MAX_TREE_STEPS = 120
"""Of a tree: the last ones."""
STEP_WIDTH, ROW_HEIGHT, MARGIN = 34, 15, 14


@dataclass(frozen=True)
class Ancestor:
    """One prompt on the way to the best one.

    Args:
        row: of the beam after the step; None where it is not in it.
        parts: of the prompt, and whether each has changed.
    """

    step: int
    row: int | None
    prompt: str
    loss: float | None
    parts: list[tuple[str, bool]]


def ancestors(trace: Sequence[Step]) -> list[Ancestor]:
    """Return the prompts through which the best one came, the first one first."""
    if not trace:
        return []
    at = min(range(len(trace)), key=lambda i: (trace[i].loss, i))
    prompt, loss, parent = trace[at].prompt, trace[at].loss, trace[at].parent
    row = next((i for i, own in enumerate(trace[at].beam) if own.prompt == prompt), None)
    found: list[tuple[int, int | None, str, float | None]] = [(trace[at].step, row, prompt, loss)]
    while parent is not None and at > 0:
        at -= 1
        if trace[at].method != trace[at + 1].method or parent >= len(trace[at].beam):
            break  # another method began with the best prompt of the one before
        own = trace[at].beam[parent]
        found.append((trace[at].step, parent, own.prompt, own.loss))
        parent = own.parent
    found.reverse()
    line, before = [], ""
    for number, row, prompt, value in found:
        line.append(Ancestor(number, row, prompt, value, changed_parts(before, prompt)))
        before = prompt
    return line


def tree(trace: Sequence[Step], line: Sequence[Ancestor]) -> Markup | None:
    """Draw the beam after every step, and from which row each of its rows came.

    Args:
        line: the prompts through which the best one came.

    Returns:
        None where no step has a beam of several rows.
    """
    shown = trace[-MAX_TREE_STEPS:]
    num_rows = max((len(step.beam) for step in shown), default=0)
    if num_rows < 2:
        return None
    chosen = {(one.step, one.row) for one in line}
    edges: list[str] = []
    nodes: list[str] = []
    for number, step in enumerate(shown):
        before = shown[number - 1] if number else None
        goes_on = before is not None and before.method == step.method
        for row, own in enumerate(step.beam):
            kind = "line" if (step.step, row) in chosen else "side"
            if goes_on and before and own.parent is not None and own.parent < len(before.beam):
                ends = _places(number - 1, own.parent, "1"), _places(number, row, "2")
                # The chosen line comes last, above all others
                place = len(edges) if kind == "line" else 0
                edges.insert(place, f'<line class="{kind}" {ends[0]} {ends[1]}/>')
            loss = "" if own.loss is None else f"{own.loss:.4f} "
            title = f"<title>step {step.step}: {loss}{escape(own.prompt)}</title>"
            at = _places(number, row, "").replace("x=", "cx=").replace("y=", "cy=")
            nodes.append(f'<circle class="{kind}" {at} r="4">{title}</circle>')
        if len(shown) <= 40 or not number % 10:
            at = _places(number, num_rows, "")
            nodes.append(f'<text class="mid" {at}>{step.step}</text>')
    width = 2 * MARGIN + STEP_WIDTH * (len(shown) - 1)
    height = MARGIN + ROW_HEIGHT * num_rows + 8
    return svg([*edges, *nodes], "the beam, step by step", width, height)


def _places(number: int, row: int, suffix: str) -> str:
    """Return where a row of the beam stands, as SVG attributes."""
    x, y = MARGIN + STEP_WIDTH * number, MARGIN + ROW_HEIGHT * row
    return f'x{suffix}="{x}" y{suffix}="{y}"'
