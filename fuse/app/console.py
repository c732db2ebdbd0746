"""What a person sees: the progress of a run, its result, and errors in one line.

Nothing else prints.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from errno import EPIPE
from io import TextIOWrapper
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from fuse.errors import one_line

if TYPE_CHECKING:
    from fuse.app.plan import Plan
    from fuse.types import Result

EARLY = {
    "no valid candidate": "no candidate spells itself, fits every model and obeys the constraints",
    "not finite": "no loss or gradient was finite",
    "time_limit": "the time limit is reached",
    "max_evaluations": "as many candidates as were asked for are scored",
}
"""What is said of searches that end before their steps are made."""


MAX_LINE = 2000
"""Characters of one line; of longer ones the middle is left out."""


def clipped(text: str) -> str:
    """Return a text as it may be shown: in one line, without codes that a terminal obeys."""
    shown = one_line(text)
    return shown if len(shown) <= MAX_LINE else f"{shown[: MAX_LINE // 2]} ... {shown[-200:]}"


class _Lenient:
    """Standard error, whose own failure cannot be reported and costs nothing."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class _Warnings(logging.Handler):
    """Shows each record in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        text = f"{record.levelname.lower()}: {clipped(record.getMessage())}"
        errors.print(Text(text), style="yellow", soft_wrap=True)


errors = Console(file=cast(IO[str], _Lenient()), highlight=False)


class _Output(Console):
    """Standard output; a closed pipe is an error like others, and does not end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(EPIPE, "broken pipe")


output = _Output(highlight=False)


def set_up() -> None:
    """Send our warnings to standard error, one line each; let outputs escape what they cannot
    spell.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a full disk is told once, of the results
    logger = logging.getLogger("fuse")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))


def quiet_libraries() -> None:
    """Silence bars of weight loading, advice about tokenizers, and reports of attempts to reach the
    hub.
    """
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def fail(message: str) -> None:
    """Show one line about what went wrong."""
    errors.print(Text(f"error: {clipped(message)}"), style="red", soft_wrap=True)


def announce(name: str) -> None:
    """Show which picture of several comes now."""
    output.print(Text(clipped(name)), style="dim", soft_wrap=True)


def note(message: str) -> None:
    """Show one line that is no error."""
    errors.print(Text(clipped(message)), style="dim", soft_wrap=True)


def fitting(words: Sequence[str]) -> Iterable[str]:
    """Show a bar over the words that an adapter is fitted on."""
    return track(words, "fitting the adapter", console=errors, transient=True) if words else words


def reading(texts: Sequence[str]) -> Iterable[str]:
    """Show a bar over texts of the corpus that a search starts from."""
    return track(texts, "reading the corpus", console=errors, transient=True)


def show(result: Result) -> None:
    """Show the prompt, the total loss and each term's loss."""
    output.print(Text(clipped(result.prompt)), style="bold", soft_wrap=True)
    parts = [f"{name} {term.loss:.4f} x {term.weight:g}" for name, term in result.terms.items()]
    output.print(Text(f"loss {result.loss:.4f} = {' + '.join(parts)}"), soft_wrap=True)
    if result.ended in EARLY:
        note(f"the search ended after step {result.steps}: {EARLY[result.ended]}")
    if result.num_non_finite:
        note(
            f"{result.num_non_finite} candidates were dropped: a loss or a gradient was not finite"
        )


def show_plan(plan: Plan) -> None:
    """Show what a run would load, need and do."""
    table = Table(box=None, pad_edge=False)
    for title in ("model", "of", "is", "weights", "memory", "to fetch"):
        table.add_column(title, overflow="fold", no_wrap=title != "of")
    for model in plan.models:
        numbers = _amount(model.num_weights, ""), _amount(model.memory_bytes, "B")
        cells = (model.key, model.model_id, model.where, *numbers)
        table.add_row(*(Text(clipped(cell)) for cell in cells), _amount(model.fetched_bytes, "B"))
    output.print(table)
    memory = [model.memory_bytes for model in plan.models if model.memory_bytes is not None]
    more = " and more" * (len(memory) < len(plan.models))
    lines = [f"memory: {_amount(sum(memory), 'B')} of weights{more}"]
    lines += [f"adapter for {name}: {state}" for name, state in plan.adapters.items()]
    count = "an unknown number of" if plan.num_searches is None else plan.num_searches
    lines.append(
        f"{plan.method}: {plan.search_width or 'all'} candidates a step, {plan.steps} steps at "
        f"most, {count} search(es)"
    )
    for line in [*lines, *plan.missing]:
        output.print(Text(clipped(line)), soft_wrap=True)


def show_table(rows: Sequence[Sequence[Any]]) -> None:
    """Show a table whose first row is its header."""
    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(Text(clipped(str(title))), overflow="fold")
    for row in rows[1:]:
        cells = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row]
        table.add_row(*(Text(clipped(cell)) for cell in cells))
    output.print(table)


def _amount(number: float | None, unit: str) -> str:
    """Return a large number in a few signs; a question mark for one that is not known."""
    if number is None:
        return "?"
    for sign, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {sign}{unit}"
    return f"{number:g} {unit}".strip()


def show_former(name: str, report: Mapping[str, Any] | None) -> None:
    """Show a result that was there already."""
    announce(f"{name or 'this run'}: done already")
    prompt = clipped(str((report or {}).get("prompt", "")))
    output.print(Text(prompt), style="bold", soft_wrap=True)
