"""What mkdocs calls: a line `<!-- registry: METHODS -->` becomes the API of all parts there, and
formulas become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

from fuse import registry

LINE = re.compile(r"^<!-- registry: (\w+) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
"""What pymdownx.arithmatex makes of one: its LaTeX, escaped as HTML."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the parts of the registries that it names."""
    return LINE.sub(lambda found: listed(found[1]), markdown)


def listed(name: str) -> str:
    """Return a line of mkdocstrings for each part of a registry."""
    parts = getattr(registry, name).modules()
    return "\n\n".join(f"::: {module}.{part}" for part, module in parts.items())


def on_page_content(html: str, **_: Any) -> str:
    """Return a page with its formulas as MathML."""
    return FORMULA.sub(as_mathml, html)


def as_mathml(found: re.Match[str]) -> str:
    """Return a formula as MathML; a `div` has a line of its own."""
    return convert(unescape(found[2]), display="block" if found[1] == "div" else "inline")
