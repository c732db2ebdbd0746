"""What a person sees: the progress of a run, its result, and errors in one line. Nothing else prints."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, track
from rich.text import Text

if TYPE_CHECKING:
    from fuse.types import Result, Step

errors = Console(stderr=True, highlight=False)
output = Console(highlight=False)


def set_up() -> None:
    """Our warnings to standard error, one line each; silence for the chatter of the libraries below."""
    handler = RichHandler(console=errors, show_time=False, show_path=False, markup=False)
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("fuse")
    if not any(isinstance(h, RichHandler) for h in logger.handlers):
        logger.addHandler(handler)


def quiet_libraries() -> None:
    """No weight-loading bars, no advice about tokenizers, no accounts of every attempt to reach the hub."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def fail(message: str) -> None:
    """One line about what went wrong."""
    errors.print(Text(f"error: {message}"), style="red", soft_wrap=True)


def announce(name: str) -> None:
    """Which picture of several comes now."""
    output.print(Text(name), style="dim", soft_wrap=True)


def fitting(words: Sequence[str]) -> Iterable[str]:
    """A bar over the words that an adapter is fitted on."""
    return track(words, "fitting the adapter", console=errors, transient=True) if words else words


class SearchBar:
    """A bar with the step, the best loss and the best text so far."""

    def __init__(self, progress: Progress, name: str, steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name or "step", total=steps, loss="", prompt="")
        self._best: Step | None = None

    def __call__(self, step: Step) -> None:
        """Show one more step."""
        if self._best is None or step.loss < self._best.loss:
            self._best = step
        self._progress.update(self._task, completed=step.step, loss=f"{step.best_loss:.3f}", prompt=self._best.prompt)


@contextmanager
def search_bars(steps: Mapping[str, int]) -> Iterator[dict[str, SearchBar]]:
    """The bars of searches, by name, with their numbers of steps."""
    columns = (
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("best loss {task.fields[loss]}"),
        TextColumn("{task.fields[prompt]}", markup=False),
    )
    with Progress(*columns, console=errors) as progress:
        yield {name: SearchBar(progress, name, count) for name, count in steps.items()}


def show(result: Result) -> None:
    """The prompt, the total loss and each term's loss."""
    output.print(Text(result.prompt), style="bold", soft_wrap=True)
    parts = [f"{name} {term.loss:.4f} x {term.weight:g}" for name, term in result.terms.items()]
    output.print(Text(f"loss {result.loss:.4f} = {' + '.join(parts)}"), soft_wrap=True)
