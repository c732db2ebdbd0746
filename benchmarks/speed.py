"""Candidates scored per second beside other libraries: the same random weights, threads pinned
alike, whole steps timed.

Every run is a process of its own. Libraries that need other versions of transformers get
environments of their own, made from the package index on first use. peak_fraction: the operations
of our steps whose result somebody reads, per second, as a share of the speed of a square float32
product on the same threads; what the gradient costs is counted, the optimiser, softmax and
tokenising are not. loss_gap: how far our loss of the peer's result is from what the peer says.
The published FUSE code is not run: it scored 12.5 (GCG) and 20.5 (AutoDAN) candidates a second on
one core of 92 GFLOP/s, and its PEZ took 0.36 s a step; these figures are scaled by the speed of
this machine's product.

On a GPU the case gcg alone is run, of all models of random weights; peak_fraction then counts
products of the type given, and MB are those that torch allocated on the GPU. Where no package index
is at hand, --site names folders that hold the peers' packages (pip install --target).

    python benchmarks/speed.py --tokenizers DIR --quick
    python benchmarks/speed.py --tokenizers DIR --device cuda --dtype bfloat16
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers.measured import clock, forget_peak, peak_megabytes
from random_models import CHAT, LMS, layer_weights, save_clip, save_lm
from runs import Row, arguments, mean, show

PEERS = {
    "nanogcg": ("nanogcg==0.3.0", "transformers==4.47.1"),
    "tropt": ("tropt==0.1.1", "transformers==5.8.1"),
}
PUBLISHED_GFLOPS = 92.0
PREFIX, LABEL = "Describe:", " a red house stands in the snow"
GCG = {"run": "gcg", "prefix": PREFIX, "init": " x" * 20, "top_k": 256}
LABELS = (" in the snow.", " a small boat.", " by the sea.")
SEEDS = 3
WARM_UP = {"cpu": 1, "cuda": 3}
"""Steps that are not timed."""
MODELS = {"cpu": "6x384,12x768", "cuda": "6x384,12x768,SmolLM2-135M,Llama-1B"}
WIDTHS = {"cpu": (64, 256), "cuda": (64, 256, 512)}
"""The numbers of candidates that each model is measured with."""


def main() -> None:
    options = arguments(
        __doc__,
        tokenizers={
            "type": Path,
            "help": "folder with GPT-2's tokenizer in gpt2/ and CLIP's in clip/",
        },
        environments={
            "type": Path,
            "default": Path.home() / ".cache/fuse/peers",
            "help": "where the peers' environments are",
        },
        quick={
            "action": "store_true",
            "help": "fewer steps and sizes; under 10 minutes once the environments are made",
        },
        cases={"help": "which of gcg, prefix, goal, joint, pez to run (default: all)"},
        device={"default": "cpu", "choices": ["cpu", "cuda"]},
        dtype={"default": "float32", "choices": ["float32", "bfloat16"]},
        models={"help": f"those of gcg, of {', '.join(LMS)}"},
        peers={"default": ",".join(PEERS), "help": "those of gcg"},
        batch_size={"type": int, "default": 128, "help": "ours (default 128)"},
        site={
            "action": "append",
            "default": [],
            "metavar": "PEER=DIR",
            "help": "a folder with a peer's packages, instead of an environment; may be repeated",
        },
        runs={
            "type": int,
            "default": 1,
            "help": "how often the table is made, ours and peers in turn; medians are shown, and "
            "from where to where the ratio goes",
        },
        task={"help": "(the run of one process)"},
    )
    if options.task:
        print(json.dumps([RUNS[task["run"]](task) for task in json.loads(options.task)]))
        return
    cases = (options.cases or ("gcg" if options.device == "cuda" else ",".join(CASES))).split(",")
    if options.device == "cuda" and cases != ["gcg"]:
        raise SystemExit(f"--cases {options.cases}: on a GPU gcg alone is measured")
    tables: list[list[Row]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.runs):
            tables.append([row for name in cases for row in CASES[name](options, Path(folder))])
    rows = [over_runs(rows) for rows in zip(*tables, strict=True)]
    show(f"speed on {hardware(options.device)}, {options.dtype}", rows, options.json)


def over_runs(rows: Sequence[Row]) -> Row:
    """The medians of one line of the table over several runs, and the spread of its ratio."""
    found: Row = {}
    for name, value in rows[0].items():
        found[name] = value if isinstance(value, str) else median(row[name] for row in rows)
    ratios = [row["ratio"] for row in rows]
    return {**found, "lowest_ratio": min(ratios), "highest_ratio": max(ratios)}


def hardware(device: str) -> str:
    """The name of a device, and the version of torch."""
    return f"{gpu_or_processor(device)}, torch {torch.__version__}"


def gpu_or_processor(device: str) -> str:
    """The name of a GPU; or of the processor, with the instructions that torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name, cpuinfo = platform.processor() or "a CPU", Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def gcg_rows(options: Any, folder: Path) -> list[Row]:
    """GCG on a language model alone, beside each peer."""
    rows = []
    for shape in (options.models or MODELS[options.device]).split(","):
        dtype = getattr(torch, options.dtype)
        model = save_lm(folder, options.tokenizers, shape, options.device, dtype)
        widths = WIDTHS[options.device][: 1 if options.quick and shape != "6x384" else None]
        tasks = [{**gcg_task(options, model), "search_width": width} for width in widths]
        # On a CPU a process measures the peak of one task
        groups = [tasks] if options.device == "cuda" else [[task] for task in tasks]
        for group in groups:
            rows += compared(options, shape, group)
    return rows


