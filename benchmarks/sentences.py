"""Text of a given meaning: `experiment=sentence` on captions, with real MiniLM and a language model
of your choice.

cosine: of the prompt's and the target's embedding, recomputed from the two texts. f1: of their
words. seconds: the search itself.

    python benchmarks/sentences.py --model ../shared/realbed/gpt2-flickr --captions
    ../shared/realbed/text/captions.txt
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

from runs import Row, arguments, find, mean, show

import fuse
from fuse.app import places


def main() -> None:
    options = arguments(
        __doc__,
        model={"required": True, "help": "hub id or folder of the primary"},
        captions={
            "required": True,
            "type": Path,
            "help": "text file; targets are drawn from its last 1000 lines",
        },
        number={"type": int, "default": 20},
        seed={"type": int, "default": 0},
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    lines = [line.strip() for line in options.captions.read_text().splitlines() if line.strip()][
        -1000:
    ]
    targets = random.Random(options.seed).sample(lines, options.number)
    encoder = fuse.SentenceEncoder.load(places.minilm())
    rows: list[Row] = []
    for target in targets:
        quoted = target.replace("\\", "\\\\").replace('"', '\\"')
        result = find(
            "experiment=sentence",
            f'target="{quoted}"',
            f"primary.model_id={options.model}",
            *options.overrides.split(),
        )
        a, b = encoder.embed_texts([result.prompt, target])
        rows.append(
            {
                "target": target,
                "prompt": result.prompt,
                "cosine": float(a @ b),
                "f1": word_f1(result.prompt, target),
                "perplexity": math.exp(result.terms["primary"].loss),
                "seconds": result.seconds,
            }
        )
        if options.verbose:
            print(rows[-1], flush=True)
    numbers = ("cosine", "f1", "perplexity", "seconds")
    rows.append(
        {
            "target": "mean",
            "prompt": "",
            **{name: mean([row[name] for row in rows]) for name in numbers},
        }
    )
    show("Text of a given meaning", rows, options.json)


def word_f1(a: str, b: str) -> float:
    """The harmonic mean of precision and recall of the sets of words."""
    first, second = (set(re.findall(r"[a-z]+", text.lower())) for text in (a, b))
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 0.0


if __name__ == "__main__":
    main()
