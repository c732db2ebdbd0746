"""Texts that visitors type, as the command line takes them."""

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


def quoted(text: str) -> str:
    """Return a value that the command line reads as exactly this text, be it `null` or a list."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
