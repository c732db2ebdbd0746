"""Networks that talk about a picture, as terms: losses are the networks' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_captioners import CHAT, ENDS, IMAGE, IMAGE_ID, LLAMA, SIDE, llava, paligemma, tokenizer
from test_captioners import SIGHT, SMALL, clip_pictures, florence
from test_models_kinds import save

import fuse
from fuse.errors import FuseError
from fuse.losses import NLL
from fuse.models import ImageText
from fuse.term import Term

INSTRUCTION = "describe the picture"
TEXTS = ["a red house in the snow", "dog", "the blue cup", "a red house in a snow"]
OTHER = fuse.open_image("images/house.png")


def smolvlm() -> tuple[Any, ...]:
    t = transformers
    vision = {**SIGHT, "model_type": "smolvlm_vision"}
    config = t.SmolVLMConfig(
        vision_config=vision,
        text_config={**LLAMA, "vocab_size": 64},
        image_token_id=IMAGE_ID,
        scale_factor=1,
        tie_word_embeddings=False,
    )
    return config, None


KINDS = {
    "llava": lambda: llava(CHAT),
    "llava, no template": lambda: llava(None),
}


def load(folder: Path, kind: str, **options: Any) -> ImageText:
    config, (processor,) = KINDS[kind]()
    save(folder, transformers.AutoModelForImageTextToText, config, processor)
    return ImageText.load(str(folder), **options)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> ImageText:
    return load(tmp_path_factory.mktemp("model") / "x", kind)


def own_losses(model: ImageText, image: Any, texts: list[str]) -> list[float]:
    """The loss that the network itself computes, with the text as labels after its own inputs."""
    network = type(model.network)(model.network.config).eval()
    network.load_state_dict(model.network.state_dict())
    losses = []
    prompt = model.prompts.choices(INSTRUCTION)[:2][-1]
    for text in texts:
        given = model.prompts.inputs(image, prompt)
        said = torch.tensor([model.vocabulary.encode([text])[0][0]])
        before = given["input_ids"]
        given["labels"] = torch.cat([torch.full_like(before, -100), said], 1)
        given["input_ids"] = torch.cat([before, said], 1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        with torch.no_grad():
            losses.append(float(network(**given).loss))
    return losses


@pytest.mark.parametrize("options", [{}, {"packing": False}, {"prefix_cache": False}], ids=str)
def test_losses_are_the_networks_own(model: ImageText, options: dict[str, bool]) -> None:
    for image in (IMAGE, OTHER):
        looking = model.looking_at(image, INSTRUCTION)
        term = Term(looking, NLL(), **options)
        rows = term.encode(TEXTS)
        expected = own_losses(model, image, TEXTS)
        for prefilled in ([], rows[:1], rows):
            term.engine.prefill(prefilled)
            assert term.score(rows).tolist() == pytest.approx(expected, abs=1e-4)
    first, second = (own_losses(model, image, TEXTS[:1]) for image in (IMAGE, OTHER))
    assert abs(first[0] - second[0]) > 1e-3  # the picture matters


def test_gradients_equal_finite_differences(model: ImageText) -> None:
    term = Term(model.looking_at(IMAGE, INSTRUCTION), NLL())
    (row,) = term.encode(TEXTS[:1])
    position = row.free[0] + 1
    (found,) = term.gradient([row], [[position]]).embedding[0]
    table = term.vocabulary.embedding
    step = 1e-2 * torch.nn.functional.normalize(found, dim=-1)
    own = table[row.ids[position]]
    from dataclasses import replace

    from fuse.nn.batch import pad

    inputs = pad([row], term.model.device)
    values = []
    for sign in (1, -1):
        embeddings = table[inputs.ids].clone()
        embeddings[0, position] = own + sign * step
        values.append(float(NLL()(term.model, replace(inputs, embeddings=embeddings))))
    numeric = (values[0] - values[1]) / 2
    assert float((found * step).sum()) == pytest.approx(numeric, rel=2e-2)


def test_a_search_looks_at_the_picture(model: ImageText, lm: fuse.CausalLM) -> None:
    looking = model.looking_at(IMAGE, INSTRUCTION)
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, looking)
    objective = fuse.Objective(
        Term(lm, NLL()), {"image_text": Term(looking, NLL(), adapter=adapter)}
    )
    method = fuse.GCG(search_width=8, prompt_length=3)
    result = fuse.check_search(fuse.Search(objective, method, steps=2))
    (own,) = own_losses(model, IMAGE, [result.prompt])
    assert result.terms["image_text"].loss == pytest.approx(own, abs=1e-4)
