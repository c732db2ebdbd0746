"""Photographs: does the text found name what is in the picture as often as the CLIP itself
recognises it?

PHOTOS is a folder with one folder of pictures for each class, named after it. named: share of the
prompts that hold the class's name. zero_shot: share of the pictures for which "a photo of a CLASS"
is the best of all classes' sentences.

    python benchmarks/photographs.py --photos PHOTOS --clip MODEL --primary
    ../shared/realbed/gpt2-flickr
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import median

from runs import Models, Row, arguments, find, mean, show

import fuse


def main() -> None:
    options = arguments(
        __doc__,
        photos={
            "required": True,
            "type": Path,
            "help": "folder with a folder of pictures for each class",
        },
        clip={"default": "openai/clip-vit-base-patch32", "help": "hub id or folder"},
        primary={"default": "gpt2", "help": "hub id or folder of the language model"},
        number={"type": int, "default": 40},
        seed={"type": int, "default": 0},
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    classes = sorted(path.name for path in options.photos.iterdir() if path.is_dir())
    photos = [
        (name, path) for name in classes for path in sorted((options.photos / name).iterdir())
    ]
    clip = fuse.CLIP.load(options.clip)
    sentences = clip.embed_texts([f"a photo of a {name}" for name in classes])
    models: Models = {}
    results: list[Row] = []
    for name, path in random.Random(options.seed).sample(photos, min(options.number, len(photos))):
        chosen = [
            "primary=causal_lm",
            f"primary.model_id={options.primary}",
            "secondary=[clip]",
            f"secondary.clip.model_id={options.clip}",
        ]
        result = find(*chosen, f"image={path}", *options.overrides.split(), models=models)
        (image,) = clip.embed_images([fuse.open_image(path)])
        results.append(
            {
                "class": name,
                "named": float(name.lower() in result.prompt.lower()),
                "zero_shot": float(classes[int((sentences @ image).argmax())] == name),
                "perplexity": result.terms["primary"].loss,
                "seconds": result.seconds,
            }
        )
        if options.verbose:
            print(name, "|", result.prompt, flush=True)
    shown = [
        row
        for name in classes
        if (row := summary(name, [r for r in results if r["class"] == name]))["pictures"]
    ]
    show("Photographs", [*shown, summary("all", results)], options.json)


def summary(name: str, results: list[Row]) -> Row:
    """One row of the table."""
    return {
        "class": name,
        "pictures": len(results),
        "named": mean([r["named"] for r in results]),
        "zero_shot": mean([r["zero_shot"] for r in results]),
        "perplexity": math.exp(mean([r["perplexity"] for r in results]))
        if results
        else float("nan"),
        "seconds": median(r["seconds"] for r in results) if results else float("nan"),
    }


if __name__ == "__main__":
    main()
