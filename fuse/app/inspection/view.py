"""One answer: a table, the figure that goes with it, and what a program reads of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fuse.app import console
from fuse.errors import FuseError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """One answer to a question.

    Args:
        title: what it shows.
        rows: of the table, each with a value for every column.
        draw: draws it on axes of matplotlib; None where there is nothing to draw.
        data: what the JSON file holds; None for the rows.
        size: of the figure, in inches.
    """

    title: str
    rows: Sequence[Row]
    draw: Callable[[Any], None] | None = None
    data: Any = None
    size: tuple[float, float] = (8.0, 4.0)


def show(views: Sequence[View]) -> None:
    """Print the tables."""
    for view in views:
        table = Table(title=Text(view.title), title_justify="left", header_style="bold")
        for name in view.rows[0] if view.rows else ():
            table.add_column(Text(name), overflow="fold")
        for row in view.rows:
            table.add_row(*(Text(cell(value)) for value in row.values()))
        console.output.print(table)


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else console.clipped(str(value))


def write_json(views: Sequence[View], path: Path) -> None:
    """Write all that the views hold.

    Raises:
        FuseError: the file cannot be written.
    """
    found = []
    for view in views:
        data = list(view.rows) if view.data is None else view.data
        found.append({"title": view.title, "data": data})
    _written(path, lambda: path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8"))


def write_png(views: Sequence[View], path: Path) -> None:
    """Draw the views one below the other.

    Raises:
        FuseError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no state, no window
    except ImportError as error:
        raise FuseError(
            f"--png={path}: figures need matplotlib; pip install 'fuse-prompt[views]'"
        ) from error
    drawn = [view for view in views if view.draw is not None]
    heights = [view.size[1] for view in drawn]
    size = max(view.size[0] for view in drawn), sum(heights)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)
    for view, axes in zip(drawn, grid[:, 0], strict=True):
        assert view.draw is not None
        axes.set_title(plain(view.title), fontsize=10, loc="left")
        view.draw(axes)
    _written(path, lambda: figure.savefig(path, dpi=150))


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _written(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FuseError(f"{path}: could not be written ({reason}); choose another file") from error
