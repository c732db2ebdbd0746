"""Whether a run survives what may happen to it: kill -9, SIGTERM, Ctrl-C, a full disk, losses of
nan, a failing search.

killed: a run is killed at a random moment (every second one within a write), resumed, and compared
with an uninterrupted one: the trace but for its seconds, evaluations included, and the result.
terminated, interrupted: the same after a signal, which has to leave a result, say in one line how
to go on, and exit with 128 + signal. The others check that the result goes where it still can.

    python benchmarks/faults.py --kills 50 --signals 25 --threads 1 --jobs 2
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import ROOT, Row, arguments, show

CASES = {
    "gcg": ["method=gcg", "steps=24", "method.search_width=64"],
    "autodan, beam": ["method=autodan", "steps=16"],
    "uniform_cost": ["method=random", "strategy=uniform_cost", "steps=30"],
    "pez": ["method=pez", "steps=60"],
    "embedding": ["method=embedding", "label=the", "steps=24"],
    "refine": ["method=autodan", "refine=gcg", "steps=24", "refine.search_width=48"],
    "folder": [
        "image={pictures}",
        "batch_images=2",
        "method=gcg",
        "steps=14",
        "method.search_width=32",
    ],
}
PICTURES = ("boat", "cat", "house")
TRACEBACK = "Traceback"


@dataclass(frozen=True)
class Outcome:
    """What a run left: for each picture its trace without seconds, and its prompt, loss and count
    of evaluations.
    """

    traces: dict[str, list[dict[str, Any]]]
    results: dict[str, tuple[Any, ...]]


def main() -> None:
    options = arguments(
        __doc__,
        kills={"type": int, "default": 50, "help": "runs that are killed, over all cases"},
        signals={"type": int, "default": 25, "help": "runs for each of SIGTERM and Ctrl-C"},
        cases={"nargs": "+", "default": list(CASES), "choices": list(CASES)},
        jobs={"type": int, "default": 1, "help": "runs at once"},
        seed={"type": int, "default": 0},
    )
    counts = {"killed": options.kills, "terminated": options.signals}
    counts["interrupted"] = options.signals
    tasks = [(kind, number) for kind, count in counts.items() for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), options.threads)

        def attempt(task: tuple[str, int]) -> tuple[str, str, str]:
            kind, number = task
            case = options.cases[number % len(options.cases)]
            rng = random.Random(f"{options.seed} {kind} {number}")
            fault = world.broken_off(case, kind, rng, within_write=number % 2 == 1)
            print(f"{kind} {case}: {fault or 'right'}", file=sys.stderr, flush=True)
            return kind, case, fault

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(world.reference, options.cases))
            tried = list(pool.map(attempt, tasks))
        faults: dict[tuple[str, str], list[str]] = {}
        for kind, case, fault in tried:
            faults.setdefault((kind, case), []).append(fault)
        rows = [row(kind, case, found) for (kind, case), found in faults.items()]
        for name, check in OTHERS.items():
            rows.append(row("other", name, [check(world)]))
    show("faults", rows, options.json)
    if any(one["right"] < one["runs"] for one in rows):
        raise SystemExit(1)


def row(kind: str, case: str, faults: list[str]) -> Row:
    """Return one line of the table; an empty fault is a run that came out right."""
    wrong = [fault for fault in faults if fault]
    first = wrong[0] if wrong else ""
    return {
        "what": kind,
        "case": case,
        "runs": len(faults),
        "right": len(faults) - len(wrong),
        "first fault": first,
    }


class World:
    """A folder for runs, and what uninterrupted ones leave."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        for name in PICTURES:
            (self.pictures / f"{name}.png").write_bytes((ROOT / f"images/{name}.png").read_bytes())
        self._references: dict[str, tuple[Outcome, float]] = {}
        self._numbers = itertools.count(1)

    def new_folder(self) -> Path:
        return self.folder / f"run{next(self._numbers)}"

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a run."""
        command = [sys.executable, str(ROOT / "find_prompt.py"), *arguments]
        settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, text=True, cwd=ROOT, env=self.environment, **settings)

    def finish(self, *arguments: str, **options: Any) -> tuple[int, str, str]:
        """Run to the end; return the exit code, standard output and standard error."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=900)
        return process.returncode, out or "", err or ""

    def arguments(self, name: str) -> list[str]:
        return [text.replace("{pictures}", str(self.pictures)) for text in CASES[name]]

    def reference(self, name: str) -> tuple[Outcome, float]:
        """Return what an uninterrupted run leaves, and how many seconds passed from its first step
        to its last.
        """
        if name not in self._references:
            folder = self.new_folder()
            code, _, err = self.finish(*self.arguments(name), f"hydra.run.dir={folder}")
            if code:
                raise SystemExit(f"{name}: an uninterrupted run ended with {code}: {err}")
            seconds = sum(
                json.loads(path.read_text())["seconds"] for path in folder.rglob("result.json")
            )
            self._references[name] = outcome(folder), seconds / (2 if name == "folder" else 1)
        return self._references[name]

    def broken_off(
        self, name: str, kind: str, rng: random.Random, within_write: bool = False
    ) -> str:
        """Break a run off at a random moment and resume it; return what is wrong, if anything.

        Args:
            within_write: after that moment, wait until a file is being written.
        """
        wanted, seconds = self.reference(name)
        folder = self.new_folder()
        number = {
            "killed": signal.SIGKILL,
            "terminated": signal.SIGTERM,
            "interrupted": signal.SIGINT,
        }[kind]
        process = self.start(*self.arguments(name), f"hydra.run.dir={folder}")
        while process.poll() is None and not list(folder.rglob("trace.jsonl")):
            time.sleep(0.01)
        time.sleep(rng.random() * seconds)
        while within_write and process.poll() is None and not half_written(folder):
            time.sleep(0.0002)
        over = process.poll() is not None
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        if kind != "killed" and not over and process.returncode != 0:
            fault = after_signal(folder, err, process.returncode, 128 + number)
            if fault:
                return fault
        if not complete_files(folder):
            return "a file is not whole"
        code, _, err = self.finish(f"resume={folder}")
        if code or TRACEBACK in err:
            return f"the resumed run ended with {code}: {err[-300:]}"
        return compare(outcome(folder), wanted)