def gcg_task(options: Any, model: Path) -> dict[str, Any]:
    """What all runs of GCG on a model have in common."""
    warm_up = WARM_UP[options.device]
    return {
        **GCG,
        "model": str(model),
        "label": LABEL,
        "search_width": 64,
        "warm_up": warm_up,
        "steps": warm_up + (3 if options.quick else 9),
        "threads": options.threads,
        "device": options.device,
        "dtype": options.dtype,
        "batch_size": options.batch_size,
    }


def compared(options: Any, shape: str, tasks: list[dict[str, Any]]) -> list[Row]:
    """Our runs of some tasks of one model beside each peer's."""
    peers = {}
    for name in filter(None, options.peers.split(",")):
        script = Path(__file__).parent / f"peers/gcg_{name}.py"
        peers[name] = run_all(tasks, environment(options, name), script)
    ours = run_all(
        [
            {**task, "texts": {name: found[i]["text"] for name, found in peers.items()}}
            for i, task in enumerate(tasks)
        ]
    )
    rows = []
    for i, (task, own) in enumerate(zip(tasks, ours, strict=True)):
        case = f"gcg {shape}, {task['search_width']}"
        for name, found in peers.items():
            rows.append(
                row(case, name, own, found[i]["per_second"])
                | {
                    "loss_gap": abs(own["losses"][name] - found[i]["loss"]),
                    "ours_mb": own["peak_mb"],
                    "peer_mb": found[i]["peak_mb"],
                }
            )
        if not peers:
            rows.append(row(case, "none", own, nan))
    return rows


def prefix_rows(options: Any, folder: Path) -> list[Row]:
    """Long prefixes beside a short one, all ours."""
    task = gcg_task(options, save_lm(folder, options.tokenizers, "6x384-4096"))
    short, *long = (run({**task, "prefix": " ".join([PREFIX] * count)}) for count in (1, 100, 667))
    rows = []
    for count, found in zip((300, 2000), long, strict=True):
        case = f"gcg 6x384, 64, prefix of {count} tokens"
        rows.append(row(case, "prefix of 3", found, short["per_second"]))
    return rows


