"""What changed from one prompt to the next."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

PARTS = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")
"""Words and signs, each with the white space before it."""


def changed_parts(before: str, after: str) -> list[tuple[str, bool]]:
    """Return the parts of a prompt, and whether each differs from what stood there before."""
    old, new = PARTS.findall(before), PARTS.findall(after)
    found = []
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if start < end:
            found.append(("".join(new[start:end]), kind != "equal"))
    return found
