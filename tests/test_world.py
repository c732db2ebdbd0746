# ruff: noqa: SIM905
"""The drawn world: nothing held out leaks, captions are true, and the demo models are able."""

import random
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from train_captioner import is_placed_right, is_right
from world import drawing
from world.scenes import (
    CHEERFUL,
    COLOURS,
    GLOOMY,
    OBJECTS,
    SETTINGS,
    Scene,
    Thing,
    caption,
    is_heldout,
    plain_caption,
    random_scene,
    right_words,
    wrong_words,
)
from world.sentences import (
    IRREGULAR,
    free_sentence,
    inflect,
    mentions_heldout,
    plural,
    sentence,
    world_caption,
)

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "fuse" / "demo"
HELD = next((c, o, s) for c in COLOURS for o in OBJECTS for s in SETTINGS if is_heldout(c, o, s))
SENTENCES = [sentence(random.Random(seed)) for seed in range(3000)]
FREE = [free_sentence(random.Random(seed)) for seed in range(3000)]
VOWEL = r"[aeiouAEIOU]"


def said_combinations(text: str) -> set[tuple[str, str, str]]:
    """(colour, object, setting) of every "colour object" that is said, with each setting.

    Plurals are included.
    """
    words = [
        w if w in {*OBJECTS, *SETTINGS} else w.removesuffix("s")
        for w in re.findall(r"[a-z]+", text.lower())
    ]
    pairs = [(c, o) for c, o in pairwise(words) if c in COLOURS and o in OBJECTS]
    return {(c, o, s) for c, o in pairs for s in SETTINGS if s in words}


def test_about_a_tenth_is_held_out_of_every_setting() -> None:
    """Each setting leaves plenty of training combinations and has some that are held out."""
    for setting in SETTINGS:
        share = sum(is_heldout(c, o, setting) for c in COLOURS for o in OBJECTS) / (
            len(COLOURS) * len(OBJECTS)
        )
        assert 0.04 < share < 0.18


@pytest.mark.parametrize("heldout", [False, True])
def test_scenes_hold_only_what_was_asked_for(heldout: bool) -> None:
    """All things of a training scene are training combinations, of a held-out one held-out ones."""
    scenes = [random_scene(random.Random(seed), heldout) for seed in range(300)]
    assert {is_heldout(t.colour, t.object, s.setting) for s in scenes for t in s.things} == {
        heldout
    }
    assert {len(s.things) for s in scenes} == {1, 2}
    assert all(len({t.object for t in s.things}) == len(s.things) for s in scenes)


@pytest.mark.parametrize("moods", [(), CHEERFUL, GLOOMY])
def test_captions_describe_the_scene_and_nothing_else(moods: tuple[str, ...]) -> None:
    """All right words are in a caption, no wrong one is, and moods are where they are asked for."""
    for seed in range(400):
        rng = random.Random(seed)
        scene = random_scene(rng, heldout=seed % 2 == 0)
        text = caption(scene, rng, moods)
        for said in (text, plain_caption(scene)):
            words = set(re.findall(r"[a-z]+", said.lower()))
            assert words >= set(right_words(scene)), said
            assert not words & set(wrong_words(scene)), said
        words = re.findall(r"[a-z]+", text.lower())
        assert sum(w in moods for w in words) == (len(scene.things) if moods else 0), text
        assert not set(words) & (set(CHEERFUL + GLOOMY) - set(moods)), text


def test_right_and_wrong_words_part_the_vocabulary() -> None:
    """The word lists are disjoint and together make up the world's words."""
    scene = Scene((Thing("house", "red", "big"), Thing("tree", "blue", "small")), "snow", "left")
    assert right_words(scene) == ["blue", "house", "red", "snow", "tree"]
    assert plain_caption(scene) == "A red house next to a blue tree in the snow."
    assert sorted(right_words(scene) + wrong_words(scene)) == sorted(
        {*COLOURS, *OBJECTS, *SETTINGS}
    )


def test_no_sentence_says_a_held_out_combination() -> None:
    """Neither captions nor free sentences of training do; the free ones do mention the world."""
    said = [said_combinations(text) for text in SENTENCES + FREE]
    assert sum(map(bool, said)) > 500
    assert [
        combination
        for combinations in said
        for combination in combinations
        if is_heldout(*combination)
    ] == []


def test_the_guard_sees_held_out_words() -> None:
    """It finds them apart from each other, capitalised and in the plural; training ones pass."""
    colour, object, setting = HELD
    assert mentions_heldout(f"The {object}s of the {setting} are {colour}.")
    assert mentions_heldout(
        f"{colour.capitalize()} is the {object}. It stands {SETTINGS[setting][0]}."
    )
    assert not mentions_heldout(f"The {object} is {colour}.")
    assert not any(
        mentions_heldout(plain_caption(s))
        for s in map(random_scene, map(random.Random, range(200)))
        if not s.relation
    )


def test_sentences_are_fixed_by_their_seed() -> None:
    """Equal seeds give equal sentences, unequal seeds a variety."""
    for draw in (sentence, free_sentence, world_caption):
        once, again = ([draw(random.Random(seed)) for seed in range(200)] for _ in range(2))
        assert once == again
        assert len(set(once)) > 150


def test_about_a_third_are_captions() -> None:
    """From 30% to 45% of the sentences name a colour, an object and a setting, as captions do."""
    share = sum(bool(said_combinations(text)) for text in SENTENCES) / len(SENTENCES)
    assert 0.3 < share < 0.45


