"""Sentence encoders: vectors are those of `SentenceTransformer.encode`, or it is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_models_kinds import BERT, ENDS, LLAMA, bert_tokenizer, with_embeddings, word_tokenizer
from test_network_view import structure

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


def mobilebert() -> Any:
    """Each token reads the embeddings beside it, those of padding, too."""
    widths = {"embedding_size": 16, "intra_bottleneck_size": 32, "num_feedforward_networks": 1}
    config = transformers.MobileBertConfig(vocab_size=64, **BERT, **widths)
    return transformers.MobileBertModel(config)


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
    "neighbours": (mobilebert, bert_tokenizer, [pooling()], {}),
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
    expected = torch.nn.functional.normalize(torch.tensor(peer.encode(TEXTS, batch_size=1)))
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


def test_a_long_target_is_cut_as_the_library_cuts_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path, "short")
    model, peer = SentenceEncoder.load(folder), library.SentenceTransformer(folder, device="cpu")
    with caplog.at_level(logging.WARNING):
        (found,) = model.embed_texts([LONG])
    expected = torch.nn.functional.normalize(torch.tensor(peer.encode([LONG])))[0]
    assert 1 - found @ expected < 1e-5
    assert "62 tokens, of which the model reads 10" in caplog.text
    term = fuse.Term(model, fuse.CosineDistance(found))
    assert term.max_free_tokens == 8
    assert term.fits(term.encode(["dog " * 8, "dog " * 9])) == [True, False]


def test_the_limit_of_the_librarys_own_settings_counts(tmp_path: Path) -> None:
    network, tokenizer, later, _ = KINDS["mean"]
    first = parts.Transformer(
        save(tmp_path / "plain", network, tokenizer()),
        processing_kwargs={"text": {"max_length": 7}},
    )
    encoder = library.SentenceTransformer(modules=[first, *later], device="cpu")
    assert SentenceEncoder(encoder).vocabulary.max_length == 7


def test_an_instruction_takes_its_share_of_the_context(tmp_path: Path) -> None:
    model = SentenceEncoder.load(saved(tmp_path, "prompt"))
    term = fuse.Term(model, fuse.CosineDistance(torch.ones(32)), prefix="in")
    (row,) = term.encode(["snow"])
    assert model.vocabulary.tokenizer.decode(row.ids) == "[CLS] the dog ! in snow [SEP]"
    assert row.chars[0] == (3, 7)
    assert term.max_free_tokens == 24 - 6
    assert model.vocabulary.max_text_tokens == 24 - 5


def test_the_callers_encoder_stays_what_it_is(tmp_path: Path) -> None:
    encoder = library.SentenceTransformer(saved(tmp_path, "dense"), device="cpu").train()
    before = structure(encoder)
    model = SentenceEncoder(encoder)
    model.embed_texts(["a", LONG])
    assert structure(encoder) == before
    memory = {name: weight.data_ptr() for name, weight in encoder.state_dict().items()}
    assert {name: w.data_ptr() for name, w in model.network.state_dict().items()} == memory


def test_what_the_library_reads_leaves_the_vocabulary_alone(tmp_path: Path) -> None:
    """It sets padding and a limit in its tokenizer."""
    model = SentenceEncoder.load(saved(tmp_path, "short"))
    fingerprint = model.vocabulary.fingerprint
    before = [len(ids) for ids in model.vocabulary.encode_ids(["dog", LONG])]
    model.embed_texts(["dog", LONG])
    assert [len(ids) for ids in model.vocabulary.encode_ids(["dog", LONG])] == before == [1, 60]
    del model.vocabulary.fingerprint
    assert model.vocabulary.fingerprint == fingerprint


# ---- layouts of folders ----
def old_layout(folder: Path, pooled: str, mode: str) -> Path:
    """A folder as the first versions of the library saved it; `pooled` is the pooling's."""
    network, tokenizer, _, _ = KINDS["mean"]
    save(folder / "0_Transformer", network, tokenizer())
    (folder / "0_Transformer/sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    config = {"word_embedding_dimension": 32, f"pooling_mode_{mode}": True}
    (folder / pooled).mkdir()
    (folder / pooled / "config.json").write_text(json.dumps(config))
    write_modules(folder, ("Transformer", "0_Transformer"), ("Pooling", pooled))
    return folder


def write_modules(folder: Path, *modules: tuple[str, str]) -> None:
    written = []
    for position, (kind, path) in enumerate(modules):
        kind = kind if "." in kind else f"sentence_transformers.models.{kind}"
        written.append({"idx": position, "name": str(position), "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(written))


def test_an_old_folder(tmp_path: Path) -> None:
    model = check(str(old_layout(tmp_path, "7_Pooling", "cls_token")))
    assert model.vocabulary.max_length == 12


def test_a_plain_folder_is_read_by_the_mean(tmp_path: Path) -> None:
    model = check(save(tmp_path, bert, bert_tokenizer()))
    assert model.network[1].pooling_mode == "mean"


def test_a_chat_template_stands_around_texts(tmp_path: Path) -> None:
    tokenizer = decoder_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}user {{ message.content }} describe {% endfor %}"
    )
    model = check(save(tmp_path, llama, tokenizer))
    around = model.vocabulary.head, model.vocabulary.tail
    assert [tokenizer.decode(ids) for ids in around] == ["user", "describe"]


def test_fingerprints_tell_apart_what_makes_other_vectors(tmp_path: Path) -> None:
    found = set()
    for kind in ("mean", "cls", "prompt", "truncated"):
        found.add(SentenceEncoder.load(saved(tmp_path / kind, kind)).fingerprint)
    assert len(found) == 4


# ---- what is refused ----
def refused(folder: Path) -> str:
    with pytest.raises(fuse.FuseError) as raised:
        SentenceEncoder.load(str(folder))
    assert "\n" not in str(raised.value)
    return str(raised.value)


OLD = ("Transformer", "0_Transformer")
POOLED = ("Pooling", "1_Pooling")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([OLD, ("own.Pooling", "1_Pooling")], "own.Pooling"),
        ([OLD, ("sentence_transformers.Own", "")], "sentence_transformers.Own"),
        ([OLD, ("sentence_transformersx.models.Pooling", "")], "sentence_transformersx"),
        ([("StaticEmbedding", "0_Transformer")], "expected Transformer"),
        ([OLD, ("WordEmbeddings", "1_Pooling")], "expected Pooling or"),
        ([OLD, ("Pooling", "../1_Pooling")], "expected a folder in the model's own"),
        ([OLD, ("Pooling", "/etc")], "expected a folder in the model's own"),
        ([], "no list of modules"),
        ([OLD], "could not load it"),
        ([OLD, POOLED, POOLED], ""),
    ],
    ids=str,
)
def test_modules_that_are_not_the_librarys(
    tmp_path: Path, modules: list[tuple[str, str]], words: str
) -> None:
    folder = old_layout(tmp_path, "1_Pooling", "mean_tokens")
    write_modules(folder, *modules)
    if words:
        assert words in refused(folder)
    else:
        SentenceEncoder.load(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("0_Transformer/sentence_bert_config.json", {"tokenizer_name_or_path": "a/b"}, "token"),
        (
            "0_Transformer/sentence_bert_config.json",
            {"model_args": {"attn_implementation": "some/kernel"}},
            "attn_implementation=some/kernel",
        ),
        ("0_Transformer/sentence_bert_config.json", {"model_args": {"gguf_file": "x"}}, "gguf"),
        ("0_Transformer/sentence_bert_config.json", {"model_args": 3}, "TypeError"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "could not load it"),
        ("1_Pooling/config.json", {"embedding_dimension": 10**12}, "embedding_dimension"),
    ],
    ids=str,
)
def test_odd_settings_are_one_line(
    tmp_path: Path, file: str, content: dict[str, Any], words: str
) -> None:
    folder = old_layout(tmp_path, "1_Pooling", "mean_tokens")
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **content}))
    assert words in refused(folder)


