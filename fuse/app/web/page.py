"""The page itself, by Gradio: a tab for each goal, the prompt as it grows, what the run leaves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from fuse.app.interrupt import StopRequest
from fuse.app.places import here
from fuse.app.web.asking import QUESTIONS, answer, as_html
from fuse.app.web.panel import CSS, Panel
from fuse.app.web.searching import (
    CAPTION,
    ELICIT,
    INVERT,
    MAX_FILE_BYTES,
    MAX_SECONDS,
    Searching,
    Wanted,
    picture_of,
)
from fuse.app.web.texts import MAX_TEXT
from fuse.errors import FuseError
from fuse.registry import METHODS, STRATEGIES

NONE = "none"
"""In place of a second method."""
PICTURES = ("house", "boat", "cat")
MAX_WAITING = 20
"""Visitors that wait for their turn, at most."""
SECONDS_BETWEEN = 0.2
"""Of two looks at a search that go to the browser."""
Shown = tuple[Any, ...]


class Page:
    """Searches of several visitors, one after another.

    Args:
        searching: makes them.
    """

    def __init__(self, searching: Searching) -> None:
        self._searching = searching
        self._stops: dict[str, StopRequest] = {}
        """What ends each visitor's search, by the visitor's session."""

    def find(self, wanted: Wanted, other: str, session: str) -> Iterator[Shown]:
        """Search, with a second method beside the first where one is named, and yield what both
        panels show.

        Raises:
            gr.Error: with what a visitor can mend.
        """
        stop = self._stops[session] = StopRequest()
        both = [wanted] if other == NONE else [wanted, replace(wanted, method=other)]
        panels, looked = [Panel(), Panel()], 0.0
        yield *panels[0].values("reading the models"), *panels[1].values()
        try:
            with told():
                for found in zip_longest(*(self._searching.search(one, stop) for one in both)):
                    for panel, progress in zip(panels, found, strict=False):
                        panel.take(progress)
                    ends = any(progress and progress.archive for progress in found)
                    if ends or time.monotonic() - looked > SECONDS_BETWEEN:
                        looked = time.monotonic()
                        yield *panels[0].values(), *panels[1].values()
        finally:
            self._stops.pop(session, None)

    def stop(self, request: gr.Request) -> None:
        """End the visitor's own search after its step."""
        if str(request.session_hash) in self._stops:
            self._stops[str(request.session_hash)].signal = signal.SIGINT

    def blocks(self) -> gr.Blocks:
        """Return the page."""
        with gr.Blocks(title="FUSE", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.Markdown("# FUSE\nFind text by search, scored by several models.")
            with gr.Tab("Caption a picture"):
                with gr.Row():
                    file = gr.File(label="picture", type="filepath", height=140, scale=3)
                    seen = gr.HTML(visible=False, elem_classes="preview")
                file.change(_preview, file, seen, api_name=False, show_progress="hidden")
                paths = [here(f"images/{name}.png") for name in PICTURES]
                examples = [[path] for path in paths if Path(path).is_file()]
                gr.Examples(examples, [file], cache_examples=False)
                self._search_tab(CAPTION, {"file": file}, "autodan")
            with gr.Tab("Invert an embedding"):
                text = gr.Textbox(label="a text of the meaning", max_length=MAX_TEXT)
                note = "or an embedding of the demo CLIP: .json, .npy or .safetensors"
                file = gr.File(label=note, type="filepath", height=140)
                gr.Examples([["a boat by the sea"]], [text], cache_examples=False)
                self._search_tab(INVERT, {"text": text, "file": file}, "autodan")
            with gr.Tab("Elicit a text"):
                text = gr.Textbox(label="text that the model is to say", max_length=MAX_TEXT)
                gr.Examples([["in the snow."]], [text], cache_examples=False)
                self._search_tab(ELICIT, {"text": text}, "gcg")
            with gr.Tab("Inspect"):
                _inspect_tab()
            blocks.unload(self.stop)
        return blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1)

    def _search_tab(self, goal: str, sources: dict[str, Any], method: str) -> None:
        """Add what all searches have.

        Args:
            sources: the inputs that say what is sought, by the fields of `Wanted`.
            method: the one that is chosen at first.
        """
        names = [name for name in METHODS if name != "caption" or goal == CAPTION]
        fields = dict(sources)
        with gr.Row():
            fields["method"] = gr.Dropdown(names, value=method, label="method")
            other = fields["other"] = gr.Dropdown([NONE, *names], value=NONE, label="compare with")
            plans = ["auto", "greedy", *STRATEGIES]
            fields["strategy"] = gr.Dropdown(plans, value="auto", label="strategy")
        with gr.Row():
            own = 0.0 if goal == ELICIT else 1.0
            fields["fluency"] = gr.Slider(0, 10, own, label="weight of fluency")
            if goal != ELICIT:
                fields["match"] = gr.Slider(0, 50, 10, label="weight of the match")
            fields["seconds"] = gr.Slider(1, MAX_SECONDS, 30, step=1, label="seconds at most")
            fields["seed"] = gr.Number(0, label="seed", precision=0, minimum=0)
        with gr.Row():
            start, stop = gr.Button("Search", variant="primary"), gr.Button("Stop")
        with gr.Row():
            outputs = Panel.outputs()
            with gr.Column(visible=False) as second:
                outputs += Panel.outputs()

        def find(request: gr.Request, *values: Any) -> Iterator[Shown]:
            given = dict(zip(fields, values, strict=True))
            other = given.pop("other")
            yield from self.find(Wanted(goal, **given), other, str(request.session_hash))

        other.change(lambda name: gr.Column(visible=name != NONE), other, second, api_name=False)
        queue = {"concurrency_limit": 1, "concurrency_id": "search"}
        start.click(find, list(fields.values()), outputs, api_name=goal, **queue)
        stop.click(self.stop, None, None, api_name=f"stop_{goal}", queue=False)


@contextmanager
def told() -> Iterator[None]:
    """Tell the visitor what he can mend."""
    try:
        yield
    except FuseError as error:
        raise gr.Error(str(error), print_exception=False, duration=None) from error


def _preview(path: str | None) -> gr.HTML:
    """Return what is shown of a picture as soon as it is given."""
    with told():
        found = picture_of(path) if path else None
    image = Markup('<img src="{}" alt="your picture">').format(found)
    return gr.HTML(image, visible=found is not None)


def _inspect_tab() -> None:
    """Add questions to the embedded models."""

    def ask(question: str, text: str) -> str:
        with told():
            return as_html(answer(question, text))

    question = gr.Radio(list(QUESTIONS), value="tokens", label="question")
    text = gr.Textbox(
        label="text (similar, adapter: several, one a line)", lines=2, max_length=MAX_TEXT
    )
    gr.Examples([["A red house"], ["a dog\na cat\na red house"]], [text], cache_examples=False)
    gr.Button("Ask", variant="primary").click(
        ask, [question, text], gr.HTML(), api_name="inspect", concurrency_limit=1
    )


def launch(searching: Searching | None = None, **options: Any) -> gr.Blocks:
    """Open the page, and return it. No font or script of another host is asked for."""
    page = Page(searching or Searching()).blocks()
    page.launch(
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
        max_file_size=MAX_FILE_BYTES,
        footer_links=["api", "gradio", "settings"],
        show_error=True,
        **options,
    )
    return page
