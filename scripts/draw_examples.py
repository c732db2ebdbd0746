"""Draw the ten example pictures of `images/`."""

from __future__ import annotations

import random
from pathlib import Path

from world.drawing import draw
from world.scenes import Scene, Thing, is_heldout

EXAMPLES = {
    "house": Scene((Thing("house", "red", "big"),), "snow"),
    "boat": Scene((Thing("boat", "orange", "big"),), "sea"),
    "cat": Scene((Thing("cat", "orange", "big"),), "meadow"),
    "rocket": Scene((Thing("rocket", "white", "big"),), "night"),
    "umbrella": Scene((Thing("umbrella", "purple", "big"),), "rain"),
    "tent": Scene((Thing("tent", "blue", "big"),), "desert"),
    "mushroom": Scene(
        (Thing("mushroom", "orange", "big"), Thing("snail", "brown", "small")), "forest", "left"
    ),
    "train": Scene(
        (Thing("balloon", "pink", "big"), Thing("train", "black", "big")), "city", "above"
    ),
    "kite": Scene(
        (Thing("kite", "green", "big"), Thing("house", "orange", "small")), "meadow", "right"
    ),
    "key": Scene((Thing("key", "pink", "big"), Thing("book", "blue", "big")), "desert", "left"),
}


def main() -> None:
    """Write one PNG an example."""
    folder = Path(__file__).resolve().parents[1] / "images"
    folder.mkdir(exist_ok=True)
    for name, scene in EXAMPLES.items():
        if any(is_heldout(t.colour, t.object, scene.setting) for t in scene.things):
            raise SystemExit(f"{name} shows a held-out combination")
        draw(scene, random.Random(name)).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
