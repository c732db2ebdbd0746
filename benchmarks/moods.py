"""A second secondary at work: captions in the mood that is asked for, judged by a classifier, of pictures no training saw.

reached: share of the prompts whose mood the classifier holds for the one asked for. words: share of the words of a right
caption that were found. right: share of the prompts that hold no wrong colour, object or setting word.

    python benchmarks/moods.py --pictures 20
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from statistics import median

from pictures import draw, found
from runs import Models, arguments, find, mean, show


def main() -> None:
    options = arguments(
        __doc__,
        pictures={"type": int, "default": 20},
        first={"type": int, "default": 1_000_000, "help": "seed of the first picture"},
        moods={"default": "none,cheerful,gloomy", "help": "moods to ask for; none: the picture alone"},
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    rows, models = [], Models()
    with tempfile.TemporaryDirectory() as folder:
        scenes = [draw(seed, Path(folder)) for seed in range(options.first, options.first + options.pictures)]
        for mood in options.moods.split(","):
            asked = (
                ["secondary=[demo_clip]"] if mood == "none" else ["secondary=[demo_clip,demo_mood]", f"secondary.demo_mood.target={mood}"]
            )
            results = [find(f"image={scene['image']}", *asked, *options.overrides.split(), models=models) for scene in scenes]
            if options.verbose:
                for result, scene in zip(results, scenes, strict=True):
                    print(f"{mood} | {result.prompt} | {scene['caption']}", flush=True)
            shares = [math.exp(-result.terms["demo_mood"].loss) for result in results if "demo_mood" in result.terms]
            pairs = list(zip(results, scenes, strict=True))
            rows.append(
                {
                    "mood": mood,
                    "reached": mean([float(share > 0.5) for share in shares]),
                    "words": mean([found(result.prompt, scene)[0] for result, scene in pairs]),
                    "right": mean([float(found(result.prompt, scene)[1] == 1) for result, scene in pairs]),
                    "perplexity": math.exp(mean([result.terms["primary"].loss for result in results])),
                    "seconds": median(result.seconds for result in results),
                }
            )
    show(f"Moods of {options.pictures} held-out pictures", rows, options.json)


if __name__ == "__main__":
    main()
