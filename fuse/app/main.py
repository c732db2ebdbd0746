"""The entry point: it asks for signals before the imports, which take a while."""

from __future__ import annotations

import os
import sys

from fuse.app.interrupt import Interrupted, StopRequest


def main() -> None:
    """Run; exit with code 2 on a mistake of the user's, 1 where something could not be written, 128
    + signal after one.
    """
    with StopRequest(before_exit=lambda: sys.stderr.write("\x1b[?25h")) as stop:  # the cursor
        from fuse.app import console
        from fuse.app.session import Session

        console.set_up()
        session = Session(stop)
        try:
            from fuse.app.command import run

            run(session)
        except Interrupted as signal:
            session.fail(f"{signal} while no search was at work", signal.code)
            session.say_how_to_resume()
        except BrokenPipeError:  # as in --help | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(session.exit_code)
