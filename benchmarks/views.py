"""Measure what showing a run costs: the live view as a share of the run, the report in seconds.

A frame is drawn four times a second while a search is at work; a note is taken after every step.

    python benchmarks/views.py --threads 1
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from runs import Row, arguments, build_run, show

from fuse.app.live import REFRESHES_A_SECOND, SearchView, together
from fuse.app.report.write import write_page
from fuse.app.run import Job, report
from fuse.app.run_folder import RESULT, RunFolder

REPEATS = 200


def seconds_of(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - began) / repeats


def main() -> None:
    """Run the default search, and measure what is shown of it."""
    options = arguments(__doc__)
    search = build_run()
    state, trace = search.start(), []
    while not state.ended:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
        if state.last is not None:
            trace.append(state.last)
    view = SearchView("", search.most_steps)
    step = sum(seconds_of(lambda one=one: view(one)) for one in trace) / len(trace)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    frame = seconds_of(lambda: terminal.print(together([view])))
    whole = REFRESHES_A_SECOND * frame + len(trace) * step / state.seconds
    rows: list[Row] = [{"what": "live view", "seconds": whole * state.seconds, "share": whole}]
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path), [])
        job = Job(search, folder, {"method": "autodan"})
        folder.write_json(RESULT, report(search.result(state, trace), job, "done"))
        for one in trace:
            folder.append(one)
        page = seconds_of(lambda: write_page(folder, search, state), 1)
    rows.append({"what": "report.html", "seconds": page, "share": page / state.seconds})
    show(f"Of a run of {state.seconds:.1f} s", rows, options.json)


if __name__ == "__main__":
    main()
