"""The command line of `python -m fuse.report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from fuse.app import console
from fuse.app.report.write import pages_of
from fuse.errors import FuseError


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pages of a folder; exit with code 2 on a mistake of the user's."""
    console.set_up()
    parser = argparse.ArgumentParser(
        prog="python -m fuse.report",
        description="Write report.html for a run, and index.html for a folder of runs: a sweep, or "
        "a folder of pictures.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--no-models", action="store_true", help="load none: without what each token is worth"
    )
    parser.add_argument(
        "--word-cloud", action="store_true", help="of the prompts; needs the extra `views`"
    )
    options = parser.parse_args(arguments)
    console.quiet_libraries()
    try:
        written = pages_of(options.folder, models=not options.no_models, words=options.word_cloud)
    except FuseError as error:
        for line in str(error).splitlines():
            console.fail(line)
        sys.exit(2)
    for path in written:
        console.output.print(Text(str(path)), soft_wrap=True)
