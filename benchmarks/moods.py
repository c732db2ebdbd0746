"""A second secondary at work: captions in the mood that is asked for, judged by a classifier, of
pictures no training saw.

reached: share of the prompts whose mood the classifier holds for the one asked for. words: share of
the words of a right caption that were found. right: share of the prompts that hold no wrong colour,
object or setting word.

    python benchmarks/moods.py --pictures 20
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from pictures import cost, draw, found, search_all, words
from runs import Models, arguments, mean, show


def main() -> None:
    options = arguments(
        __doc__,
        pictures={"type": int, "default": 20},
        first={"type": int, "default": 1_000_000, "help": "seed of the first picture"},
        moods={
            "default": "none,cheerful,gloomy",
            "help": "moods to ask for; none: the picture alone",
        },
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    rows, models = [], Models()
    with tempfile.TemporaryDirectory() as folder:
        scenes = [
            draw(seed, Path(folder))
            for seed in range(options.first, options.first + options.pictures)
        ]
        for mood in options.moods.split(","):
            asked = (
                ["secondary=[demo_clip]"]
                if mood == "none"
                else ["secondary=[demo_clip,demo_mood]", f"secondary.demo_mood.target={mood}"]
            )
            results = search_all(
                mood, scenes, [*asked, *options.overrides.split()], models, options.verbose
            )
            shares = [
                math.exp(-result.terms["demo_mood"].loss)
                for result, _ in results
                if "demo_mood" in result.terms
            ]
            rows.append(
                {
                    "mood": mood,
                    "reached": mean([float(share > 0.5) for share in shares]),
                    "words": words(results),
                    "right": mean(
                        [float(found(result.prompt, scene)[1] == 1) for result, scene in results]
                    ),
                    **cost(results),
                }
            )
    show(f"Moods of {options.pictures} held-out pictures", rows, options.json)


if __name__ == "__main__":
    main()