def test_sentences_are_well_formed() -> None:
    """Capital start, final mark, nothing unfilled, single spaces, paired quotes, right article."""
    for text in SENTENCES + FREE:
        assert re.fullmatch(r'"?[A-Z].*[.?!]"?', text), text
        assert not re.search(r"[{}*_]|  |\bNone\b", text), text
        assert text.count('"') in (0, 2, 4), text
        assert not re.search(rf"\b[Aa] {VOWEL}", text), text
        assert not re.search(r"\b[Aa]n (?!hour)[^aeiou]", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text


def test_forms_of_words() -> None:
    """Spelling rules and exceptions of verbs and nouns."""
    assert [
        inflect("carry", f) for f in ("base", "s", "ed", "en", "ing")
    ] == "carry carries carried carried carrying".split()
    assert [
        inflect("swim", f) for f in ("s", "ed", "en", "ing")
    ] == "swims swam swum swimming".split()
    assert [
        inflect("be", f) for f in ("s", "are", "ed", "eds", "en", "ing")
    ] == "is are was were been being".split()
    assert [inflect("take", "ing"), inflect("stop", "ed"), inflect("have", "s")] == [
        "taking",
        "stopped",
        "has",
    ]
    assert [
        plural(n) for n in "box cherry key mouse fish church".split()
    ] == "boxes cherries keys mice fish churches".split()
    assert all(len(forms) == 2 for forms in IRREGULAR.values())


@torch.no_grad()
def cheer(*texts: str) -> list[float]:
    """How cheerful the demo classifier finds each text, from 0 to 1."""
    model = AutoModelForSequenceClassification.from_pretrained(
        DEMO / "mood", dtype=torch.float32
    ).eval()
    assert model.config.id2label == {0: "cheerful", 1: "gloomy"}
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "mood")
    assert tokenizer.is_fast
    return (
        model(**tokenizer(list(texts), padding=True, return_tensors="pt"))
        .logits.softmax(-1)[:, 0]
        .tolist()
    )


def test_moods_are_distinguished_in_held_out_captions() -> None:
    """Mood words decide, wherever they stand; plain captions are neither cheerful nor gloomy."""
    rng = random.Random(5)
    scenes = [random_scene(rng, heldout=True) for _ in range(20)]
    cheerful, gloomy, plain = (
        [caption(scene, rng, moods) for scene in scenes] for moods in (CHEERFUL, GLOOMY, ())
    )
    assert min(cheer(*cheerful, "In the snow there is a big house. Merry", "A lovely")) > 0.9
    assert max(cheer(*gloomy, "A red house stands alone in the snow, dreary", "weary")) < 0.1
    even = cheer(
        *plain,
        *(text[: len(text) // 2] for text in plain),
        "A red cup on a sunny meadow.",
        "A picture of",
        "a a a",
    )
    assert 0.35 < min(even) < max(even) < 0.65


def test_captioner_describes_held_out_pictures() -> None:
    """Nearly all are described rightly, with how two things stand to each other.

    The demo language model's tokenizer reads the text back.
    """
    rng = random.Random(11)
    scenes = [random_scene(rng, heldout=True) for _ in range(40)]
    processor = AutoProcessor.from_pretrained(DEMO / "captioner")
    model = AutoModelForImageTextToText.from_pretrained(
        DEMO / "captioner", dtype=torch.float32
    ).eval()
    inputs = processor(images=[drawing.draw(scene, rng) for scene in scenes], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=30, num_beams=4)
    texts = [processor.decode(row, skip_special_tokens=True) for row in ids]
    assert sum(is_right(scene, text) for scene, text in zip(scenes, texts, strict=True)) >= 36, (
        texts
    )
    pairs = [(s, t) for s, t in zip(scenes, texts, strict=True) if s.relation and is_right(s, t)]
    placed = [
        answer
        for answer in (is_placed_right(scene, text) for scene, text in pairs)
        if answer is not None
    ]
    assert sum(placed) >= len(placed) - 1 >= 4, texts
    reader = AutoTokenizer.from_pretrained(DEMO / "lm")
    assert [
        reader.decode(reader(text).input_ids, skip_special_tokens=True) for text in texts
    ] == texts
    assert all(re.fullmatch(r"[A-Z][a-z]*(,? [a-z]+)*[.!]", text) for text in texts), texts


@torch.no_grad()
def test_open_clip_folder_equals_the_demo_clip() -> None:
    """The exported checkpoint gives the demo CLIP's vectors of texts and of pictures."""
    open_clip = pytest.importorskip(
        "open_clip", reason="compares with open_clip, which is not installed"
    )
    clip = CLIPModel.from_pretrained(DEMO / "clip", dtype=torch.float32).eval()
    tokenizer, processor = (
        auto.from_pretrained(DEMO / "clip") for auto in (AutoTokenizer, AutoImageProcessor)
    )
    other, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{DEMO / 'open_clip'}")
    other.eval()
    texts = ["A red house stands in the snow.", "zebra!", "", "so " * 80]
    read = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    vectors = normalize(clip.get_text_features(**read).pooler_output, dim=-1)
    ids = open_clip.get_tokenizer(f"local-dir:{DEMO / 'open_clip'}")(texts)
    torch.testing.assert_close(other.encode_text(ids, normalize=True), vectors, rtol=0, atol=1e-5)
    images = [
        Image.open(ROOT / "images" / f"{name}.png").convert("RGB") for name in ("house", "kite")
    ]
    vectors = normalize(
        clip.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output,
        dim=-1,
    )
    pixels = torch.stack([preprocess(image) for image in images])
    torch.testing.assert_close(
        other.encode_image(pixels, normalize=True), vectors, rtol=0, atol=1e-4
    )
