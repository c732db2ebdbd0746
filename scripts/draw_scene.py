"""Draw one random scene; write its picture, its caption, and what words are right for it."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from world.drawing import draw
from world.scenes import plain_caption, random_scene, right_words, wrong_words


def main() -> None:
    """Write N.png and N.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for SEED.png and SEED.json")
    parser.add_argument(
        "--heldout", action="store_true", help="draw only combinations that no training has seen"
    )
    options = parser.parse_args()
    rng = random.Random(f"picture {options.seed}")
    scene = random_scene(rng, options.heldout)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(scene, rng).save(options.out / f"{options.seed}.png")
    facts = {
        "caption": plain_caption(scene),
        "words": right_words(scene),
        "wrong": wrong_words(scene),
    }
    (options.out / f"{options.seed}.json").write_text(
        json.dumps(facts, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
