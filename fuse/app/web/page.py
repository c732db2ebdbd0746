"""The page itself, by Gradio: inputs, the prompt as it grows, the run folder at the end."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import gradio as gr
import pandas as pd

from fuse.app.changes import changed_parts
from fuse.app.places import here
from fuse.app.web.searching import (
    GOALS,
    MAX_PICTURE_BYTES,
    MAX_SECONDS,
    Progress,
    Searching,
    Wanted,
)
from fuse.errors import FuseError
from fuse.registry import METHODS

STRATEGIES = ("auto", "greedy", "beam", "uniform_cost", "anneal", "pareto")
EXAMPLES = ("house", "boat", "cat")
MAX_WAITING = 20
"""Visitors that wait for their turn, at most."""


class Page:
    """Searches of several visitors, one after another.

    Args:
        searching: makes them.
    """

    def __init__(self, searching: Searching) -> None:
        self._searching = searching
        self._stops: dict[str, Event] = {}
        """What ends each visitor's search, by the visitor's session."""

    def find(
        self,
        goal: str,
        picture: str | None,
        text: str,
        method: str,
        strategy: str,
        weight: float,
        seconds: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Search, and yield what is shown after every step.

        Raises:
            gr.Error: with what a visitor can mend.
        """
        stop = self._stops[str(request.session_hash)] = Event()
        wanted = Wanted(goal, picture, text, method, strategy, weight, seconds)
        before = ""
        yield [], "reading the models", None, None
        try:
            for progress in self._searching.search(wanted, stop):
                prompt = progress.view.prompt.plain.strip()
                yield shown(progress, before)
                before = prompt
        except FuseError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            self._stops.pop(str(request.session_hash), None)

    def stop(self, request: gr.Request) -> None:
        """End the visitor's own search after its step."""
        if str(request.session_hash) in self._stops:
            self._stops[str(request.session_hash)].set()

    def blocks(self) -> gr.Blocks:
        """Return the page."""
        with gr.Blocks(title="FUSE", analytics_enabled=False) as blocks:
            gr.Markdown("# FUSE\nFind text by search, scored by several models.")
            with gr.Row():
                with gr.Column():
                    inputs = _inputs()
                    start, stop = gr.Button("Search", variant="primary"), gr.Button("Stop")
                with gr.Column():
                    outputs = [
                        gr.HighlightedText(
                            label="prompt", show_legend=False, color_map={"new": "green"}
                        ),
                        gr.Textbox(label="losses", interactive=False),
                        gr.LinePlot(x="step", y="loss", title="best loss", height=220),
                        gr.File(label="the run folder", interactive=False),
                    ]
            start.click(self.find, inputs, outputs, api_name="find", concurrency_limit=1)
            stop.click(self.stop, None, None, api_name="stop", queue=False)
        return blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def shown(progress: Progress, before: str) -> tuple[Any, ...]:
    """Return what the outputs show of a search."""
    view = progress.view
    prompt = view.prompt.plain.strip()
    parts = [(part, "new" if new else None) for part, new in changed_parts(before, prompt)]
    losses = f"{view.progress}, {view.losses}, {view.speed}"
    curve = pd.DataFrame(progress.steps, columns=["step", "loss"])
    return parts, losses, curve, progress.archive


def _inputs() -> list[Any]:
    goal = gr.Radio(GOALS, value=GOALS[0], label="what is sought")
    picture = gr.File(label="picture", type="filepath")
    gr.Examples(
        [[here(f"images/{name}.png")] for name in EXAMPLES], [picture], cache_examples=False
    )
    text = gr.Textbox(label="meaning, or text to be said", max_length=500)
    with gr.Row():
        method = gr.Dropdown(
            [name for name in METHODS if name != "embedding"], value="autodan", label="method"
        )
        strategy = gr.Dropdown(STRATEGIES, value="auto", label="strategy")
    weight = gr.Slider(0.0, 50.0, value=10.0, label="weight of the picture or meaning")
    seconds = gr.Slider(1, MAX_SECONDS, value=30, step=1, label="seconds at most")
    return [goal, picture, text, method, strategy, weight, seconds]


def launch(searching: Searching | None = None, **options: Any) -> gr.Blocks:
    """Open the page, and return it; nothing but its own files is served."""
    searching = searching or Searching()
    page = Page(searching).blocks()
    page.launch(
        max_file_size=MAX_PICTURE_BYTES,
        allowed_paths=[str(searching.place)],
        show_error=True,
        **options,
    )
    return page
