"""Networks that talk about a picture, as terms: losses are the networks' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROOT
from sampling import sampled
from test_captioners import CHAT, ENDS, IMAGE, SIDE, SIGHT, SMALL, florence, git, llava, paligemma
from test_models_kinds import save, word_tokenizer

import fuse
from fuse.app.build import build
from fuse.app.config import compose
from fuse.errors import FuseError
from fuse.losses import NLL
from fuse.models import ImageText
from fuse.nn.batch import pad
from fuse.term import Term

INSTRUCTION = "describe the picture"
TEXTS = ["a red house in the snow", "dog", "the blue cup", "a red house in a snow"]
OTHER = fuse.open_image(ROOT / "images/house.png")


def named_tokens(*names: str) -> Any:
    """A tokenizer that knows these special tokens by name."""
    named = {name: f"<{name.partition('_')[0]}>" for name in names}
    specials = ("[PAD]", "[UNK]", *named.values())
    ends = {"pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    return word_tokenizer("<s>", "</s>", specials, extra_special_tokens=named, **ends)


def gemma3() -> tuple[Any, ...]:
    """Tokens of a picture see each other, whatever their order."""
    t, words = transformers, named_tokens("image_token", "boi_token", "eoi_token")
    template = CHAT.replace("<image>", "<boi>")
    pictures = t.Gemma3ImageProcessor(size=SIDE)
    processor = t.Gemma3Processor(pictures, words, chat_template=template, image_seq_length=4)
    text = {"hidden_size": 32, "head_dim": 16, **SMALL, "num_key_value_heads": 1, **ENDS}
    config = t.Gemma3Config(
        vision_config={**SIGHT, "model_type": "siglip_vision_model"},
        text_config={**text, "vocab_size": len(words), "model_type": "gemma3_text"},
        mm_tokens_per_image=4,
        image_token_id=words.image_token_id,
    )
    return config, (processor,)


def qwen2_vl() -> tuple[Any, ...]:
    """Tokens of a picture have positions in two more dimensions."""
    t, words = transformers, named_tokens("image_token", "video_token", "start_token", "end_token")
    pictures = t.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=84 * 84)
    processor = t.Qwen2VLProcessor(pictures, words, t.Qwen2VLVideoProcessor(), CHAT)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {"hidden_size": 32, **SMALL, "num_key_value_heads": 1, **ENDS, "rope_parameters": rope}
    config = t.Qwen2VLConfig(
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        text_config={**text, "vocab_size": len(words)},
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.start_token_id,
        vision_end_token_id=words.end_token_id,
    )
    return config, (processor,)


KINDS = {
    "llava": lambda: llava(CHAT),
    "llava, no template": lambda: llava(None),
    "paligemma": paligemma,
    "gemma 3": gemma3,
    "qwen 2 vl": qwen2_vl,
}


def make(kind: str) -> ImageText:
    config, (processor,) = KINDS[kind]()
    torch.manual_seed(0)
    network = transformers.AutoModelForImageTextToText.from_config(config).eval()
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return ImageText(network, processor)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> ImageText:
    return make(kind)


def own_losses(
    model: ImageText, image: Any, texts: list[str], instruction: str = INSTRUCTION
) -> list[float]:
    """The loss that the network itself computes, with the text as labels after its own inputs."""
    network = type(model.network)(model.network.config).eval()
    network.load_state_dict(model.network.state_dict())
    losses = []
    prompt = model.prompts.choices(instruction)[:2][-1]
    for text in texts:
        given = model.prompts.inputs(image, prompt)
        said = torch.tensor([model.vocabulary.encode([text])[0][0]])
        before = given["input_ids"]
        given["labels"] = torch.cat([torch.full_like(before, -100), said], 1)
        given["input_ids"] = torch.cat([before, said], 1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        # PaliGemma calls its answers 1, the others their pictures
        kind = int(type(network).__name__.startswith("Pali"))
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in given:
                given[name] = torch.cat([given[name], torch.full_like(said, kind)], 1)
        with torch.no_grad():
            losses.append(float(network(**given).loss))
    return losses


OPTIONS: list[dict[str, bool]] = [{}, {"packing": False}, {"prefix_cache": False}]


@pytest.mark.parametrize("options", sampled(OPTIONS, len(OPTIONS)), ids=str)
def test_losses_are_the_networks_own(model: ImageText, options: dict[str, bool]) -> None:
    terms = {}
    for name, image in (("noise", IMAGE), ("house", OTHER)):
        terms[name] = Term(model.looking_at(image, INSTRUCTION), NLL(), **options)
    for image, term in zip((IMAGE, OTHER), terms.values(), strict=True):
        rows = term.encode(TEXTS)
        expected = own_losses(model, image, TEXTS)
        for prefilled in ([], rows[:1], rows):
            term.engine.prefill(prefilled)
            assert term.score(rows).tolist() == pytest.approx(expected, abs=1e-4)
    first, second = (own_losses(model, image, TEXTS[:1]) for image in (IMAGE, OTHER))
    assert abs(first[0] - second[0]) > 1e-3  # the picture matters


@pytest.fixture(scope="module", params=["llava", "qwen 2 vl"])
def looking(request: pytest.FixtureRequest) -> ImageText:
    return make(request.param).looking_at(IMAGE, INSTRUCTION)


def test_gradients_equal_finite_differences(looking: ImageText) -> None:
    term = Term(looking, NLL())
    (row,) = term.encode(TEXTS[:1])
    position = row.free[0] + 1
    (found,) = term.gradient([row], [[position]]).embedding[0]
    table = term.vocabulary.embedding
    step = 1e-2 * torch.nn.functional.normalize(found, dim=-1)
    own = table[row.ids[position]]
    inputs = pad([row], term.model.device)
    values = []
    for sign in (1, -1):
        embeddings = table[inputs.ids].clone()
        embeddings[0, position] = own + sign * step
        values.append(float(NLL()(term.model, replace(inputs, embeddings=embeddings))))
    numeric = (values[0] - values[1]) / 2
    assert float((found * step).sum()) == pytest.approx(numeric, rel=2e-2)


def test_a_search_looks_at_the_picture(looking: ImageText, lm: fuse.CausalLM) -> None:
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, looking)
    objective = fuse.Objective(
        Term(lm, NLL()), {"image_text": Term(looking, NLL(), adapter=adapter)}
    )
    method = fuse.GCG(search_width=8, prompt_length=3)
    result = fuse.check_search(fuse.Search(objective, method, steps=2))
    (own,) = own_losses(looking, IMAGE, [result.prompt])
    assert result.terms["image_text"].loss == pytest.approx(own, abs=1e-4)


def test_a_search_of_its_own_tokens_may_say_the_words_of_the_instruction(
    looking: ImageText,
) -> None:
    (word,) = looking.vocabulary.encode(["picture"])[0][0]
    assert word in looking.vocabulary.head
    assert looking.vocabulary.allowed[word]
    objective = fuse.Objective(Term(looking, NLL()))
    result = fuse.search(objective, fuse.AutoDAN(search_width=8), fuse.Beam(2), steps=3)
    (own,) = own_losses(looking, IMAGE, [result.prompt])
    assert result.loss == pytest.approx(own, abs=1e-4)


def test_without_the_picture_before_it_a_text_is_refused(looking: ImageText) -> None:
    term = Term(looking, NLL(), prefix="a", start="none")
    with pytest.raises(FuseError, match="start=auto"):
        term.score(term.encode(TEXTS))


@pytest.mark.parametrize(
    ("make", "words"), [(florence, "picture as tokens"), (git, "every token that it reads")]
)
def test_what_does_not_read_pictures_as_tokens_is_refused(make: Any, words: str) -> None:
    config, (processor,) = make()
    network = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with pytest.raises(FuseError, match=words) as raised:
        ImageText(network, processor).looking_at(IMAGE)
    assert "\n" not in str(raised.value)


class Distracted(transformers.LlavaForConditionalGeneration):
    """Reads what follows a picture otherwise than texts."""

    def forward(self, *arguments: Any, pixel_values: Any = None, **options: Any) -> Any:
        self.seen = getattr(self, "seen", False) or pixel_values is not None
        out = super().forward(*arguments, pixel_values=pixel_values, **options)
        if self.seen:
            out.logits = out.logits * 2
        return out


def test_a_network_that_reads_otherwise_after_a_picture_is_refused() -> None:
    config, (processor,) = llava(CHAT)
    torch.manual_seed(0)
    model = ImageText(Distracted(config).eval(), processor)
    with pytest.raises(FuseError, match=r"Distracted.*another way than alone"):
        model.looking_at(IMAGE)


def test_a_folder_is_a_term_of_a_run(tmp_path: Path) -> None:
    config, (processor,) = llava(CHAT)
    save(tmp_path / "llava", transformers.AutoModelForImageTextToText, config, processor)
    lines = ["secondary=[image_text]", f"secondary.image_text.model_id={tmp_path / 'llava'}"]
    lines += ["adapter=lexical", f"adapter.cache_dir={tmp_path / 'cache'}", "steps=2"]
    search = build(compose(lines))
    result = search.run()
    model = search.objective.secondaries["image_text"].model
    assert isinstance(model, ImageText)
    (own,) = own_losses(model, OTHER, [result.prompt], "Describe the picture in one sentence.")
    assert result.terms["image_text"].loss == pytest.approx(own, abs=1e-4)
    half = ImageText.load(str(tmp_path / "llava"), dtype=torch.bfloat16).looking_at(OTHER)
    assert Term(half, NLL()).score(Term(half, NLL()).encode(TEXTS)).isfinite().all()
