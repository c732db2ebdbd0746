"""Write the README's table of methods and strategies anew, from the registry.

python scripts/readme_tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fuse.registry import METHODS, STRATEGIES  # noqa: E402

START = "| method | greedy |"


def combinations() -> str:
    """Return the table of which methods go with which strategies."""
    lines = [f"{START} {' | '.join(STRATEGIES)} |\n", "|---" * (2 + len(STRATEGIES)) + "|\n"]
    for name in METHODS:
        others = "-" if METHODS[name].greedy_only else "yes"
        lines.append(f"| `{name}` | yes |{f' {others} |' * len(STRATEGIES)}\n")
    return "".join(lines)


def updated(text: str) -> str:
    """Return the README with its table as it should be."""
    start = text.index(START)
    end = text.index("\n\n", start) + 1
    return text[:start] + combinations() + text[end:]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text()))
