"""Captions of pictures that no training saw: the joint objective beside each of its parts alone.

Draws held-out pictures and searches with the default settings ("joint"), with the language model
alone ("lm") and with CLIP alone ("clip"). words: share of the words of a right caption that were
found. precision: right / (right + wrong) among the colour, object and setting words found. f1 of
both. perplexity of the prompt under the LM. seconds: the search itself, median.

    python benchmarks/captions.py --pictures 40
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pictures import cost, draw, found, search_all, words
from runs import Models, Row, arguments, mean, show

VARIANTS = {
    "joint": [],
    "lm": ["secondary=[]"],
    "clip": ["primary.weight=0", "method.logit_weight=0"],
}


def main() -> None:
    options = arguments(
        __doc__,
        pictures={"type": int, "default": 40},
        first={"type": int, "default": 1_000_000, "help": "seed of the first picture"},
        variants={"default": ",".join(VARIANTS), "help": "which of joint, lm, clip"},
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        seen={
            "action": "store_true",
            "help": "draw combinations that training saw instead: the pictures to tune on",
        },
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    with tempfile.TemporaryDirectory() as folder:
        scenes = [
            draw(seed, Path(folder), options.seen)
            for seed in range(options.first, options.first + options.pictures)
        ]
        rows = [
            measure(name, scenes, options.overrides.split(), options.verbose)
            for name in options.variants.split(",")
        ]
    show(
        f"{options.pictures} {'seen' if options.seen else 'held-out'} pictures", rows, options.json
    )


def measure(name: str, scenes: list[dict], overrides: list[str], verbose: bool) -> Row:
    """One row of the table."""
    results = search_all(name, scenes, [*VARIANTS[name], *overrides], Models(), verbose)
    shares = [found(result.prompt, scene) for result, scene in results]
    return {
        "objective": name,
        "words": words(results),
        "precision": mean([exact for _, exact in shares]),
        "f1": mean(
            [
                2 * recall * exact / (recall + exact) if recall + exact else 0.0
                for recall, exact in shares
            ]
        ),
        **cost(results),
    }


if __name__ == "__main__":
    main()