def after_signal(folder: Path, err: str, code: int, expected: int) -> str:
    """Return what is wrong with how a run answered a signal."""
    results = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    if code != expected:
        return f"exit code {code}, expected {expected}"
    if TRACEBACK in err:
        return "a traceback"
    if not results:
        return "no result"
    if not any("resume=" in line for line in err.splitlines()):
        return "no line that says how to go on"
    if any(result["status"] not in ("interrupted", "done") for result in results):
        return "status " + ", ".join(result["status"] for result in results)
    return ""


def complete_files(folder: Path) -> bool:
    """Whether all JSON files can be read."""
    try:
        for path in [*folder.rglob("*.json")]:
            json.loads(path.read_text())
    except ValueError:
        return False
    return True


def half_written(folder: Path) -> bool:
    """Whether a file stands under the name that it has before it is renamed into place."""
    return any(folder.rglob(".*.json.*")) or any(folder.rglob(".*.safetensors.*"))


def outcome(folder: Path) -> Outcome:
    """Read what a run left."""
    traces, results = {}, {}
    for path in sorted(folder.rglob("trace.jsonl")):
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        for step in steps:
            del step["seconds"]
        traces[path.parent.name if path.parent != folder else ""] = steps
    for path in sorted(folder.rglob("result.json")):
        result = json.loads(path.read_text())
        keys = (
            "status",
            "prompt",
            "free_ids",
            "loss",
            "initial_loss",
            "evaluations",
            "steps",
            "found",
            "ended",
        )
        results[path.parent.name if path.parent != folder else ""] = tuple(
            result[key] for key in keys
        )
    return Outcome(traces, results)


def compare(found: Outcome, wanted: Outcome) -> str:
    """Return where a resumed run differs from an uninterrupted one."""
    if found.traces.keys() != wanted.traces.keys():
        return f"traces of {sorted(found.traces)}"
    for name, steps in wanted.traces.items():
        own = found.traces[name]
        for i, (a, b) in enumerate(zip(own, steps, strict=False)):
            if a != b:
                keys = [key for key in b if a[key] != b[key]]
                return f"{name} step {i + 1}: {keys[0]} {a[keys[0]]} instead of {b[keys[0]]}"
        if len(own) != len(steps):
            return f"{name}: {len(own)} steps instead of {len(steps)}"
    if found.results != wanted.results:
        return "another result"
    return ""


# --- what else may happen
# --------------------------------------------------------------------------------------------


