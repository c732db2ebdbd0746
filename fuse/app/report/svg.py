"""Plots as SVG without scripts; their colours are those of the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from fuse.app.report.inside import Point

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
"""Room for the axes' labels."""
MAX_POINTS = 2000
"""Of a plot; of more, some are left out evenly."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from about `low` to `high`."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """Two axes, and from numbers to places.

    Args:
        xs, ys: all numbers that are to have a place.
    """

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self._x, self._y = _range(xs), _range(ys)

    def x(self, value: float) -> float:
        """Return the place of a number from left to right."""
        share = (value - self._x[0]) / (self._x[1] - self._x[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the place of a number from top to bottom."""
        share = (value - self._y[0]) / (self._y[1] - self._y[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def places(self, points: Sequence[Point]) -> str:
        """Return places as SVG has them in a polyline."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    def drawn(self, x_label: str, y_label: str) -> list[str]:
        """Return the axes, their ticks and labels."""
        parts, bottom = [], HEIGHT - BOTTOM
        for value in ticks(*self._y):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="end" x="{LEFT - 5}" y="{y + 3}">{value:.4g}</text>')
        for value in ticks(*self._x):
            parts.append(
                f'<text class="mid" x="{self.x(value)}" y="{bottom + 13}">{value:.4g}</text>'
            )
        centre = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="mid" x="{centre}" y="{HEIGHT - 4}">{escape(x_label)}</text>')
        if y_label:
            at = f'transform="rotate(-90)" x="{-(TOP + bottom) / 2}" y="9"'
            parts.append(f'<text class="mid" {at}>{escape(y_label)}</text>')
        return parts


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest number, a little apart where they are equal."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.04 * (high - low) or 0.5 * max(abs(low), 1e-6)
    return low - margin, high + margin


def svg(parts: Sequence[str], label: str, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    name = escape(label)
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">'
    return Markup(head + f"<title>{name}</title>" + "".join(parts) + "</svg>")


def curve(label: str, values: Sequence[float], steps: Sequence[int], best: bool = True) -> Markup:
    """Draw a loss over the steps, and with it the lowest so far.

    Args:
        best: whether the lowest so far is drawn, too.
    """
    points = [p for p in zip(map(float, steps), values, strict=True) if math.isfinite(p[1])]
    axes = Axes([x for x, _ in points], [y for _, y in points])
    parts = axes.drawn("step", "")
    parts.append(f'<polyline class="each" points="{axes.places(points)}"/>')
    if best:
        lowest, so_far = math.inf, []
        for x, y in points:
            lowest = min(lowest, y)
            so_far.append((x, lowest))
        parts.append(f'<polyline class="best" points="{axes.places(so_far)}"/>')
    if len(points) == 1:
        parts.append(_dot(axes, points[0], "mark"))
    return svg(parts, f"{label} by step")


def scatter(points: Sequence[Point], edge: Sequence[Point], found: Point) -> Markup:
    """Draw how likely and how fitting all candidates are, the best compromises, and the result.

    Args:
        edge: the points of `points` that no other one beats.
        found: where the result is.
    """
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    near = _within(points, edge, found)
    axes = Axes([x for x, _ in near], [y for _, y in near])
    parts = axes.drawn("fluency: the primary's loss", "match: the others' loss")
    inside = set(near)
    shown = [p for p in points[::stride] if p in inside]
    dots = "".join(f"M{axes.x(x)} {axes.y(y)}h0" for x, y in shown)
    parts.append(f'<path class="dots" d="{dots}"/>')
    kept = [p for p in edge if p in inside]
    parts.append(f'<polyline class="best" points="{axes.places(kept)}"/>')
    parts.append(_dot(axes, found, "mark"))
    return svg(parts, "fluency against match")


def _within(points: Sequence[Point], edge: Sequence[Point], found: Point) -> list[Point]:
    """Return the points without the worst in either part, which would squeeze all others."""

    def limit(part: int) -> float:
        values = sorted(point[part] for point in points)
        return max(values[int(0.95 * (len(values) - 1))], found[part])

    x, y = limit(0), limit(1)
    return [p for p in [*points, found] if p[0] <= x and p[1] <= y]


def _dot(axes: Axes, point: Point, kind: str) -> str:
    return f'<circle class="{kind}" cx="{axes.x(point[0])}" cy="{axes.y(point[1])}" r="4"/>'
