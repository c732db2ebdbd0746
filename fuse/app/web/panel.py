"""What the page shows of one search."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd
from markupsafe import Markup

from fuse.app.changes import changed_parts
from fuse.app.web.searching import Progress

CSS = """
.report { width: 100%; height: 40rem; border: 0; border-radius: 6px; }
.preview img { max-height: 140px; }
.prompt .label { display: none; } /* the colour tells what is new */
.answer { overflow-x: auto; }
.answer td, .answer th { text-align: left; padding: .2rem .8rem .2rem 0 !important;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
"""


class Panel:
    """Where one search stands."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._before = self._prompt = ""
        self._ended = False
        """Whether its end was shown; its files are gone."""

    @staticmethod
    def outputs() -> list[Any]:
        """Add what `values` fill."""
        with gr.Column():
            return [
                gr.HighlightedText(
                    label="prompt",
                    show_legend=False,
                    color_map={"new": "green"},
                    visible=False,
                    elem_classes="prompt",
                ),
                gr.Textbox(label="losses", interactive=False, lines=2),
                gr.LinePlot(x="step", y="loss", title="best loss", height=200, visible=False),
                gr.File(label="the run folder", interactive=False, visible=False),
                gr.HTML(visible=False),
            ]

    def take(self, progress: Progress | None) -> None:
        """Take note of where it stands; None after its end."""
        if progress is not None:
            self._progress = progress

    def values(self, waiting: str = "") -> tuple[Any, ...]:
        """Return what the outputs show now; what is new since the last time is marked.

        Args:
            waiting: what is said before the first step.
        """
        if self._ended:
            return (gr.skip(),) * 5
        if self._progress is None:
            kinds = gr.LinePlot, gr.File, gr.HTML
            hidden = [kind(visible=False) for kind in kinds]
            return gr.HighlightedText([], visible=False), waiting, *hidden
        view = self._progress.view
        self._before, self._prompt = self._prompt, view.prompt.plain.strip()
        changes = changed_parts(self._before, self._prompt)
        parts = [(part, "new" if new else None) for part, new in changes]
        losses = ", ".join(one for one in (view.progress, view.losses, view.speed) if one)
        curve = pd.DataFrame(self._progress.steps, columns=["step", "loss"])
        archive, report = self._progress.archive, self._progress.report
        self._ended = archive is not None
        return (
            gr.HighlightedText(parts, visible=True),
            losses,
            gr.LinePlot(curve, visible=True),
            gr.File(archive, visible=archive is not None),
            gr.HTML(_framed(report or ""), visible=report is not None),
        )


def _framed(report: str) -> str:
    """Return a page within the page, that runs no script and reaches nothing outside."""
    return Markup('<iframe class="report" title="report" sandbox srcdoc="{}"></iframe>').format(
        report
    )
