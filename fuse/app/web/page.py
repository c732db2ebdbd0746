"""The page itself, by Gradio: a tab for each goal, the prompt as it grows, what the run leaves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from fuse.app.places import here
from fuse.app.web.asking import QUESTIONS, answer, as_html
from fuse.app.web.files import MAX_FILE_BYTES, picture_of
from fuse.app.web.panel import CSS, Panel
from fuse.app.web.searching import (
    CAPTION,
    ELICIT,
    INVERT,
    MAX_SECONDS,
    Searching,
    Wanted,
)
from fuse.app.web.texts import MAX_TEXT
from fuse.app.web.visitors import MAX_WAITING, NONE, Shown, Visitors
from fuse.errors import FuseError
from fuse.registry import METHODS, STRATEGIES

PICTURES = ("house", "boat", "cat")


class Page:
    """Lays out what visitors see.

    Args:
        searching: makes their searches.
    """

    def __init__(self, searching: Searching) -> None:
        self._visitors = Visitors(searching)

    def leave(self, request: gr.Request) -> None:
        """End the searches of a visitor who has closed the page."""
        self._visitors.stop(_session(request))

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
            blocks.unload(self.leave)
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
            with told():
                yield from self._visitors.find(Wanted(goal, **given), other, _session(request))

        def end(request: gr.Request) -> None:
            self._visitors.stop(_session(request), goal)

        other.change(lambda name: gr.Column(visible=name != NONE), other, second, api_name=False)
        inputs = list(fields.values())
        start.click(find, inputs, outputs, api_name=goal, concurrency_limit=None)
        stop.click(end, None, None, api_name=f"stop_{goal}", queue=False)


def _session(request: gr.Request) -> str:
    """Return the name of a visitor's session."""
    return str(request.session_hash)


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
    """Open the page, and return it. No font or script of another host is asked for.

    What visitors give lies in a folder of its own: a server of Gradio that ends removes what it was
    given, and with it the like files of all that share its folder.
    """
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="fuse-uploads-")
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
