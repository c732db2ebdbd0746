"""Losses against plain loops in value, and against finite differences in gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fuse
from fuse.engine import Engine
from fuse.losses import Loss
from fuse.nn.batch import pad
from fuse.text.template import Encoded, Template

PROMPTS = [
    "A red house in the snow.",
    "There is",
    "a blue cup",
    "Anna",
    "A big turquoise umbrella stands alone by the sea.",
]


def rows(
    model: fuse.CausalLM, loss: Loss, prefix: str = "Look:", suffix: str = "Yes."
) -> list[Encoded]:
    return Template(prefix, suffix, loss.label).encode(model.vocabulary, PROMPTS)


def log_p(model: fuse.CausalLM, ids: tuple[int, ...], position: int) -> float:
    """Return log p(ids[position] | ids[:position]) by a pass of the network over the context."""
    logits = model.network(input_ids=torch.tensor([ids[:position]])).logits[0, -1]
    return float(logits.log_softmax(-1)[ids[position]])


LOSSES = [
    fuse.NLL(),
    fuse.LogProb(),
    fuse.KLDiv(tau=0.5),
    fuse.NLL(length_penalty=0.5),
    fuse.LogProb(length_penalty=0.0),
    fuse.KLDiv(tau=0.5, length_penalty=0.5),
    fuse.CrossEntropy("a blue kite"),
    fuse.CrossEntropy("a blue kite", 0.3),
]
NAMES = [
    "nll",
    "log_prob",
    "kl_div",
    "nll_root",
    "log_prob_sum",
    "kl_div_root",
    "cross_entropy",
    "fluent_cross_entropy",
]


def plain_loss(model: fuse.CausalLM, loss: Loss, row: Encoded) -> float:
    """A loss by its formula, one position after the other."""
    if isinstance(loss, fuse.KLDiv):
        table, values = model.vocabulary.embedding, []
        for position in range(*row.free):
            distance = (table[row.ids[position]] - table).square().sum(-1)
            log_q = (-distance / loss.tau).log_softmax(-1)
            logits = model.network(input_ids=torch.tensor([row.ids[:position]])).logits[0, -1]
            values.append(float((log_q.exp() * (log_q - logits.log_softmax(-1))).sum()))
        return sum(values) / len(values) ** loss.length_penalty
    means = []
    for start, end in (row.label, row.free) if loss.label else (row.free,):
        log_ps = [log_p(model, row.ids, position) for position in range(start, end)]
        means.append(-sum(log_ps) / len(log_ps) ** getattr(loss, "length_penalty", 1.0))
    if not isinstance(loss, fuse.CrossEntropy):
        return means[0]
    return means[0] + loss.perplexity_weight * means[1]


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_lm_losses_equal_a_plain_loop(lm: fuse.CausalLM, loss: Loss) -> None:
    for surroundings in (("Look:", "Yes."), ("", "")):
        encoded = rows(lm, loss, *surroundings)
        got = loss(lm, pad(encoded, lm.device))
        for row, value in zip(encoded, got.tolist(), strict=True):
            assert value == pytest.approx(plain_loss(lm, loss, row), abs=1e-4)


def test_kl_div_tends_to_nll(lm: fuse.CausalLM) -> None:
    inputs = pad(rows(lm, fuse.NLL()), lm.device)
    exact = fuse.NLL()(lm, inputs)
    gaps = [
        float((fuse.KLDiv(tau=tau)(lm, inputs) - exact).abs().max()) for tau in (0.5, 0.1, 0.001)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.01
    assert gaps[-1] < 1e-4


def test_nll_of_candidates_that_share_their_context(lm: fuse.CausalLM) -> None:
    """Rows that differ in their last token alone share a forward pass, and get their own values."""
    prompts = ["A red house", "A red cup", "A red", "A red house in", "A blue cup"]
    encoded = Template().encode(lm.vocabulary, prompts)
    together = fuse.NLL()(lm, pad(encoded, lm.device))
    alone = torch.cat([fuse.NLL()(lm, pad([row], lm.device)) for row in encoded])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_nll_of_an_empty_prompt_is_zero(lm: fuse.CausalLM) -> None:
    encoded = Template().encode(lm.vocabulary, ["", "A red house"])
    values = fuse.NLL()(lm, pad(encoded, lm.device))
    assert values[0] == 0
    assert values[1] > 0


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_gradient_by_one_hot_tokens_equals_finite_differences(
    lm: fuse.CausalLM, loss: Loss
) -> None:
    """A free token acts twice under nll: as input to later positions, and as its own label."""
    model = fuse.CausalLM(lm.network.double(), lm.vocabulary.tokenizer)
    try:
        row = rows(model, loss)[0]
        found = Engine(model, loss, row).gradient([row], [range(len(row.ids))])
        table = model.vocabulary.embedding
        generator = torch.Generator().manual_seed(0)

        def value(one_hot: torch.Tensor) -> float:
            inputs = pad([row], model.device)
            plain = torch.nn.functional.one_hot(inputs.ids, len(table)).double()
            shift = {
                "labels": (one_hot[None] - plain).float(),
                "label_positions": torch.arange(len(row.ids))[None],
            }
            inputs = replace(inputs, embeddings=one_hot[None] @ table)
            if loss.reads_labels(model):
                inputs = replace(inputs, **shift)
            return float(loss(model, inputs))

        base = torch.nn.functional.one_hot(torch.tensor(row.ids), len(table)).double()
        for _ in range(6):
            position = int(torch.randint(row.free[0], row.free[1], (1,), generator=generator))
            token = int(torch.randint(len(table), (1,), generator=generator))
            step = torch.zeros_like(base)
            step[position, token] = 1e-3
            numeric = (value(base + step) - value(base - step)) / 2e-3
            exact = float(found.embedding[0, position].double() @ table[token])
            exact += float(found.labels[0, position, token]) if found.labels is not None else 0.0
            assert exact == pytest.approx(numeric, rel=1e-2, abs=1e-4)
    finally:
        lm.network.float()


def test_cosine_distance_equals_the_networks_own(clip: fuse.CLIP, house: torch.Tensor) -> None:
    texts = ["a red house in the snow", "a blue cup", "turquoise"]
    got = fuse.CosineDistance(house)(
        clip, pad(Template().encode(clip.vocabulary, texts), clip.device)
    )
    image = clip.image_processor(images=[fuse.open_image("images/house.png")], return_tensors="pt")
    for text, value in zip(texts, got.tolist(), strict=True):
        out = clip.network(**clip.vocabulary.tokenizer([text], return_tensors="pt"), **image)
        cosine = (out.text_embeds @ out.image_embeds.T).item()
        assert value == pytest.approx(1 - cosine, abs=1e-5)


def test_sentence_encoder_equals_sentence_transformers(minilm: fuse.SentenceEncoder) -> None:
    library = pytest.importorskip(
        "sentence_transformers", reason="a peer to compare with, not a dependency"
    )
    peer = library.SentenceTransformer(minilm.network.config._name_or_path, device="cpu")
    texts = ["two dogs play in the snow", "A man rides a bicycle, fast!"]
    torch.testing.assert_close(
        minilm.embed_texts(texts), torch.tensor(peer.encode(texts)), atol=1e-5, rtol=1e-4
    )


def test_cross_entropy_needs_a_label() -> None:
    with pytest.raises(fuse.FuseError, match="label"):
        fuse.CrossEntropy("")
