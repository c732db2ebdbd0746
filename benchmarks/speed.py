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

    python benchmarks/speed.py --tokenizers DIR --quick
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from math import inf, nan
from pathlib import Path
from statistics import median
from typing import Any

from peers.measured import peak_megabytes
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
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


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
        cases={"default": "gcg,prefix,goal,joint,pez", "help": "which of them to run"},
        task={"help": "(the run of one process)"},
    )
    if options.task:
        task = json.loads(options.task)
        print(json.dumps(RUNS[task["run"]](task)))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        rows += [
            row for name in options.cases.split(",") for row in CASES[name](options, Path(folder))
        ]
    show("speed", rows, options.json)


def gcg_rows(options: Any, folder: Path) -> list[Row]:
    """GCG on a language model alone, beside each peer."""
    rows = []
    sizes = [(6, 384, 64), (6, 384, 256), (12, 768, 64)] + [(12, 768, 256)] * (not options.quick)
    for layers, width, candidates in sizes:
        task = {
            **GCG,
            "model": str(save_lm(folder, options.tokenizers, layers, width)),
            "label": LABEL,
            "search_width": candidates,
            "steps": 4 if options.quick else 10,
            "threads": options.threads,
        }
        peers = {
            name: run(
                task,
                environment(options.environments, name),
                Path(__file__).parent / f"peers/gcg_{name}.py",
            )
            for name in PEERS
        }
        ours = run({**task, "texts": {name: peer["text"] for name, peer in peers.items()}})
        rows += [
            row(f"gcg {layers}x{width}, {candidates}", name, ours, peer["per_second"])
            | {
                "loss_gap": abs(ours["losses"][name] - peer["loss"]),
                "ours_mb": ours["peak_mb"],
                "peer_mb": peer["peak_mb"],
            }
            for name, peer in peers.items()
        ]
    return rows


def prefix_rows(options: Any, folder: Path) -> list[Row]:
    """A long prefix beside a short one, both ours."""
    model = str(save_lm(folder, options.tokenizers, 6, 384))
    task = {
        **GCG,
        "model": model,
        "label": LABEL,
        "search_width": 64,
        "steps": 4 if options.quick else 10,
        "threads": options.threads,
    }
    short, long = (run({**task, "prefix": " ".join([PREFIX] * count)}) for count in (1, 100))
    return [row("gcg 6x384, 64, prefix of 300 tokens", "prefix of 3", long, short["per_second"])]


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
        **GCG,
        "model": str(folder / "lm"),
        "init": " a" * 20,
        "search_width": 64 if options.quick else 256,
    }
    tasks = {
        "demo LM": [{**trained, "label": label} for label in LABELS[: 1 if options.quick else None]]
    }
    if not options.quick:
        tasks["6x384"] = [
            {
                **GCG,
                "model": str(save_lm(folder, options.tokenizers, 6, 384)),
                "search_width": 64,
                "label": LABEL,
            }
        ]
    rows = []
    python, script = (
        environment(options.environments, "nanogcg"),
        Path(__file__).parent / "peers/gcg_nanogcg.py",
    )
    for model, those in tasks.items():
        seconds: dict[str, list[float]] = {"nanogcg": [], "exact": [], "probe": []}
        last: dict[str, Row] = {}
        for task in those:
            seeded = [
                {**task, "threads": options.threads, "seed": seed}
                for seed in range(1 if options.quick else SEEDS)
            ]
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
        save_lm(folder, options.tokenizers, 6, 384),
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


