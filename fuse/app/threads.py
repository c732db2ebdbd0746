"""How many threads torch computes with: those that are asked for, or the quickest in a trial."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path

import torch

from fuse.app.run_folder import RESULT, read_json
from fuse.search.search import Search

log = logging.getLogger(__name__)

NUM_TRIALS = 2
"""How often each number is timed; the shorter time counts."""
MIN_GAIN = 1.05
"""How many times as quick more threads have to be."""


def set_threads(value: int | str | None) -> None:
    """Let torch compute with so many threads; None or auto for its own number."""
    own = _torchs_own()
    torch.set_num_threads(value if isinstance(value, int) else own)


def set_quickest(search: Search, folder: Path) -> None:
    """Let torch compute with as many threads as make the first step of a search quickest.

    Args:
        folder: of the run. One that goes on there keeps to what was chosen.
    """
    chosen = _chosen_before(folder)
    if chosen is None:
        counts = _counts()
        _seconds_of_a_step(search, counts[0])  # what is remembered of texts is so in every trial
        chosen = quickest(counts, partial(_seconds_of_a_step, search))
        search.clear()
    torch.set_num_threads(chosen)


def quickest(counts: Sequence[int], measure: Callable[[int], float]) -> int:
    """Return the number of threads that takes the shortest time, or a smaller one that hardly
    takes longer.
    """
    seconds = {}
    for count in counts if len(counts) > 1 else ():
        seconds[count] = min(measure(count) for _ in range(NUM_TRIALS))
    limit = MIN_GAIN * min(seconds.values(), default=0.0)
    chosen = next((count for count in counts if seconds.get(count, 0.0) <= limit), counts[0])
    told = ", ".join(f"{count}: {took:.3f} s" for count, took in seconds.items())
    log.info("threads=auto: %d (%s)", chosen, told or "there is one core")
    return chosen


@cache
def _torchs_own() -> int:
    """Return how many threads torch takes before anyone says how many."""
    return torch.get_num_threads()


def _counts() -> list[int]:
    """Return what is tried: 1, 2, 4 and so on, and the number of cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})


def _chosen_before(folder: Path) -> int | None:
    """Return what a run had chosen that goes on in a folder; None where there was none."""
    for path in chain(folder.glob(RESULT), folder.glob(f"*/{RESULT}")):
        threads = (read_json(path) or {}).get("threads")
        if isinstance(threads, int):
            return threads
    return None


def _seconds_of_a_step(search: Search, threads: int) -> float:
    """Return how long the first step of a search takes, which changes nothing of it."""
    torch.set_num_threads(threads)
    search.clear()
    began = time.perf_counter()
    state = search.start()
    if not state.ended:
        search.evaluate(state, search.propose(state))
    return time.perf_counter() - began
