"""Every method with every strategy that it goes with, on pictures that no training saw, with the
default settings.

words: share of the words of a right caption that were found. clip_cosine: of the prompt and the
picture. loss: the weighted sum. candidates: how many were scored, mean. perplexity: of the prompt
under the language model. seconds: the search itself, median.
`embedding` is given the same objective.

With `--candidates N` each search goes on, beyond its own number of steps, until it has scored N
candidates, or made N / 2 steps; a gradient counts for none.

    python benchmarks/methods.py --pictures 40
    python benchmarks/methods.py --pictures 2 --candidates 500 --threads 1
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pictures import cost, draw, search_all, words
from runs import Models, Row, arguments, mean, show

from fuse.registry import METHODS, STRATEGIES


def main() -> None:
    options = arguments(
        __doc__,
        pictures={"type": int, "default": 40},
        first={"type": int, "default": 1_000_000, "help": "seed of the first picture"},
        methods={"default": ",".join(METHODS)},
        strategies={"default": ",".join(["greedy", *STRATEGIES])},
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        candidates={"type": int, "help": "how many each search scores; default: its own steps"},
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    pairs = [
        (m, s)
        for m in options.methods.split(",")
        for s in options.strategies.split(",")
        if s == "greedy" or not METHODS[m].greedy_only
    ]
    overrides = options.overrides.split()
    if options.candidates:
        overrides += [f"max_evaluations={options.candidates}", f"steps={options.candidates // 2}"]
    models: Models = {}
    with tempfile.TemporaryDirectory() as folder:
        scenes = [
            draw(seed, Path(folder))
            for seed in range(options.first, options.first + options.pictures)
        ]
        rows = [measure(*pair, scenes, overrides, models, options.verbose) for pair in pairs]
    show(f"{options.pictures} held-out pictures", rows, options.json)


def measure(
    method: str,
    strategy: str,
    scenes: list[dict],
    overrides: list[str],
    models: Models,
    verbose: bool,
) -> Row:
    """One row of the table."""
    chosen = [f"method={method}", f"strategy={strategy}", "secondary=[demo_clip]", *overrides]
    results = search_all(f"{method} {strategy}", scenes, chosen, models, verbose)
    return {
        "method": method,
        "strategy": strategy,
        "words": words(results),
        "clip_cosine": mean([1 - result.terms["demo_clip"].loss for result, _ in results]),
        "loss": mean([result.loss for result, _ in results]),
        "candidates": mean([result.evaluations for result, _ in results]),
        **cost(results),
    }


if __name__ == "__main__":
    main()
