"""Whether a run over hundreds of pictures survives kill -9, how quick it is, and whether it grows.

killed: a run over drawn pictures, with files of results in every format, is killed at random
moments (every second time within a write) and begun again, until it ends. At each kill every file
of results is read by those that it is made for (`datasets`, and pycocotools where that is
installed), and holds nothing but lines of the final one; in the end all are those of an undisturbed
run. rate: pictures a minute of one process, searched side by side and one after the other, without
the loading of models. memory: how far the undisturbed run's resident memory rises after its first
pictures.

    python benchmarks/bulk.py --pictures 500 --kills 8 --threads 1
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from growth import resident_megabytes
from runs import ROOT, Row, arguments, show
from world.drawing import draw
from world.scenes import random_scene

from fuse.app.config import compose
from fuse.app.interrupt import StopRequest
from fuse.app.session import Session

OPTIONS = ["steps=3", "formats=[jsonl,csv,coco,imagefolder]", "quiet=true"]
FILES = ("metadata.jsonl", "results.csv", "coco_results.json", "dataset/metadata.jsonl")
FIRST = 20
"""After how many pictures the memory should grow no more."""
MOST_GROWN_MB = 50
WANTED_RATIO = 3
PARTS = ("killed", "rate")


def main() -> None:
    options = arguments(
        __doc__,
        pictures={"type": int, "default": 500},
        kills={"type": int, "default": 8},
        batch={"type": int, "default": 16, "help": "pictures searched side by side"},
        timed={"type": int, "default": 48, "help": "pictures of which the rate is measured"},
        parts={"nargs": "+", "default": list(PARTS), "choices": list(PARTS)},
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        seed={"type": int, "default": 0},
    )
    more = [*OPTIONS, *options.overrides.split()]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        bulk = Bulk(Path(name), [*more, f"batch_images={options.batch}"], options.threads)
        if "killed" in options.parts:
            draw_pictures(bulk.pictures, options.pictures)
            rows += killed_rows(bulk, options.kills, random.Random(options.seed))
        if "rate" in options.parts:
            rows += rate_rows(bulk.folder, options.timed, options.batch, more)
    show(f"{options.pictures} pictures", rows, options.json)
    if any(row["right"] == "no" for row in rows):
        raise SystemExit(1)


def row(what: str, value: float, wanted: str = "", right: bool | None = None) -> Row:
    """Return one line of the table."""
    told = "" if right is None else "yes" if right else "no"
    return {"what": what, "value": value, "wanted": wanted, "right": told}


def draw_pictures(folder: Path, count: int) -> None:
    """Draw scenes that no training saw."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        rng = random.Random(f"picture {number}")
        draw(random_scene(rng, heldout=True), rng).save(folder / f"{number:06d}.png")


# --- killed, and begun again


@dataclass
class Watched:
    """What was seen of a process while it ran: seconds, pictures done and MB of memory."""

    seen: list[tuple[float, int, float]] = field(default_factory=list)

    def at(self, count: int) -> tuple[float, int, float]:
        """Return what was seen when so many pictures were first done."""
        return next(one for one in self.seen if one[1] >= count)