def goal_rows(options: Any, folder: Path) -> list[Row]:
    """How often a search gets in a second to the loss that nanoGCG reaches in 100 steps.

    That loss is the median over the seeds. The time of each library is its median over the seeds
    too, in which a run that ends elsewhere counts as endless; in the mean over the labels.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    demo = Path(__file__).parent.parent / "fuse/demo/lm"
    tokenizer = AutoTokenizer.from_pretrained(demo)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "lm")
    AutoModelForCausalLM.from_pretrained(demo).float().save_pretrained(folder / "lm")
    trained = {
        **gcg_task(options, folder / "lm"),
        "init": " a" * 20,
        "search_width": 64 if options.quick else 256,
    }
    tasks = {
        "demo LM": [{**trained, "label": label} for label in LABELS[: 1 if options.quick else None]]
    }
    if not options.quick:
        tasks["6x384"] = [gcg_task(options, save_lm(folder, options.tokenizers, "6x384"))]
    rows = []
    python, script = (
        environment(options, "nanogcg"),
        Path(__file__).parent / "peers/gcg_nanogcg.py",
    )
    for model, those in tasks.items():
        seconds: dict[str, list[float]] = {"nanogcg": [], "exact": [], "probe": []}
        last: dict[str, Row] = {}
        for task in those:
            seeded = [{**task, "seed": seed} for seed in range(1 if options.quick else SEEDS)]
            peers = [run({**one, "steps": 100}, python, script) for one in seeded]
            goal = median(peer["loss"] for peer in peers)
            reached = [
                next((i + 1 for i, loss in enumerate(peer["losses"]) if loss <= goal), inf)
                for peer in peers
            ]
            seconds["nanogcg"].append(
                median(
                    peer["step_seconds"] * steps for peer, steps in zip(peers, reached, strict=True)
                )
            )
            for scoring in ("exact", "probe"):
                runs = [
                    run({**one, "steps": 500, "scoring": scoring, "stop_loss": goal})
                    for one in seeded
                ]
                last[scoring] = {
                    **runs[-1],
                    "peak_fraction": nan,
                }  # of counted operations, which a guess lacks
                seconds[scoring].append(
                    median(one["seconds"] if one["loss"] <= goal else inf for one in runs)
                )
            times = ", ".join(f"{name} in {of[-1]:.1f} s" for name, of in seconds.items())
            print(f"{model}, {task['label']!r}: a loss of {goal:.3f} by {times}", file=sys.stderr)
        rows += [
            row(
                f"gcg {model}, to a loss, {name}",
                "nanogcg",
                {**of, "per_second": 1 / mean(seconds[name])},
                1 / mean(seconds["nanogcg"]),
            )
            for name, of in last.items()
        ]
    return rows


def joint_rows(options: Any, folder: Path) -> list[Row]:
    """A language model and a CLIP, by GCG and by AutoDAN."""
    lm, clip = (
        save_lm(folder, options.tokenizers, "6x384"),
        save_clip(folder, options.tokenizers, 6, 256),
    )
    rows = []
    # AutoDAN's candidates are 64 in all, or 64 for each row of the beam
    for method, candidates, published in (
        ("gcg", 64, 12.5),
        ("autodan", 64, 20.5),
        ("autodan", 256, 20.5),
    ):
        task = {
            "run": "joint",
            "method": method,
            "model": str(lm),
            "clip": str(clip),
            "threads": options.threads,
        }
        ours = run({**task, "steps": 6 if options.quick else 20, "search_width": candidates})
        rows.append(
            row(
                f"joint {method}, {candidates}",
                "published",
                ours,
                published * ours["gflops"] / PUBLISHED_GFLOPS,
            )
        )
    return rows


def pez_rows(options: Any, folder: Path) -> list[Row]:
    """PEZ on a CLIP alone, in steps per second."""
    clip = save_clip(folder, options.tokenizers, 12, 512)
    ours = run(
        {
            "run": "pez",
            "clip": str(clip),
            "threads": options.threads,
            "steps": 10 if options.quick else 50,
        }
    )
    return [row("pez, CLIP alone", "published", ours, ours["gflops"] / PUBLISHED_GFLOPS / 0.36)]


def row(case: str, peer: str, ours: Row, peer_per_second: float) -> Row:
    """One line of the table."""
    return {
        "case": case,
        "peer": peer,
        "ours_per_second": ours["per_second"],
        "peer_per_second": peer_per_second,
        "ratio": ours["per_second"] / peer_per_second,
        "peak_fraction": ours.get("peak_fraction", float("nan")),
        "loss_gap": float("nan"),
        "ours_mb": ours["peak_mb"],
        "peer_mb": float("nan"),
    }


@dataclass(frozen=True)
class Environment:
    """A Python, and the folder of packages that it looks into first."""

    python: Path = Path(sys.executable)
    site: str | None = None


OURS = Environment()


def run(task: dict[str, Any], where: Environment = OURS, script: Path = Path(__file__)) -> Row:
    """What a process of its own says of a task."""
    return run_all([task], where, script)[0]


def run_all(
    tasks: list[dict[str, Any]], where: Environment = OURS, script: Path = Path(__file__)
) -> list[Row]:
    """What a process of its own prints last: a row for each task."""
    given, count = [json.dumps(tasks)], str(tasks[0]["threads"])
    if script == Path(__file__):
        given = ["--task", *given, "--threads", count]
    own = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    # USE_FLAX: transformers would import what a peer's environment may hold besides
    own |= {"TOKENIZERS_PARALLELISM": "false", "USE_FLAX": "0"}
    if tasks[0].get("device", "cpu") == "cpu":
        own["CUDA_VISIBLE_DEVICES"] = ""
    if where.site is not None:
        own["PYTHONPATH"] = where.site
    done = subprocess.run(
        [where.python, script, *given], capture_output=True, text=True, env={**os.environ, **own}
    )
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-3000:]}")
    result: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return result


def environment(options: Any, name: str) -> Environment:
    """A peer's packages: in a folder given, or in an environment of its own, which is made on first
    use with our version of torch.
    """
    sites = dict(entry.split("=", 1) for entry in options.site)
    if name in sites:
        return Environment(site=sites[name])
    folder = options.environments / name
    python = folder / "bin/python"
    if not python.exists():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        packages = [f"torch=={torch.__version__.partition('+')[0]}", *PEERS[name]]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return Environment(python)


# What follows runs in a process of its own.


def run_gcg(task: dict[str, Any]) -> Row:
    """Steps of GCG that elicit a label, and our losses of the peers' results."""
    import fuse
    from fuse.registry import METHODS

    device, dtype = task["device"], getattr(torch, task["dtype"])
    gflops = matrix_speed(device, dtype)
    lm = fuse.CausalLM.load(task["model"], device=device, dtype=dtype)
    forget_peak()
    lm.vocabulary.head = ()  # as the peers have it
    loss = fuse.CrossEntropy(task["label"])
    term = fuse.Term(lm, loss, prefix=task["prefix"], batch_size=task["batch_size"])
    objective = fuse.Objective(term)
    method = METHODS["gcg"](
        search_width=task["search_width"],
        top_k=task["top_k"],
        moves=("swap",),
        buffer_size=0,
        steps=task["steps"],
    )
    counted = Counted(method)
    probe = fuse.Probe() if task.get("scoring") == "probe" else None
    generator = torch.Generator().manual_seed(task.get("seed", 0))
    result = fuse.search(
        objective,
        counted,
        init=task["init"].strip(),
        probe=probe,
        stop_loss=task.get("stop_loss"),
        generator=generator,
    )
    costs = report(result, gflops, task["warm_up"])
    spelled = {
        name: term.with_surroundings([lm.vocabulary.encode_ids([text])[0]])
        for name, text in task.get("texts", {}).items()
    }
    losses = {name: float(term.engine.score(rows)[0]) for name, rows in spelled.items()}
    label = len(lm.vocabulary.encode_ids([task["label"]])[0])
    operations = gcg_operations(
        lm.network.config, counted.changed()[task["warm_up"] :], len(result.free_ids), label
    )
    seconds = timed_seconds(result, task["warm_up"])
    return {**costs, "losses": losses, "peak_fraction": operations / seconds / gflops / 1e9}


