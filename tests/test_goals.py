"""From an entry of the configuration to a loss: known embeddings, classes and ratings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
from safetensors.torch import save_file
from test_models_kinds import BERT, bert_tokenizer, save

import fuse
from fuse.app.build import build
from fuse.app.config import compose
from fuse.app.terms import term_of


def term(*overrides: str, name: str = "demo_clip") -> fuse.Term:
    config = compose((f"secondary=[{name}]", *overrides))
    return term_of(config["secondary"][name], f"secondary.{name}", {})


def stored(folder: Path, vector: torch.Tensor) -> dict[str, Any]:
    """A vector in every form that is read."""
    one, two, three = folder / "a.safetensors", folder / "b.safetensors", folder / "c.json"
    save_file({"x": vector}, one)
    save_file({"x": vector[None].half()}, two)
    three.write_text(json.dumps(vector.tolist()))
    return {"file": one, "row": two, "json": three, "list": vector.tolist()}


def test_a_known_embedding_stands_for_a_picture(clip: fuse.CLIP, tmp_path: Path) -> None:
    texts = ["a red house in the snow", "a blue cup"]
    wanted = clip.embed_texts(texts[:1])[0]
    for form, value in stored(tmp_path, 3 * wanted).items():
        made = term(f"secondary.demo_clip.target_vector={value}")
        found = made.score(made.encode(texts))
        assert abs(found[0]) < 1e-4, form
        torch.testing.assert_close(
            found[1], 1 - clip.embed_texts(texts[1:])[0] @ wanted, atol=1e-3, rtol=0
        )


def test_a_known_embedding_stands_for_a_text(minilm: fuse.SentenceEncoder, tmp_path: Path) -> None:
    (wanted,) = minilm.embed_texts(["two dogs play"])
    value = stored(tmp_path, wanted)["file"]
    made = term(f"secondary.sentence.target_vector={value}", "target=cats", name="sentence")
    assert abs(made.score(made.encode(["two dogs play"]))[0]) < 1e-4


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[1,2,3]", "a vector of 3 numbers, expected 256"),
        ("[0,0]", "has no direction"),
        ("[1,nan]", "has no direction"),
        ("[1e300,1]", "has no direction"),
        ("[1,two]", "could not convert"),
        ("[]", "has no direction"),
        ("nowhere.json", "No such file"),
        ("weights.npy", "No such file"),
        ("weights.pt", "none of .npy, .safetensors"),
        ("several.safetensors", "it holds 2 tensors"),
        ("matrix.safetensors", "holds 2 rows, expected one"),
        ("broken.safetensors", "could not be read"),
        ("number.json", "could not be read"),
        ("nested.json", "could not be read"),
        ("deep.json", "could not be read"),
    ],
)
def test_odd_vectors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"x": torch.ones(3), "y": torch.ones(3)}, "several.safetensors")
    save_file({"x": torch.ones(2, 3)}, "matrix.safetensors")
    Path("broken.safetensors").write_bytes(b"x")
    Path("number.json").write_text("3")
    Path("nested.json").write_text("[[1], [2]]")
    Path("deep.json").write_text("[" * 100_000)
    with pytest.raises(fuse.FuseError) as raised:
        term(f"secondary.demo_clip.target_vector={value}")
    message = str(raised.value)
    assert message.startswith("secondary.demo_clip.target_vector") and words in message
    assert "\n" not in message


def test_a_vector_from_python_has_to_fit(clip: fuse.CLIP) -> None:
    made = fuse.Term(clip, fuse.CosineDistance(torch.ones(3)))
    with pytest.raises(fuse.FuseError, match=r"^target: a vector of 3 numbers, expected 256"):
        made.score(made.encode(["a"]))
    for odd in (torch.zeros(4), torch.full((4,), torch.nan)):
        with pytest.raises(fuse.FuseError, match=r"^target: a vector of shape"):
            fuse.CosineDistance(odd)


def rating(folder: Path) -> str:
    config = transformers.BertConfig(vocab_size=64, num_labels=1, **BERT)
    kind = transformers.AutoModelForSequenceClassification
    return str(save(folder, kind, config, bert_tokenizer()))


@pytest.mark.parametrize("target", ["0.9", "3", "-1e1"])
def test_a_rating_is_sought(tmp_path: Path, target: str) -> None:
    key = "secondary.classifier"
    made = term(f"{key}.model_id={rating(tmp_path)}", f"{key}.target={target}", name="classifier")
    rows = made.encode(["a red house", "dog"])
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        own = [peer(torch.tensor([row.ids])).logits[0, 0] for row in rows]
    expected = (torch.stack(own) - float(target)).square()
    torch.testing.assert_close(made.score(rows), expected, atol=1e-4, rtol=1e-4)
    gradient = made.gradient(rows, [range(*row.free) for row in rows])
    assert gradient.embedding.norm() > 0


@pytest.mark.parametrize("target", ["joy", "null", "nan", "inf", "true"])
def test_what_is_no_rating_is_one_line(tmp_path: Path, target: str) -> None:
    key = "secondary.classifier"
    with pytest.raises(fuse.FuseError, match=rf"^{key}.target={target}: .*such as 0.9"):
        term(f"{key}.model_id={rating(tmp_path)}", f"{key}.target={target}", name="classifier")


def test_one_prompt_for_several_pictures_and_away_from_another(clip: fuse.CLIP) -> None:
    """An entry's own list is looked at as a whole; a negative weight keeps away."""
    pictures = [str(ROOT / "images" / name) for name in ("boat.png", "cat.png")]
    away = ["+secondary@secondary.away=demo_clip", "secondary.away.weight=-2"]
    away.append(f"secondary.away.image={ROOT}/images/house.png")
    options = [f"secondary.demo_clip.image=[{','.join(pictures)}]", "method=random", *away]
    search = build(compose(options))
    term, other = (search.objective.secondaries[name] for name in ("demo_clip", "away"))
    vectors = clip.embed_images([fuse.open_image(path) for path in pictures])
    mean = torch.nn.functional.normalize(vectors, dim=-1).mean(0)
    torch.testing.assert_close(term.loss.target, mean / mean.norm())
    objective = search.objective
    evaluated = objective.evaluate([objective.spell("a red house")])
    expected = sum(t.weight * evaluated.terms[name] for name, t in objective.terms.items())
    torch.testing.assert_close(evaluated.loss, expected)
    assert other.weight == -2 and evaluated.terms["away"] > 0


def test_crops_count_beside_the_whole(clip: fuse.CLIP) -> None:
    path = ROOT / "images/boat.png"
    options = [f"image={path}", "secondary.demo_clip.crops=true", "method=random"]
    found = build(compose(options)).objective.secondaries["demo_clip"].loss.target
    image = fuse.open_image(path)
    wide, high = (round(0.8 * side) for side in image.size)
    right, low = image.width - wide, image.height - high
    corners = [(0, 0), (right, 0), (0, low), (right, low)]
    corners.append((round(right / 2), round(low / 2)))
    views = [image, *(image.crop((x, y, x + wide, y + high)) for x, y in corners)]
    vectors = torch.nn.functional.normalize(clip.embed_images(views), dim=-1)
    torch.testing.assert_close(found, torch.nn.functional.normalize(vectors.mean(0), dim=0))
    assert float(found @ vectors[0]) < 0.999
