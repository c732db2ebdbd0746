"""find_prompt.py, in this process or in one of its own."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuse.app.main import main

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "find_prompt.py"

processes = multiprocessing.get_context("forkserver")
"""Forks from a process that has imported all that is not ours: it takes longer than most runs."""
processes.set_forkserver_preload(
    ["hydra", "torch", "torch._dynamo", "transformers.modeling_utils", "rich.progress", "pytest"]
)


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    returncode: int | None
    stdout: str
    stderr: str


def find_prompt(*arguments: str, folder: Path = ROOT) -> Done:
    """Run the command in this process; afterwards logging and hooks are as they were.

    Args:
        folder: its working directory.
    """
    out, err = io.StringIO(), io.StringIO()
    level = logging.root.level
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(logging.root, "handlers", list(logging.root.handlers))
        code = None
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            logging.root.setLevel(level)
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


class OwnProcess:
    """find_prompt.py in a process of its own, which begins at once.

    Args:
        folder: its working directory.
        stdout: the file that it writes to; None: one whose text `join` returns.
    """

    def __init__(self, *arguments: str, folder: Path = ROOT, stdout: Path | None = None) -> None:
        self._outputs = tempfile.TemporaryDirectory()
        self._out = stdout or Path(self._outputs.name) / "out"
        self._err = Path(self._outputs.name) / "err"
        streams = str(self._out), str(self._err)
        self._process = processes.Process(target=_main, args=(arguments, *streams, str(folder)))
        self._process.start()

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def join(self) -> Done:
        """Wait for its end."""
        self._process.join()
        with self._outputs:
            out = self._out.read_text() if self._out.is_file() else ""
            return Done(self._process.exitcode, out, self._err.read_text())


def _main(arguments: tuple[str, ...], out: str, err: str, folder: str = str(ROOT)) -> None:
    """Be the process: its outputs are files, its end is that of the script."""
    if hasattr(signal, "SIGHUP"):  # heeded, also where the tests outlive their terminal
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), stream)
    os.chdir(folder)
    sys.path.insert(0, str(ROOT))
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")
