"""Run a function in a process of its own, with limits of time and memory."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_SECONDS = 240
MAX_BYTES = 6 << 30
"""How much address space a child may take beyond its parent's."""


def run_in_child(function: Callable[[], dict[str, Any]], log: Path) -> dict[str, Any]:
    """Return what a function returns in a forked child; what it printed goes to a file.

    Where it does not end in time, or its process dies, that is what the answer says: a dict with
    `verdict` and `note`.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _serve(function, writer, log)
    os.close(writer)
    text, ended = _read(reader, child)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if not ended:
        return {"verdict": "traceback", "note": f"took more than {MAX_SECONDS} seconds"}
    if not text:
        return {"verdict": "traceback", "note": f"the process died (status {status})"}
    return dict(json.loads(text))


def _serve(function: Callable[[], dict[str, Any]], writer: int, log: Path) -> None:
    """Run the function in the child, send its answer, and leave without cleaning up."""
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + MAX_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        answer = function()
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _read(reader: int, child: int) -> tuple[str, bool]:
    """Return all that a child sends, and whether it ended in time; one that did not is ended."""
    parts, deadline = [], time.monotonic() + MAX_SECONDS
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            return "", False
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts).decode(), True
        parts.append(part)