def gcg_operations(config: Any, changed: list[list[int]], free: int, label: int) -> float:
    """The operations of GCG's steps whose result is read.

    Args:
        changed: for each step and candidate the number of tokens from the first changed one on.
        free, label: how many tokens the prompt and the label have.
    """
    body, head = 2 * layer_weights(config), 2 * config.hidden_size * config.vocab_size
    # From each candidate's first changed token on to the last but one, and the pass forth and back
    # that the gradient takes
    read = sum(sum(step) + (label - 1) * len(step) for step in changed)
    scored = sum(map(len, changed))
    gradient = 3 * ((free + label - 1) * body + label * head)
    return read * body + scored * label * head + len(changed) * gradient


def run_joint(task: dict[str, Any]) -> Row:
    """Steps that look at a picture and keep the text fluent."""
    import fuse
    from fuse.registry import ADAPTERS, METHODS
    from fuse.search.strategies.beam import Beam

    gflops = matrix_speed()
    lm, clip = fuse.CausalLM.load(task["model"]), fuse.CLIP.load(task["clip"])
    from PIL import Image

    target = clip.embed_images([Image.effect_noise((32, 32), 80).convert("RGB")])[0]
    words = (Path(__file__).parent.parent / "fuse/demo/corpus.txt").read_text().split()
    adapter = ADAPTERS["fuse"].fit(lm.vocabulary, clip, sorted(set(words)))
    secondary = fuse.Term(clip, fuse.CosineDistance(target), weight=20, adapter=adapter)
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"clip": secondary})
    generator = torch.Generator().manual_seed(0)
    if task["method"] == "gcg":
        method, strategy = (
            METHODS["gcg"](
                search_width=task["search_width"],
                moves=("swap",),
                prompt_length=8,
                steps=task["steps"],
            ),
            Beam(1),
        )
    else:
        method, strategy = (
            METHODS["autodan"](search_width=task["search_width"], steps=task["steps"]),
            Beam(4),
        )
    return report(fuse.search(objective, method, strategy, generator=generator), gflops)


