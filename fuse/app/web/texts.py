"""Texts that visitors type."""

from __future__ import annotations

from fuse.errors import FuseError

MAX_TEXT = 500
"""Characters that a visitor may type into one field."""


def checked_text(text: str, what: str) -> str:
    """Return a text without the blanks around it.

    Raises:
        FuseError: it is empty, or too long.
    """
    text = text.strip()
    if not text or len(text) > MAX_TEXT:
        raise FuseError(f"{what}: {len(text)} characters; expected 1 to {MAX_TEXT}")
    return text