def test_odd_projections_are_one_line(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path, "dense"))
    path, weights = folder / "2_Dense/config.json", folder / "2_Dense/model.safetensors"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "activation_function": "os.system"}))
    assert "activation_function=os.system" in refused(folder)
    path.write_text(json.dumps(written))
    stored = weights.read_bytes()
    weights.unlink()
    assert "could not load it" in refused(folder)
    (folder / "2_Dense/pytorch_model.bin").write_bytes(b"x")
    assert "pickled weights" in refused(folder)
    weights.write_bytes(stored)
    SentenceEncoder.load(str(folder))


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(save(tmp_path, bert, bert_tokenizer()))
    stored = load_file(folder / "model.safetensors")
    del stored["encoder.layer.1.output.dense.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    assert "1 weights such as encoder.layer.1.output" in refused(folder)


def test_what_is_no_sentence_transformer_is_refused() -> None:
    with pytest.raises(fuse.FuseError, match="network=BertModel: expected a SentenceTransformer"):
        SentenceEncoder(bert())
    with pytest.raises(fuse.FuseError, match="sentence-transformers/all-MiniLM-L6-v2"):
        SentenceEncoder.load("all-MiniLM-L6-v2")


def test_reading_texts_in_another_way_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, bert, bert_tokenizer())
    encoder = library.SentenceTransformer(folder, device="cpu")
    plain = encoder.preprocess
    encoder.preprocess = lambda texts, **options: plain([f"{t} !" for t in texts], **options)
    with pytest.raises(fuse.FuseError, match="network=BertModel: its vector of"):
        SentenceEncoder(encoder)
