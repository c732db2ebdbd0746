"""Ctrl-C, SIGTERM and SIGHUP, the end of a terminal: a search finishes its step and keeps what it
has found.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP"):
    NAMES[signal.SIGHUP] = "hung up"


class Interrupted(BaseException):
    """A signal came while there was nothing to finish; `code` is the exit code for it."""

    def __init__(self, number: int) -> None:
        super().__init__(NAMES.get(signal.Signals(number), "stopped"))
        self.code = 128 + number


def _without_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """End the process in one line on a signal that comes before there is anything to catch it."""
    if not isinstance(error, Interrupted):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"error: {error} before anything was done\n")
    sys.stderr.flush()
    os._exit(error.code)


class StopRequest:
    """Within this context SIGINT, SIGTERM and SIGHUP ask for a stop instead of breaking off.

    A SIGHUP that is ignored stays so, as `nohup` wants it.

    Outside of a search they raise `Interrupted` at once. During one they set `signal`, and the
    search stops after its step; a second SIGINT ends the process at once.

    Args:
        before_exit: called before the process is ended at once.
    """

    def __init__(self, before_exit: Callable[[], object] = lambda: None) -> None:
        self.signal = 0
        self.searching = False
        self._before_exit = before_exit
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                if NAMES[number] == "hung up" and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._former[number] = signal.signal(number, self._handle)
            sys.excepthook = _without_traceback
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.searching:
            raise Interrupted(number)
        if self.signal and number == signal.SIGINT:
            self._before_exit()
            os._exit(128 + number)
        self.signal = self.signal or number
