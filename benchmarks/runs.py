"""What the benchmarks share: runs of the command line's own configuration in this process, and
tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from fuse import Result, Search  # noqa: E402
from fuse.app import console  # noqa: E402
from fuse.app.build import build  # noqa: E402
from fuse.app.config import compose  # noqa: E402
from fuse.app.terms import Models  # noqa: E402

Row = dict[str, Any]


def arguments(description: str | None, **options: dict[str, Any]) -> argparse.Namespace:
    """The command line of a benchmark: its own options, `--threads` and `--json FILE`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    parser.add_argument("--threads", type=int, default=2, help="threads of every model (default 2)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def build_run(*overrides: str, models: Models | None = None) -> Search:
    """The search of `python find_prompt.py OVERRIDES`, not yet begun."""
    console.quiet_libraries()
    return build(compose(overrides), models=models)


def find(*overrides: str, models: Models | None = None) -> Result:
    """What `python find_prompt.py OVERRIDES` finds; models that an earlier call put into `models`
    are not loaded again.
    """
    return build_run(*overrides, models=models).run()


def mean(values: Sequence[float]) -> float:
    """The average; nan of nothing."""
    return sum(values) / len(values) if values else float("nan")


def show(title: str, rows: Sequence[Row], file: Path | None, **more: Any) -> None:
    """Print rows as a table; write them as {"rows": [...]} too, if there is a file, and `more`."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(
            *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())
        )
    Console(width=160).print(table)
    if file is not None:
        file.write_text(json.dumps({"rows": rows, **more}, indent=2) + "\n")
