"""Draw a run as a terminal shows it: python scripts/draw_run.py

Writes docs/images/run.svg: what stands on the screen after some of the steps of the default run.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fuse.app import console  # noqa: E402
from fuse.app.build import build  # noqa: E402
from fuse.app.config import compose  # noqa: E402
from fuse.app.live import SearchView, together  # noqa: E402
from fuse.types import Step  # noqa: E402

STEPS = (3, 6, 16)
"""After which the screen is drawn."""
WIDTH = 96
FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""That rich names: they would be fetched from another host."""


def drawn() -> str:
    """Run the default search, and return its drawing."""
    console.quiet_libraries()
    screen = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    screen.print(Text("$ python find_prompt.py", style="bold"))
    search = build(compose([]))
    view = SearchView("", search.most_steps)

    def show(step: Step) -> None:
        view(step)
        if step.step in STEPS:
            screen.print(together([view]))

    result = replace(search, on_step=show).run()
    screen.print(Text(result.prompt.strip(), style="bold"))
    return FONTS.sub("", screen.export_svg(title="", theme=MONOKAI, unique_id="run"))


if __name__ == "__main__":
    path = ROOT / "docs/images/run.svg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(drawn())
