"""find_prompt.py in a process of its own, forked from one that has imported all that is not ours:
these imports take longer than most runs.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "find_prompt.py"

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["hydra", "torch", "torch._dynamo", "transformers.modeling_utils", "rich.progress"]
)


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    returncode: int | None
    stdout: str
    stderr: str


def find_prompt(*arguments: str) -> Done:
    """Run find_prompt.py in the root of the repository."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = processes.Process(target=_main, args=(arguments, str(out), str(err)))
        process.start()
        process.join()
        return Done(process.exitcode, out.read_text(), err.read_text())


def _main(arguments: tuple[str, ...], out: str, err: str) -> None:
    """Be the process: its outputs are files, its end is that of the script."""
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), stream)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")