def run_pez(task: dict[str, Any]) -> Row:
    """Steps of PEZ on a CLIP that is the primary itself."""
    from PIL import Image

    import fuse
    from fuse.registry import METHODS

    gflops = matrix_speed()
    clip = fuse.CLIP.load(task["clip"])
    target = clip.embed_images([Image.effect_noise((32, 32), 80).convert("RGB")])[0]
    result = fuse.search(
        fuse.Objective(fuse.Term(clip, fuse.CosineDistance(target))),
        METHODS["pez"](prompt_length=16, steps=task["steps"]),
    )
    found = report(result, gflops)
    found["per_second"] = (len(result.trace) - 1) / timed_seconds(result, 1)
    return found


class Counted:
    """A method that keeps its candidates, and the rows of the beam that they come from."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.proposed: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def propose(self, state: Any, beam: Any, *others: Any) -> Any:
        candidates = self.method.propose(state, beam, *others)
        self.proposed.append((candidates.ids, list(beam)))
        return candidates

    def changed(self) -> list[list[int]]:
        """For each step and candidate the number of tokens from the first changed one on."""
        found = []
        for ids, beam in self.proposed:
            found.append([min(len(row) - shared(row, one) for one in beam) for row in ids])
        return found


def shared(row: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two rows begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(row, other, strict=False)) if a != b),
        min(len(row), len(other)),
    )


def matrix_speed(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a square product, the best of several."""
    size = 1024 if device == "cpu" else 8192
    a, best = torch.randn(size, size, device=device, dtype=dtype), inf
    for _ in range(30):
        began = clock()
        a @ a
        best = min(best, clock() - began)
    return 2 * size**3 / best / 1e9


def timed_seconds(result: Any, warm_up: int) -> float:
    """How long all steps took but the first ones, which warm up."""
    return max(result.trace[-1].seconds - result.trace[warm_up - 1].seconds, 1e-9)


def report(result: Any, gflops: float, warm_up: int = 1) -> Row:
    """What the steps cost, but for the first ones."""
    first, last = result.trace[warm_up - 1], result.trace[-1]
    seconds = timed_seconds(result, warm_up)
    return {
        "per_second": (last.evaluations - first.evaluations) / seconds,
        "step_seconds": seconds / max(1, len(result.trace) - warm_up),
        "seconds": result.seconds,
        "gflops": gflops,
        "peak_mb": peak_megabytes(),
        "loss": result.loss,
    }


CASES = {
    "gcg": gcg_rows,
    "prefix": prefix_rows,
    "goal": goal_rows,
    "joint": joint_rows,
    "pez": pez_rows,
}
RUNS = {"gcg": run_gcg, "joint": run_joint, "pez": run_pez}


if __name__ == "__main__":
    main()
