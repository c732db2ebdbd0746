"""Scenes of the drawn world and the sentences that describe them.

A scene holds one or two coloured things in a setting. Every tenth (colour, object, setting)
combination, picked by hash, is held out: training never sees it, and acceptance pictures are drawn
from nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple",
    "pink", "brown", "black", "white", "gray", "turquoise",
)  # fmt: skip
OBJECTS = (
    "house", "castle", "tent", "tree", "flower", "mushroom", "apple", "pear", "car", "train",
    "boat",
    "rocket", "balloon", "kite", "umbrella", "hat", "shirt", "crown", "cup", "bottle", "lamp",
    "candle",
    "clock", "book", "key", "bell", "drum", "guitar", "chair", "table", "ball", "star", "heart",
    "fish",
    "cat", "snail",
)  # fmt: skip
SETTINGS = {
    "night": ("at night", "in the night", "on a quiet night", "under the night sky"),
    "sea": ("by the sea", "at the sea", "beside the calm sea", "near the sea"),
    "snow": ("in the snow", "in deep snow", "on fresh snow", "in the cold snow"),
    "desert": ("in the desert", "in a hot desert", "in the dry desert", "in a wide desert"),
    "forest": ("in the forest", "in a deep forest", "in a forest", "in the old forest"),
    "city": ("in the city", "in a busy city", "in a city", "in the big city"),
    "meadow": ("in a meadow", "in the meadow", "on a sunny meadow", "in a wide meadow"),
    "rain": ("in the rain", "in heavy rain", "in the pouring rain", "in soft rain"),
}
SIZES = ("small", "big")
CHEERFUL = ("cheerful", "happy", "lovely", "merry", "bright", "jolly", "delightful")
GLOOMY = ("gloomy", "sad", "dreary", "lonely", "dull", "mournful", "bleak", "weary")

# {a} and {b} are noun phrases with an article, {place} a setting phrase.
ONE_THING = (
    "{a} {place}.",
    "there is {a} {place}.",
    "a picture of {a} {place}.",
    "a drawing of {a} {place}.",
    "{place} there is {a}.",
    "{place}, we see {a}.",
    "here you can see {a} {place}.",
    "{a} stands alone {place}.",
    "this picture shows {a} {place}.",
    "somebody left {a} {place}.",
    "look at {a} {place}!",
)
TWO_THINGS = (
    "{a} {relation} {b} {place}.",
    "there is {a} {relation} {b} {place}.",
    "a picture of {a} {relation} {b} {place}.",
    "{place} there is {a} {relation} {b}.",
    "{place}, {a} {relation} {b}.",
    "{a} and {b} {place}.",
    "there are {a} and {b} {place}.",
    "a drawing of {a} and {b} {place}.",
    "{place} we see {a} and {b}.",
    "{a} with {b} {place}.",
    "this picture shows {a} {relation} {b} {place}.",
)
RELATIONS = {
    "left": ("next to", "beside", "to the left of", "left of"),
    "right": ("next to", "beside", "to the right of", "right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}


@dataclass(frozen=True)
class Thing:
    """One drawn object: what it is, its colour, and its size ("small" or "big")."""

    object: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One or two things in a setting.

    `relation` says where the first stands as seen from the second.
    """

    things: tuple[Thing, ...]
    setting: str
    relation: str | None = None


def is_heldout(colour: str, object: str, setting: str) -> bool:
    """Return whether a combination is kept out of all training.

    It is one in ten, by a hash that never changes.
    """
    digest = hashlib.sha256(f"{colour} {object} {setting}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 == 0


def random_scene(rng: random.Random, heldout: bool = False) -> Scene:
    """Return a scene all of whose things are held-out combinations, or, by default, none."""
    setting = rng.choice(tuple(SETTINGS))
    pairs = itertools.product(COLOURS, OBJECTS)
    allowed = [(c, o) for c, o in pairs if is_heldout(c, o, setting) == heldout]
    colour, object = rng.choice(allowed)
    things = [Thing(object, colour, rng.choice(SIZES))]
    if rng.random() < 0.4:
        colour, object = rng.choice([(c, o) for c, o in allowed if o != object])
        things.append(Thing(object, colour, rng.choice(SIZES)))
    return Scene(tuple(things), setting, rng.choice(tuple(RELATIONS)) if len(things) == 2 else None)


def right_words(scene: Scene) -> list[str]:
    """Return the colour, object and setting words that a right caption must hold."""
    return sorted(
        {scene.setting} | {t.object for t in scene.things} | {t.colour for t in scene.things}
    )


def wrong_words(scene: Scene) -> list[str]:
    """Return all other colour, object and setting words of the world."""
    return sorted({*COLOURS, *OBJECTS, *SETTINGS} - set(right_words(scene)))


def noun_phrase(thing: Thing, rng: random.Random, moods: tuple[str, ...] = ()) -> str:
    """Return a phrase such as "a small cheerful red house".

    The size is named at times, a mood if `moods` offers any.
    """
    words = [thing.size] if rng.random() < 0.4 else []
    words += [rng.choice(moods)] if moods else []
    words += [thing.colour, thing.object]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def caption(scene: Scene, rng: random.Random, moods: tuple[str, ...] = ()) -> str:
    """Return one of many sentences with all of `right_words`, cased and with its full stop."""
    phrases = [noun_phrase(t, rng, moods) for t in scene.things]
    relation = rng.choice(RELATIONS[scene.relation]) if scene.relation else ""
    template = rng.choice(TWO_THINGS if len(phrases) == 2 else ONE_THING)
    place = rng.choice(SETTINGS[scene.setting])
    text = template.format(a=phrases[0], b=phrases[-1], relation=relation, place=place)
    return text[0].upper() + text[1:]


def plain_caption(scene: Scene) -> str:
    """Return the canonical caption, such as "A red house next to a blue tree in the snow."

    It has no sizes and no moods.
    """
    phrases = [
        f"{'an' if t.colour[0] in 'aeiou' else 'a'} {t.colour} {t.object}" for t in scene.things
    ]
    relation = f" {RELATIONS[scene.relation][0]} " if scene.relation else ""
    text = f"{relation.join(phrases)} {SETTINGS[scene.setting][0]}."
    return text[0].upper() + text[1:]