def full_disk(world: World) -> str:
    """A run folder on a small file system that is full from the start, or fills up."""
    disk = world.folder / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        return "could not be tried: no right to mount a file system"
    try:
        code, out, err = world.finish(
            "method=gcg", "steps=12", "method.search_width=32", f"hydra.run.dir={disk / 'run'}"
        )
        lines = [line for line in err.splitlines() if "could not be written" in line]
        if not out.strip() or code == 0 or TRACEBACK in err or not lines:
            return f"code {code}, {len(lines)} lines, {err[-200:]}"
        return "" if complete_files(disk) else "a file is not whole"
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def file_in_its_place(world: World) -> str:
    """A file where the run folder should be."""
    path = world.new_folder()
    path.write_text("a file")
    code, out, err = world.finish("steps=2", f"hydra.run.dir={path}")
    right = out.strip() and code != 0 and TRACEBACK not in err and "could not be written" in err
    return "" if right and path.read_text() == "a file" else f"code {code}: {err[-300:]}"


def full_output(world: World) -> str:
    """Standard output on a full device."""
    folder = world.new_folder()
    with Path("/dev/full").open("w") as full:
        code, _, err = world.finish("steps=2", f"hydra.run.dir={folder}", stdout=full)
    right = (folder / "result.json").exists() and code != 0 and TRACEBACK not in err
    return "" if right and len(err.strip().splitlines()) <= 2 else f"code {code}: {err[-300:]}"


def closed_output(world: World) -> str:
    """No standard output at all."""
    folder = world.new_folder()
    command = f'exec "{sys.executable}" "{ROOT}/find_prompt.py" steps=2 hydra.run.dir={folder} >&-'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, env=world.environment
    )
    right = (
        (folder / "result.json").exists() and done.returncode != 0 and TRACEBACK not in done.stderr
    )
    return "" if right else f"code {done.returncode}: {done.stderr[-300:]}"


def nan_weights(world: World) -> str:
    """A language model all of whose losses are nan."""
    folder = world.folder / "broken-lm"
    if not folder.exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = ROOT / "fuse/demo/lm"
        network = AutoModelForCausalLM.from_pretrained(source)
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(float("nan"))
        network.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    options = [
        f"primary.model_id={folder}",
        "method=gcg",
        "steps=3",
        "secondary=[]",
        "method.search_width=16",
    ]
    code, _, err = world.finish(*options, f"hydra.run.dir={world.new_folder()}")
    lines = [line for line in err.strip().splitlines() if "error" in line]
    right = (
        code != 0
        and TRACEBACK not in err
        and len(lines) == 1
        and "primary" in lines[0]
        and "finite" in lines[0]
    )
    return "" if right else f"code {code}: {err[-300:]}"


def one_fails(world: World) -> str:
    """An error, of a kind that nobody foresaw, in one of three searches side by side."""
    import torch

    import fuse

    lm = fuse.CausalLM.load(str(ROOT / "fuse/demo/lm"))

    class Failing(fuse.GCG):
        def propose(self, state: Any, beam: Any, guide: Any, rng: torch.Generator) -> Any:
            if len(guide.fault) == 3:
                raise ZeroDivisionError("on purpose")
            guide.fault.append(1)
            return super().propose(state, beam, guide, rng)

    def searches(method: type) -> list[Any]:
        found = []
        for i in range(3):
            objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
            kind = method if i == 1 else fuse.GCG
            search = fuse.Search(objective, kind(search_width=16, steps=5))
            search.guide.fault = []
            found.append(search)
        return found

    alone = [search.run() for search in searches(fuse.GCG)]
    together = fuse.search_together(searches(Failing))
    if not isinstance(together[1], ZeroDivisionError):
        return f"the second ended with {together[1]!r}"
    for i in (0, 2):
        if not isinstance(together[i], fuse.Result) or together[i].free_ids != alone[i].free_ids:
            return f"search {i} found {together[i]!r}"
        if together[i].evaluations != alone[i].evaluations:
            return f"search {i} counts {together[i].evaluations} evaluations"
    return ""


def begun_together(world: World) -> str:
    """Two runs that begin in one second, each with its own folder."""
    where = world.new_folder()
    where.mkdir()
    command = [sys.executable, str(ROOT / "find_prompt.py"), "steps=1"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(command, cwd=where, env=world.environment, **pipes) for _ in range(2)]
    codes = [process.wait() for process in both]
    count = len(list(where.rglob("result.json")))
    return "" if codes == [0, 0] and count == 2 else f"{count} results, codes {codes}"


OTHERS: dict[str, Callable[[World], str]] = {
    "full disk": full_disk,
    "a file in the folder's place": file_in_its_place,
    "full standard output": full_output,
    "closed standard output": closed_output,
    "weights of nan": nan_weights,
    "one of three searches fails": one_fails,
    "two runs in one second": begun_together,
}


if __name__ == "__main__":
    main()