class Bulk:
    """Runs over the pictures in a folder, each a process of its own."""

    def __init__(self, folder: Path, overrides: Sequence[str], threads: int) -> None:
        self.folder = folder
        self.pictures = folder / "pictures"
        self._overrides = [f"data={self.pictures}", *overrides]
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def start(self, run: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "find_prompt.py"), *self._overrides]
        command.append(f"hydra.run.dir={run}")
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL, stderr=log
            )

    def undisturbed(self, run: Path) -> Watched:
        """Run to the end, and watch it."""
        process, watched, began = self.start(run), Watched(), time.monotonic()
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):  # it may have ended meanwhile
                memory = resident_megabytes(process.pid)
                watched.seen.append((time.monotonic() - began, num_done(run), memory))
            time.sleep(1)
        self.check_end(process)
        return watched

    def check_end(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait():
            raise SystemExit(f"code {process.returncode}: {(self.folder / 'log').read_text()}")

    def kill(self, run: Path, rng: random.Random, seconds: float, within_write: bool) -> bool:
        """Kill a run at a random moment within so many seconds of its first new result; say whether
        it had not ended.

        Args:
            within_write: after that moment, wait until a file is being written.
        """
        process, before = self.start(run), num_done(run)
        while process.poll() is None and num_done(run) == before:
            time.sleep(0.5)
        time.sleep(rng.random() * seconds)
        half_written = f".*.{process.pid}"
        while within_write and process.poll() is None and not any(run.glob(half_written)):
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        return process.wait() != 0


def num_done(run: Path) -> int:
    """Return how many pictures have a final result."""
    return sum(b'"status": "done"' in path.read_bytes() for path in run.glob("*/result.json"))


def killed_rows(bulk: Bulk, kills: int, rng: random.Random) -> list[Row]:
    """Compare a run that is killed again and again with an undisturbed one."""
    whole, broken = bulk.folder / "whole", bulk.folder / "broken"
    watched = bulk.undisturbed(whole)
    seconds, total, memory = watched.seen[-1]
    faults, count = [], 0
    for number in range(kills):
        if not bulk.kill(broken, rng, 2 * seconds / (kills + 1), number % 2 == 1):
            break
        count += 1
        faults.append(fault_of(broken, whole, bulk.pictures))
        print(f"kill {count}: {num_done(broken)} done, {faults[-1] or 'right'}", flush=True)
    bulk.check_end(bulk.start(broken))
    faults.append(fault_of(broken, whole, bulk.pictures, final=True))
    wrong = [fault for fault in faults if fault]
    print(*wrong, sep="\n")
    grown = max(one[2] for one in watched.seen) - watched.at(FIRST)[2]
    first, half = watched.at(1)[0], watched.at(total // 2)[0]
    return [
        row("kills", count, f"{kills}", count == kills),
        row("kills after which a file was wrong", len(wrong), "0", not wrong),
        row("seconds of the undisturbed run", seconds),
        row("seconds a picture, second half / first half", (seconds - half) / (half - first)),
        row("MB at the end", memory),
        row(f"MB grown after {FIRST} pictures", grown, f"< {MOST_GROWN_MB}", grown < MOST_GROWN_MB),
    ]


def fault_of(run: Path, whole: Path, pictures: Path, final: bool = False) -> str:
    """Return what is wrong with a run's files of results, if anything.

    Args:
        whole: the undisturbed run.
        final: whether they are to be those of that run.
    """
    for name in FILES:
        path = run / name
        if not path.exists() and not final:
            continue  # killed before the first one was written
        try:
            found, wanted = records(path, pictures), records(whole / name, pictures)
        except Exception as error:  # of whatever reader
            return f"{name}: {type(error).__name__}: {error}"
        if [one for one in wanted if one in found] != found:
            return f"{name}: holds other lines, or in another order"
        if final and path.read_bytes() != (whole / name).read_bytes():
            return f"{name}: differs from that of the undisturbed run"
    return ""


def records(path: Path, pictures: Path) -> list[str]:
    """Return what a file of results holds, as those read it that it is made for."""
    import datasets

    datasets.disable_progress_bars()
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [json.dumps(one) for one in csv.DictReader(file, strict=True)]
    if path.suffix == ".json":
        return [json.dumps(one) for one in coco_results(path, pictures)]
    kind, where = "json", {"data_files": str(path)}
    if path.parent.name == "dataset":
        kind, where = "imagefolder", {"data_dir": str(path.parent)}
    found = []
    with tempfile.TemporaryDirectory() as cache:
        for one in datasets.load_dataset(kind, split="train", cache_dir=cache, **where):
            if "image" in one:
                one["image"] = hash(one["image"].tobytes())
            found.append(json.dumps(one))
    return found


def coco_results(path: Path, pictures: Path) -> list[dict[str, object]]:
    """Return results in COCO's format, as pycocotools takes them up; where it is not installed,
    after the same checks.
    """
    ids = [int(one.stem) for one in sorted(pictures.iterdir())]
    found = json.loads(path.read_text())
    assert all(set(one) == {"image_id", "caption"} for one in found)
    assert len({one["image_id"] for one in found}) == len(found)
    try:
        from pycocotools.coco import COCO
    except ImportError:
        assert {one["image_id"] for one in found} <= set(ids)
        return found
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": one} for one in ids], "annotations": []}
        truth.createIndex()
        taken = truth.loadRes(str(path))
    assert len(taken.anns) == len(found)
    return found


# --- pictures a minute


def rate_rows(folder: Path, count: int, batch: int, overrides: Sequence[str]) -> list[Row]:
    """Measure how many pictures a minute one process makes, side by side and one by one."""
    draw_pictures(folder / "timed", count)
    draw_pictures(folder / "one", 1)
    numbers = itertools.count()
    session = Session(StopRequest())

    def seconds(pictures: str, size: int) -> float:
        config = compose([f"data={folder / pictures}", f"batch_images={size}", *overrides])
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            session.find(config, folder / f"timed{next(numbers)}")
        return time.perf_counter() - began

    seconds("one", 1)  # the models are loaded
    alone, together = (60 * count / seconds("timed", size) for size in (1, batch))
    ratio = together / alone
    return [
        row("pictures a minute, one by one", alone),
        row(f"pictures a minute, {batch} side by side", together),
        row("ratio", ratio, f">= {WANTED_RATIO}", ratio >= WANTED_RATIO),
    ]


if __name__ == "__main__":
    main()
