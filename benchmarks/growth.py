"""Whether a long run grows: memory and time per step of a search of many steps.

grown_mb: how far the resident memory has risen since step 100; slower: the time per step in the
last tenth of the run, as a multiple of that between steps 100 and 300. With --model a language
model with room for a long prefix takes the place of the demo's, whose context is short.

    python benchmarks/growth.py --steps 2000
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from runs import ROOT, Row, arguments, show
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import fuse

METHODS = {
    "gcg": lambda width: fuse.GCG(search_width=width),
    "random": lambda width: fuse.Random(search_width=width, buffer_size=0),
}
"""One that gets stuck, and one that wanders, since no earlier prompt competes again."""
FIRST = 100
"""The step after which nothing should grow."""


def main() -> None:
    options = arguments(
        __doc__,
        steps={"type": int, "default": 2000},
        candidates={"type": int, "default": 128},
        methods={"nargs": "+", "default": list(METHODS), "choices": list(METHODS)},
        prefix={"type": int, "default": 0, "help": "words of the fixed prefix"},
    )
    lm = language_model(options.prefix)
    clip = fuse.CLIP.load(str(ROOT / "fuse/demo/clip"))
    (image,) = clip.embed_images([fuse.open_image(ROOT / "images/house.png")])
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, clip)
    primary = fuse.Term(lm, fuse.NLL(), prefix=" ".join(["house"] * options.prefix))
    secondary = fuse.Term(clip, fuse.CosineDistance(image), weight=10, adapter=adapter)
    objective = fuse.Objective(primary, {"clip": secondary})
    rows = []
    for name in options.methods:
        method = METHODS[name](options.candidates)
        rows.append({"method": name, **measure(objective, method, options.steps)})
    show(f"{options.steps} steps, a prefix of {options.prefix} words", rows, options.json)


def language_model(prefix: int) -> fuse.CausalLM:
    """Return the demo model, or one of its shape with room for a prefix."""
    folder = str(ROOT / "fuse/demo/lm")
    if not prefix:
        return fuse.CausalLM.load(folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, n_positions=4 * prefix)
    network = AutoModelForCausalLM.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=4 * prefix)
    return fuse.CausalLM(network, tokenizer)


def measure(objective: fuse.Objective, method: fuse.Method, steps: int) -> Row:
    """Run a search, and return how it grew."""
    memory: dict[int, float] = {}
    clock: list[float] = []

    def note(step: fuse.Step) -> None:
        clock.append(time.perf_counter())
        if step.step in (FIRST, steps):
            memory[step.step] = resident_megabytes()

    rng = torch.Generator().manual_seed(0)
    result = fuse.search(objective, method, steps=steps, generator=rng, on_step=note)
    took = [after - before for before, after in pairwise(clock)]
    early, late = took[FIRST : FIRST + 200], took[-max(1, len(took) // 10) :]
    return {
        "evaluations": result.evaluations,
        "grown_mb": memory.get(steps, resident_megabytes()) - memory.get(FIRST, float("nan")),
        "step_ms": 1000 * median(early or took),
        "slower": median(late) / median(early or took),
    }


def resident_megabytes(process: int | str = "self") -> float:
    """Return the memory that a process holds, in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
