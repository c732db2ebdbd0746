"""Models: what they read, what they refuse, and pictures as a person sees them."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

import fuse
from fuse.guide import Guide
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.nn.fixed_layers import Acceleration, LastFeedForward


def test_the_next_token_follows_the_prompt_and_not_the_suffix(lm: fuse.CausalLM) -> None:
    for prompt in ("", "A red house"):
        row = lm.vocabulary.encode([prompt])[0][0]
        plain = Guide(fuse.Objective(fuse.Term(lm, fuse.NLL()))).next_token_log_probs([row])
        term = fuse.Term(lm, fuse.CrossEntropy("in the snow."), suffix="and so on")
        around = Guide(fuse.Objective(term)).next_token_log_probs([row])
        torch.testing.assert_close(plain, around, atol=1e-4, rtol=0)
        context = torch.tensor([[*lm.vocabulary.head, *row]])
        own = lm.network(input_ids=context).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(plain[0], own, atol=1e-4, rtol=0)


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "fuse/demo/clip", tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name.replace("text_model", "other"): w for name, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(fuse.FuseError, match="weights such as"):
        fuse.CLIP.load(str(folder))
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(fuse.FuseError, match="could not load it"):
        fuse.CLIP.load(str(folder))


def test_special_tokens_without_a_name_are_never_allowed(lm: fuse.CausalLM) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "fuse/demo/lm")
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    (turn,) = tokenizer("<|turn|>", add_special_tokens=False).input_ids
    vocabulary = EmbeddedVocabulary(tokenizer, torch.zeros(len(tokenizer), 2), 64)
    assert not vocabulary.allowed[turn]
    assert vocabulary.allowed[turn - 1]


def test_pictures_are_read_as_a_person_sees_them(tmp_path: Path) -> None:
    turned = Image.new("RGB", (2, 4), "red")
    turned.putpixel((0, 0), (0, 0, 255))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned
    turned.save(tmp_path / "turned.png", exif=exif)
    assert fuse.open_image(tmp_path / "turned.png").size == (4, 2)
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert fuse.open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_next_tokens_of_rows_that_begin_one_another_are_those_of_each_alone(
    lm: fuse.CausalLM,
) -> None:
    guide = Guide(fuse.Objective(fuse.Term(lm, fuse.NLL())))
    row = lm.vocabulary.encode(["A red house in the snow"])[0][0]
    other = lm.vocabulary.encode(["A blue cup"])[0][0]
    rows = [row[:2], other, row, (), row[:2], other[:1], row[:4]]
    together = guide.next_token_log_probs(rows)
    alone = torch.cat([guide.next_token_log_probs([one]) for one in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


class Block(torch.nn.Module):
    """A layer that may mix tokens behind its feed-forward part."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mlp, self.mixes = torch.nn.Linear(4, 4), mixes

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.mlp(states)
        return states.cumsum(1) if self.mixes else states


@pytest.mark.parametrize(
    ("mixes", "rounds", "narrowed"), [(False, 1, True), (True, 1, False), (False, 2, False)]
)
def test_what_others_read_on_from_is_left_whole(
    mixes: bool, rounds: int, narrowed: bool, generator: torch.Generator
) -> None:
    layers = torch.nn.Sequential(Block(True), Block(mixes)).requires_grad_(False)
    states = torch.randn(1, 5, 4, generator=generator)

    def outputs() -> torch.Tensor:
        found = states
        for _ in range(rounds):
            found = layers(found)
        return found[:, -1]

    last = LastFeedForward(layers, 2, outputs)
    assert (last._module is not None) == narrowed
    whole = outputs()
    with last.only(slice(None), torch.tensor([4])):
        torch.testing.assert_close(outputs(), whole)


@pytest.mark.parametrize("kind", ["lm", "clip"])
def test_the_last_layer_computes_what_is_read(
    request: pytest.FixtureRequest, kind: str, house: torch.Tensor
) -> None:
    """Its feed-forward part sees what predicts a token of a label, or ends a text, and no more."""
    model = request.getfixturevalue(kind)
    losses = {"lm": fuse.CrossEntropy("in the snow."), "clip": fuse.CosineDistance(house)}
    term = fuse.Term(model, losses[kind])
    rows = term.encode(["A red house", "Two blue cups stand"])
    seen: list[int] = []
    first: torch.nn.Module | None = None
    for name, module in model.network.named_modules():
        if name.endswith(("mlp.fc1", "mlp.c_fc")) and "vision" not in name:
            first = module
    assert first is not None

    def count(_: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        seen.append(given[0].shape[:-1].numel())

    hook = first.register_forward_pre_hook(count)
    term.score(rows)
    term.gradient(rows, [range(*row.free) for row in rows])
    hook.remove()
    label = rows[0].label[1] - rows[0].label[0]
    one_by_one = 2 * (label if kind == "lm" else 1)
    # A batch of rows whose labels are at other positions reads all of these positions in each
    assert one_by_one <= seen[0] <= 2 * one_by_one
    assert seen[1:] == seen[:1]


def test_a_network_goes_when_nobody_holds_it() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4)).requires_grad_(False)
    Acceleration(network)
    network(torch.ones(2, 4))
    weight = weakref.ref(network[0].weight)
    gc.disable()
    try:
        del network
        assert weight() is None
    finally:
        gc.enable()


def test_a_model_goes_when_nobody_holds_it() -> None:
    model = fuse.CausalLM.load(str(ROOT / "fuse/demo/lm"))
    weight = weakref.ref(model.network.lm_head.weight)
    gc.collect()
    gc.disable()
    try:
        del model
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_nearest_tokens_in_any_type(lm: fuse.CausalLM, dtype: torch.dtype) -> None:
    vocabulary = EmbeddedVocabulary(lm.vocabulary.tokenizer, lm.vocabulary.embedding.to(dtype), 64)
    tokens = torch.tensor([[300, 500], [700, 900]])
    assert torch.equal(vocabulary.nearest(vocabulary.embedding[tokens], vocabulary.allowed), tokens)


@pytest.mark.parametrize(
    "method", [fuse.PEZ(steps=2), fuse.GCG(steps=2, search_width=8)], ids=["pez", "gcg"]
)
def test_searches_in_a_half_type(method: fuse.PEZ | fuse.GCG) -> None:
    lm = fuse.CausalLM.load(str(ROOT / "fuse/demo/lm"), dtype=torch.bfloat16)
    result = fuse.search(fuse.Objective(fuse.Term(lm, fuse.NLL())), method, init="A red house")
    assert result.steps == 2
    assert result.loss == fuse.Objective(fuse.Term(lm, fuse.NLL())).evaluate_text(result.prompt)[0]
