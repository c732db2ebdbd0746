"""Sentence encoders: every vector is that of `SentenceTransformer.encode`, or the model is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_models_kinds import BERT, ENDS, LLAMA, bert_tokenizer, with_embeddings, word_tokenizer

import fuse
from fuse.models import SentenceEncoder
from fuse.nn.batch import pad
from fuse.text.template import Template

library = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers comes with the extra `test`"
)
from sentence_transformers.sentence_transformer import modules as parts  # noqa: E402

TEXTS = ["a red house in the snow", "dog", "the blue cup !", "a dog in a house in the snow"]
LONG = " ".join(["the red dog"] * 20)


def bert(**options: Any) -> Any:
    return transformers.BertModel(transformers.BertConfig(vocab_size=64, **BERT, **options))


def t5() -> Any:
    """An encoder alone, as GTR and Sentence-T5 are stored."""
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=64, **sizes))


def gemma() -> Any:
    """As EmbeddingGemma: embeddings are scaled, and every token sees all others."""
    sizes = {**LLAMA, "head_dim": 16, "num_key_value_heads": 1, "sliding_window": 8}
    config = transformers.Gemma3TextConfig(
        vocab_size=64, use_bidirectional_attention=True, **sizes, **ENDS
    )
    return transformers.Gemma3TextModel(config)


def llama() -> Any:
    return transformers.LlamaModel(transformers.LlamaConfig(vocab_size=64, **LLAMA, **ENDS))


def mpnet() -> Any:
    sizes = {**BERT, "max_position_embeddings": 48}
    return transformers.MPNetModel(transformers.MPNetConfig(vocab_size=64, **sizes))


def ended(**names: str) -> Any:
    names = {"pad_token": "[PAD]", "eos_token": "</s>", **names}
    return word_tokenizer(names.get("bos_token"), "</s>", **names)


def decoder_tokenizer() -> Any:
    tokenizer = ended(bos_token="<s>")
    tokenizer.padding_side = "left"
    return tokenizer


def pooling(mode: Any = "mean", **options: Any) -> Any:
    return parts.Pooling(32, mode, **options)


def dense(width: int = 24, **options: Any) -> Any:
    return parts.Dense(32, width, **options)


ASKED = {"prompts": {"query": "the dog ! "}, "default_prompt_name": "query"}
KINDS: dict[str, tuple[Any, Any, list[Any], dict[str, Any]]] = {
    "mean": (bert, bert_tokenizer, [pooling()], {}),
    "cls": (bert, bert_tokenizer, [pooling("cls"), parts.Normalize()], {}),
    "max": (bert, bert_tokenizer, [pooling("max")], {}),
    "weighted": (bert, bert_tokenizer, [pooling("weightedmean")], {}),
    "root": (bert, bert_tokenizer, [pooling("mean_sqrt_len_tokens")], {}),
    "several": (bert, bert_tokenizer, [pooling(("cls", "mean", "max"))], {}),
    "dense": (bert, bert_tokenizer, [pooling(), dense(), parts.LayerNorm(24)], {}),
    "prompt": (bert, bert_tokenizer, [pooling()], ASKED),
    "prompt left out": (bert, bert_tokenizer, [pooling(include_prompt=False)], ASKED),
    "no space": (bert, bert_tokenizer, [pooling()], {**ASKED, "prompts": {"query": "a do"}}),
    "other prompts": (bert, bert_tokenizer, [pooling()], {"prompts": {"query": "a dog "}}),
    "truncated": (bert, bert_tokenizer, [pooling()], {"truncate_dim": 8}),
    "short": (bert, bert_tokenizer, [pooling()], {"max_seq_length": 10}),
    "mpnet": (mpnet, bert_tokenizer, [pooling()], {}),
    "gtr": (t5, ended, [pooling(), dense(activation_function=None), parts.Normalize()], {}),
    "gemma": (
        gemma,
        lambda: ended(bos_token="<s>"),
        [pooling(), dense(48, bias=False), parts.Dense(48, 32), parts.Normalize()],
        {"prompts": {"query": "the dog : "}, "default_prompt_name": "query"},
    ),
    "last token": (llama, decoder_tokenizer, [pooling("lasttoken"), parts.Normalize()], {}),
}


def save(folder: Path, network: Any, tokenizer: Any) -> str:
    """A plain transformers folder with random weights, large enough that texts differ."""
    torch.manual_seed(0)
    network = network()
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    for part in (network, tokenizer):
        part.save_pretrained(folder)
    return str(folder)


def saved(folder: Path, kind: str) -> str:
    """A folder as today's sentence-transformers saves it."""
    network, tokenizer, later, options = KINDS[kind]
    options = dict(options)
    first = parts.Transformer(
        save(folder / "plain", network, tokenizer()),
        max_seq_length=options.pop("max_seq_length", None),
    )
    encoder = library.SentenceTransformer(modules=[first, *later], device="cpu", **options)
    encoder.save_pretrained(str(folder / "encoder"))
    return str(folder / "encoder")


def check(folder: str) -> SentenceEncoder:
    """Compare a model with the library, text by text."""
    model, peer = SentenceEncoder.load(folder), library.SentenceTransformer(folder, device="cpu")
    expected = torch.nn.functional.normalize(torch.tensor(peer.encode(TEXTS)))
    inputs = pad(Template().encode(model.vocabulary, TEXTS), model.device)
    found = model.vector(inputs)
    assert (1 - (found * expected).sum(1)).abs().max() < 1e-5
    assert (expected @ expected.T).fill_diagonal_(0).max() < 0.999, "texts differ"
    torch.testing.assert_close(model.embed_texts(TEXTS), found, atol=1e-5, rtol=1e-5)
    read = with_embeddings(model, inputs)
    found = model.vector(read)
    assert (1 - (found * expected).sum(1)).abs().max() < 1e-5
    (by_first,) = torch.autograd.grad(found[0, 1], read.embeddings)
    assert by_first[0].any() and not by_first[1:].any()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind)
    model = check(folder)
    if "default_prompt_name" in KINDS[kind][3]:
        assert model.vocabulary.instruction
        text = Template().encode(model.vocabulary, ["dog"])[0]
        assert model.vocabulary.tokenizer.decode(text.free_ids) in ("dog", "[UNK]")
