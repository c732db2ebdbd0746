"""Runs find_prompt.py many times in one process: import takes longer than most mistakes.

Reads {name: arguments} as JSON from standard input, and writes {name: [exit code, standard output,
standard error]}.
"""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "find_prompt.py"


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Return how one command line ends."""
    sys.argv = [str(SCRIPT), *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(SCRIPT.parent))
    found = {name: run(arguments) for name, arguments in json.load(sys.stdin).items()}
    json.dump(found, sys.__stdout__)
