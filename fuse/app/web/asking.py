"""Questions of visitors to the embedded models: those of `python -m fuse.inspect`."""

from __future__ import annotations

from markupsafe import Markup

from fuse.app.inspection.command import parser
from fuse.app.inspection.view import View, cell
from fuse.app.web.texts import checked_text
from fuse.errors import FuseError

QUESTIONS = {
    "tokens": ["--model", "demo", "demo_clip"],
    "neighbours": [],
    "next": [],
    "generate": [],
    "similar": ["--model", "demo_clip"],
    "adapter": [],
}
"""Each with its options: the embedded models."""
LINES = ("similar", "adapter")
"""Those that are asked about several texts, one a line."""
MAX_LINES = 20


def answer(question: str, text: str) -> list[View]:
    """Answer a question about a text.

    Raises:
        FuseError: there is no such question, or it cannot be answered.
    """
    if question not in QUESTIONS:
        raise FuseError(f"question: expected one of {', '.join(QUESTIONS)}")
    text = checked_text(text, "text")
    texts = [line for line in text.splitlines() if line.strip()] if question in LINES else [text]
    if len(texts) > MAX_LINES:
        raise FuseError(f"text: {len(texts)} lines; expected {MAX_LINES} at most")
    options = parser().parse_args([question, *QUESTIONS[question], "--", *texts])
    return options.answer(options)


def as_html(views: list[View]) -> str:
    """Return tables of answers; all text is escaped."""
    parts = []
    for view in views:
        head = Markup("").join(Markup("<th>{}</th>").format(name) for name in view.rows[0])
        parts.append(Markup("<h3>{}</h3><table><tr>{}</tr>").format(view.title, head))
        for row in view.rows:
            cells = [Markup("<td>{}</td>").format(cell(value)) for value in row.values()]
            parts.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
        parts.append(Markup("</table>"))
    return Markup('<div class="answer">{}</div>').format(Markup("").join(parts))
