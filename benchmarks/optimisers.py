"""Random target tokens at equal work: the loss that each optimiser reaches with so many operations.

A target is 10 tokens drawn at random; 15 free tokens, which start at random ones, are to make the
model say it: a task that every optimiser can be given, and nobody minds. Every run of a method
ends with the step in which its operations reach the budget. Those of all libraries are counted
alike, by `fuse/nn/operations.py`: products with the weights, no attention, and only what is
computed; what peers spend to multiply one-hot tokens with the table is not counted, to their
favour. Each result is scored from its text, by one model, which is not counted either.

loss: -log p of a token of the target, median over targets and seeds, with the interval that holds
95% of the medians of resampled runs. half: the median after half of the budget, as the library
says it. mean: of all runs. spent: the mean share of the budget; a method that has nothing more to
propose ends early. candidates: how many were scored (peers: asked for), mean. seconds: median.

`--methods` names rows, ours with further options if need be: `gcg:top_k=32:merge=7`. The peers'
options are their defaults and those of their recipes. Models are folders, GGUF files, or the names
of shapes with random weights. Targets and seeds other than those of the table (`--first 100`) are
for tuning. Where no package index is at hand, --site names folders with the peers' packages, as in
`benchmarks/speed.py`.

    python benchmarks/optimisers.py --model fuse/demo/lm --targets 2 --budget 1e10 --methods gcg
    python benchmarks/optimisers.py --model FILE.gguf --device cuda --budget 2e13 --jobs 8 \\
        --site nanogcg=DIR --site tropt=DIR
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers.targets_fuse import FREE_TOKENS, VARIANTS
from random_models import CHAT, LMS, save_lm
from runs import Row, arguments, mean, show
from speed import OURS, environment, hardware, run_all
from transformers import AutoModelForCausalLM, AutoTokenizer

import fuse

PREFIX = "Text:"
TARGET_TOKENS = 10
PEERS = (
    "nanogcg", "tropt_gcg", "tropt_mac", "tropt_gcgplus", "tropt_focused", "tropt_gasliteplus",
    "tropt_arca", "tropt_autoprompt", "tropt_random", "tropt_pez", "tropt_gbda",
)  # fmt: skip
RESAMPLES = 2000


def main() -> None:
    options = arguments(
        __doc__,
        model={"required": True, "help": f"a folder, a FILE.gguf, or one of {', '.join(LMS)}"},
        tokenizers={"type": Path, "help": "folder with GPT-2's in gpt2/, for random weights"},
        methods={"default": ",".join([*VARIANTS, *PEERS]), "help": "rows of the table"},
        targets={"type": int, "default": 10},
        seeds={"type": int, "default": 1, "help": "runs of each target, from different starts"},
        first={"type": int, "default": 0, "help": "number of the first target"},
        budget={"type": float, "default": 1e12, "help": "operations of a run"},
        device={"default": "cpu", "choices": ["cpu", "cuda"]},
        dtype={"default": "float32", "choices": ["float32", "bfloat16"]},
        jobs={"type": int, "default": 1, "help": "methods that run at once"},
        environments={"type": Path, "default": Path.home() / ".cache/fuse/peers"},
        site={"action": "append", "default": [], "metavar": "PEER=DIR"},
    )
    with tempfile.TemporaryDirectory() as folder:
        model = saved(options, Path(folder))
        dtype = getattr(torch, options.dtype)
        lm = fuse.CausalLM.load(str(model), device=options.device, dtype=dtype)
        tasks = drawn_tasks(options, model, lm)
        names = options.methods.split(",")
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(lambda name: run_method(options, name, tasks), names))
    runs = []
    for name, reports in zip(names, found, strict=True):
        for task, report in zip(tasks, reports, strict=False):
            loss = loss_of(lm, task, report["text"])
            runs.append({"method": name, "target": task["target"], **report, "loss": loss})
    succeeded = dict.fromkeys(one["method"] for one in runs)
    rows = [summary(name, runs, options.budget) for name in succeeded]
    title = f"{options.budget:g} operations, {options.model}, {hardware(options.device)}"
    show(title, rows, options.json, runs=runs)


def saved(options: Any, folder: Path) -> Path:
    """A model as a folder that every library loads, with a chat template that adds nothing."""
    if options.model in LMS:
        dtype = getattr(torch, options.dtype)
        return save_lm(folder, options.tokenizers, options.model, options.device, dtype)
    path = Path(options.model)
    given = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    source, target = path.parent if given else path, folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(source, **given)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(target)
    network = AutoModelForCausalLM.from_pretrained(source, **given)
    network.to(getattr(torch, options.dtype)).save_pretrained(target)
    return target


def drawn_tasks(options: Any, model: Path, lm: fuse.CausalLM) -> list[dict[str, Any]]:
    """A task for each target and seed: words to say, and those to begin with."""
    tasks = []
    for target in range(options.first, options.first + options.targets):
        label = random_words(lm, TARGET_TOKENS, seed=target)
        for seed in range(options.seeds):
            init = random_words(lm, FREE_TOKENS, seed=1_000_003 * (target + 1) + seed)
            tasks.append(
                {
                    "model": str(model),
                    "prefix": PREFIX,
                    "label": label,
                    "init": init,
                    "target": target,
                    "seed": seed,
                    "budget": options.budget,
                    "threads": options.threads,
                    "device": options.device,
                    "dtype": options.dtype,
                }
            )
    return tasks


def random_words(lm: fuse.CausalLM, count: int, seed: int) -> str:
    """A text of so many random tokens, each of which begins a word, that spells just these."""
    vocabulary = lm.vocabulary
    usable = fuse.Constraints().allowed(vocabulary).cpu() & vocabulary.begins_word.cpu()
    tokens = usable.nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    while True:
        row = tuple(tokens[torch.randint(len(tokens), (count,), generator=generator)].tolist())
        (text,) = vocabulary.decode([row])
        text = f" {text.strip()}"
        if vocabulary.encode_ids([text])[0] == row:
            return text


def run_method(options: Any, name: str, tasks: list[dict[str, Any]]) -> list[Row]:
    """All runs of one method, in a process of its own; none where that fails, which is shown."""
    peer = name.split("_")[0] if name in PEERS else "fuse"
    where = OURS if peer == "fuse" else environment(options, peer)
    script = Path(__file__).parent / f"peers/targets_{peer}.py"
    try:
        return run_all([{**task, "method": name} for task in tasks], where, script)
    except SystemExit as error:
        print(f"{name}: {error}", file=sys.stderr)
        return []


def loss_of(lm: fuse.CausalLM, task: dict[str, Any], text: str) -> float:
    """The loss of a text: -log p of a token of the target."""
    term = fuse.Term(lm, fuse.CrossEntropy(task["label"]), prefix=task["prefix"])
    rows = term.with_surroundings([lm.vocabulary.encode_ids([text])[0]])
    return float(term.score(rows)[0])


def summary(name: str, runs: list[Row], budget: float) -> Row:
    """One row of the table."""
    own = [run for run in runs if run["method"] == name]
    losses = [run["loss"] for run in own]
    low, high = interval(losses)
    half = [run["half"] for run in own if run["half"] is not None]
    return {
        "method": name,
        "loss": median(losses),
        "from": low,
        "to": high,
        "half": median(half) if half else float("nan"),
        "mean": mean(losses),
        "spent": mean([run["operations"] / budget for run in own]),
        "candidates": mean([run["evaluations"] for run in own]),
        "seconds": median(run["seconds"] for run in own),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """The bootstrap interval that holds 95% of the medians of resampled values."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    # Of an even number the upper and the lower middle are averaged, as `median` does
    medians = torch.tensor(values, dtype=torch.float64)[drawn].quantile(0.5, dim=1)
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


if __name__ == "__main__":
    main()