def run(
    task: dict[str, Any], python: Path = Path(sys.executable), script: Path = Path(__file__)
) -> Row:
    """What a process of its own prints last."""
    given = (
        [json.dumps(task)]
        if script != Path(__file__)
        else ["--task", json.dumps(task), "--threads", str(task["threads"])]
    )
    threads = {name: str(task["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, script, *given],
        capture_output=True,
        text=True,
        env={**os.environ, **threads, **quiet},
    )
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-3000:]}")
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def environment(folder: Path, name: str) -> Path:
    """The Python of a peer's environment, with our version of torch; made on first use."""
    import torch

    python = folder / name / "bin/python"
    if not python.exists():
        print(f"making {python.parent.parent}", file=sys.stderr)
        venv.create(folder / name, with_pip=True)
        packages = [f"torch=={torch.__version__.partition('+')[0]}", *PEERS[name]]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def save_lm(folder: Path, tokenizers: Path, layers: int, width: int) -> Path:
    """A GPT-2 of random weights."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    path = folder / f"lm-{layers}x{width}"
    if not path.exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(tokenizers / "gpt2")
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(path)
        GPT2LMHeadModel(
            GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)
        ).save_pretrained(path)
    return path


def save_clip(folder: Path, tokenizers: Path, layers: int, width: int) -> Path:
    """A CLIP of random weights, its text tower of this size."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPTextConfig,
        CLIPVisionConfig,
    )

    path = folder / f"clip-{layers}x{width}"
    if not path.exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(tokenizers / "clip")
        end = tokenizer.eos_token_id
        text = CLIPTextConfig(
            num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width,
            num_attention_heads=width // 64,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        vision = CLIPVisionConfig(
            num_hidden_layers=1,
            hidden_size=64,
            intermediate_size=64,
            num_attention_heads=1,
            image_size=32,
        )
        tokenizer.save_pretrained(path)
        CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(path)
        CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
        ).save_pretrained(path)
    return path


# What follows runs in a process of its own.


def run_gcg(task: dict[str, Any]) -> Row:
    """Steps of GCG that elicit a label, and our losses of the peers' results."""
    import torch

    import fuse
    from fuse.registry import METHODS

    gflops = matrix_speed()
    lm = fuse.CausalLM.load(task["model"])
    lm.vocabulary.head = ()  # as the peers have it
    term = fuse.Term(lm, fuse.CrossEntropy(task["label"]), prefix=task["prefix"])
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
    spelled = {
        name: term.with_surroundings([lm.vocabulary.encode_ids([text])[0]])
        for name, text in task.get("texts", {}).items()
    }
    losses = {name: float(term.engine.score(rows)[0]) for name, rows in spelled.items()}
    network = lm.network.config
    body, head = 24 * network.n_layer * network.n_embd**2, 2 * network.n_embd * network.vocab_size
    label = len(lm.vocabulary.encode_ids([task["label"]])[0])
    # From each candidate's first changed token on to the last but one, and the pass forth and back
    # that the gradient takes
    read = sum(sum(changed) + (label - 1) * len(changed) for changed in counted.changed[1:])
    scored = sum(map(len, counted.changed[1:]))
    gradient = 3 * ((len(result.free_ids) + label - 1) * body + label * head)
    operations = read * body + scored * label * head + (len(counted.changed) - 1) * gradient
    seconds = result.trace[-1].seconds - result.trace[0].seconds
    return {
        **report(result, gflops),
        "losses": losses,
        "peak_fraction": operations / seconds / gflops / 1e9,
    }


def run_joint(task: dict[str, Any]) -> Row:
    """Steps that look at a picture and keep the text fluent."""
    import torch

    import fuse
    from fuse.registry import ADAPTERS, METHODS
    from fuse.search.strategies import Beam

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
    found["per_second"] = (len(result.trace) - 1) / (
        result.trace[-1].seconds - result.trace[0].seconds
    )
    return found


class Counted:
    """A method, and for each of its steps and candidates the number of tokens from the first
    changed one on.
    """

    def __init__(self, method: Any) -> None:
        self.method = method
        self.changed: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def propose(self, state: Any, beam: Any, *others: Any) -> Any:
        candidates = self.method.propose(state, beam, *others)
        changed = []
        for row in candidates.ids:
            changed.append(min(len(row) - shared(row, one) for one in beam))
        self.changed.append(changed)
        return candidates


def shared(row: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two rows begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(row, other, strict=False)) if a != b),
        min(len(row), len(other)),
    )


def matrix_speed(size: int = 1024) -> float:
    """GFLOP/s of a square float32 product, the best of several."""
    import torch

    a, best = torch.randn(size, size), float("inf")
    for _ in range(30):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def report(result: Any, gflops: float) -> Row:
    """All steps but the first, which warms up."""
    first, last = result.trace[0], result.trace[-1]
    return {
        "per_second": (last.evaluations - first.evaluations)
        / max(last.seconds - first.seconds, 1e-9),
        "step_seconds": (last.seconds - first.seconds) / max(1, len(result.trace) - 1),
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
