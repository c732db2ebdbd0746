"""Searches while they run: their losses, their speed, and the best prompt of each.

On a terminal they stay in place, elsewhere a plain line comes now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fuse.app.changes import changed_parts
from fuse.app.console import clipped, errors

if TYPE_CHECKING:
    from fuse.types import Step

REFRESHES_A_SECOND = 4
PLAIN_SECONDS = 5.0
"""Between two plain lines of a search."""


class SearchView:
    """One search: called after every step, it keeps what is shown.

    Args:
        name: of the picture, where there are several.
        steps: how many there are at most.
    """

    def __init__(self, name: str, steps: int) -> None:
        self.name = clipped(name)
        self._steps = steps
        self._last: Step | None = None
        self._best: Step | None = None
        self._before = ""
        """The best prompt before the present one."""

    def __call__(self, step: Step) -> None:
        """Take note of one more step."""
        self._last = step
        if self._best is None or step.loss < self._best.loss:
            self._before = "" if self._best is None else self._best.prompt
            self._best = step

    @property
    def bar(self) -> ProgressBar:
        """How many of its steps are made."""
        done = 0 if self._last is None else self._last.step
        return ProgressBar(total=max(1, self._steps), completed=done, width=20)

    @property
    def progress(self) -> str:
        """The step, and how many there are."""
        return f"step {0 if self._last is None else self._last.step}/{self._steps}"

    @property
    def losses(self) -> str:
        """The lowest total, and each term's loss of that prompt."""
        if self._last is None or self._best is None:
            return ""
        terms = ", ".join(f"{name} {loss:.3f}" for name, loss in self._best.terms.items())
        return f"loss {self._last.best_loss:.3f} ({terms})"

    @property
    def speed(self) -> str:
        """Candidates a second."""
        if self._last is None or self._last.seconds <= 0:
            return ""
        return f"{self._last.evaluations / self._last.seconds:,.0f} candidates/s"

    @property
    def prompt(self) -> Text:
        """The best prompt; what has changed since the one before is marked."""
        text = Text("  ")
        if self._best is not None:
            for part, is_new in changed_parts(self._before, self._best.prompt):
                text.append(clipped(part), style="bold green" if is_new else "")
        return text

    @property
    def line(self) -> str:
        """All of it in one plain line."""
        prompt = "" if self._best is None else clipped(self._best.prompt)
        parts = (self.name, self.progress, self.losses, self.speed)
        return f"{', '.join(part for part in parts if part)}: {prompt}"


class PlainView(SearchView):
    """One search, of which a line is shown at its last step, and before as time goes by."""

    def __init__(self, name: str, steps: int) -> None:
        super().__init__(name, steps)
        self._shown = time.monotonic()
        self._waits = False

    def __call__(self, step: Step) -> None:
        super().__call__(step)
        self._waits = True
        if time.monotonic() - self._shown >= PLAIN_SECONDS:
            self.show()

    def show(self) -> None:
        """Show where it stands, if there is anything new."""
        if self._waits:
            self._waits, self._shown = False, time.monotonic()
            errors.print(Text(self.line), soft_wrap=True)


@contextmanager
def shown(
    steps: Mapping[str, int], *, quiet: bool = False, line: Callable[[], str] | None = None
) -> Iterator[Mapping[str, SearchView]]:
    """Show searches, by name, with their numbers of steps, within a context.

    Args:
        quiet: whether nothing is shown at all.
        line: says how far the run is, of which these searches are a part; shown below them on a
            terminal while they run.
    """
    if quiet:
        yield {name: SearchView(name, count) for name, count in steps.items()}
    elif errors.is_terminal:
        views = {name: SearchView(name, count) for name, count in steps.items()}
        live = Live(
            get_renderable=lambda: together(list(views.values()), line() if line else ""),
            console=errors,
            refresh_per_second=REFRESHES_A_SECOND,
        )
        with live:
            try:
                yield views
            finally:
                line = None  # what stays there is the searches' end
    else:
        plain = {name: PlainView(name, count) for name, count in steps.items()}
        try:
            yield plain
        finally:
            for view in plain.values():
                view.show()


def together(views: list[SearchView], line: str = "") -> Group:
    """Return the searches one below the other, each with its prompt in a line of its own, and one
    more line.
    """
    parts: list[Table | Text] = []
    for view in views:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_row(
            *([Text(view.name)] if view.name else []),
            Text(view.progress),
            view.bar,
            Text(view.losses),
            Text(view.speed, style="dim"),
        )
        parts += [table, view.prompt]
    if line:
        parts.append(Text(line, style="dim"))
    return Group(*parts)
