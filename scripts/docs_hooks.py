"""What mkdocs calls: a line `<!-- registry: METHODS -->` becomes the API of all parts there."""

from __future__ import annotations

import re
from typing import Any

from fuse import registry

LINE = re.compile(r"^<!-- registry: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the parts of the registries that it names."""
    return LINE.sub(lambda found: listed(found[1]), markdown)


def listed(name: str) -> str:
    """Return a line of mkdocstrings for each part of a registry."""
    parts = getattr(registry, name).modules()
    return "\n\n".join(f"::: {module}.{part}" for part, module in parts.items())
