"""open_clip models, classifiers, language models, captioners: results are their networks' own."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from sampling import sampled_pairs
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as token_models

from fuse.engine import prefix_cache
from fuse.errors import FuseError
from fuse.losses import NLL
from fuse.models import Captioner, CausalLM, Classifier, MaskedLM, Model, OpenCLIP, open_image
from fuse.models.open_clip import fast_tokenizer
from fuse.nn.batch import Inputs, pad
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.term import Term
from fuse.text.template import Template

WORDS = [
    "a",
    "red",
    "house",
    "blue",
    "cup",
    "dog",
    "in",
    "the",
    "snow",
    "it's",
    "naïve",
    "!",
    "user",
    "describe",
    "picture",
]
TEXTS = ["a red house in the snow", "dog", "the blue cup", "a dog in a house !"]
IMAGE = Image.effect_noise((40, 40), 80).convert("RGB")


def word_tokenizer(
    start: str | None,
    end: str | None,
    specials: tuple[str, ...] = ("[PAD]", "[UNK]", "[MASK]"),
    **names: str,
) -> Any:
    """A tokenizer of `WORDS`, which come first; `start` and `end` stand around a text."""
    around = [token for token in (start, end) if token]
    table = {word: i for i, word in enumerate(dict.fromkeys([*WORDS, *specials, *around]))}
    inner = Tokenizer(token_models.WordLevel(table, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=" ".join(token for token in (start, "$A", end) if token),
        special_tokens=[(token, table[token]) for token in around],
    )
    names = {"unk_token": "[UNK]", **names}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=24, **names
    )


def bert_tokenizer() -> Any:
    names = {
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    return word_tokenizer("[CLS]", "[SEP]", **names)


def batch(model: Model, texts: list[str] = TEXTS) -> Inputs:
    return pad(Template().encode(model.vocabulary, texts), model.device)


def with_embeddings(model: Model, inputs: Inputs) -> Inputs:
    """The same batch, read through embeddings that a gradient can reach."""
    return replace(inputs, embeddings=model.vocabulary.embedding[inputs.ids].requires_grad_())


def double(model: Any) -> Any:
    """The model in float64, for finite differences."""
    model.network.double()
    model.vocabulary.embedding = model.vocabulary.embedding.double()
    return model


# ---- open_clip ----
VISION = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
TEXT = {"context_length": 20, "width": 32, "heads": 2, "layers": 2}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
SIGLIP = {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "vocab_size": 64,
    "hf_tokenizer_name": "own",
}
KINDS: dict[str, dict[str, Any]] = {
    "clip": {"text_cfg": TEXT},
    "custom": {"text_cfg": {**TEXT, "pool_type": "argmax"}, "custom_text": True},
    "siglip": {
        "text_cfg": {**TEXT, **SIGLIP, "tokenizer_kwargs": {"clean": "canonicalize"}},
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "coca": {
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT,
        "custom_text": True,
    },
    "clipa": {
        "text_cfg": {**TEXT, **SIGLIP, "tokenizer_kwargs": {"strip_sep_token": True}},
        "custom_text": True,
    },
    "bert": {
        "text_cfg": {
            "hf_model_name": "own",
            "hf_tokenizer_name": "own",
            "context_length": 20,
            "hf_proj_type": "linear",
        }
    },
}


def save_open_clip(folder: Path, kind: str) -> Path:
    """A folder of open_clip with random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {**VISION, "output_tokens": kind == "coca"},
        **json.loads(json.dumps(KINDS[kind])),
    }
    if kind == "siglip":  # its padding is its end token
        word_tokenizer(
            None, "</s>", ("[UNK]",), pad_token="</s>", eos_token="</s>"
        ).save_pretrained(folder)
    elif kind == "clipa":
        names = {
            "pad_token": "a",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
        }  # padding is token 0, as in these models
        word_tokenizer("[CLS]", "[SEP]", **names).save_pretrained(folder)
    elif kind == "bert":
        bert_tokenizer().save_pretrained(folder)
        pad_id = bert_tokenizer().pad_token_id
        transformers.BertConfig(vocab_size=64, pad_token_id=pad_id, **BERT).save_pretrained(folder)
        config["text_cfg"]["hf_model_name"] = str(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    network = open_clip.create_model(
        f"local-dir:{folder}", load_weights=False, pretrained_text=False
    )
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    save_file(
        {k: v.contiguous() for k, v in network.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("open_clip")
    return {kind: save_open_clip(base / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_open_clip_equals_its_own_encode_text(folders: dict[str, Path], kind: str) -> None:
    name = f"local-dir:{folders[kind]}"
    peer, preprocess = open_clip.create_model_from_pretrained(name)
    peer.eval()
    model = OpenCLIP.load(str(folders[kind]))
    texts = [*TEXTS, "A  Red,\n house: it\u2019s blue!"]
    with torch.no_grad():
        expected = peer.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
        pictures = peer.encode_image(preprocess(IMAGE)[None], normalize=True)
    torch.testing.assert_close(model.embed_texts(texts), expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # the texts differ
    torch.testing.assert_close(model.embed_images([IMAGE]), pictures, atol=1e-5, rtol=0)
    inputs = batch(model, texts)
    torch.testing.assert_close(
        model.vector(with_embeddings(model, inputs)), expected, atol=1e-5, rtol=0
    )
    half = OpenCLIP.load(str(folders[kind]), dtype=torch.bfloat16)
    torch.testing.assert_close(half.embed_texts(texts), expected, atol=0.1, rtol=0)
    torch.testing.assert_close(half.embed_images([IMAGE]), pictures, atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_open_clip_gradient_equals_finite_differences(
    folders: dict[str, Path], kind: str, generator: torch.Generator
) -> None:
    model = double(OpenCLIP.load(str(folders[kind])))
    inputs = with_embeddings(model, batch(model, TEXTS[:2]))
    target = torch.randn(2, 16, generator=generator)
    (model.vector(inputs) * target).sum().backward()
    found, embeddings = inputs.embeddings.grad, inputs.embeddings.detach()
    assert not found[~inputs.mask].any()  # what stands at padding is not read
    for _ in range(4):
        step = (
            2e-2
            * torch.randn(embeddings.shape, generator=generator, dtype=embeddings.dtype)
            * inputs.mask[..., None]
        )
        up, down = (
            (model.vector(replace(inputs, embeddings=embeddings + s * step)) * target).sum()
            for s in (1, -1)
        )
        assert float((found * step).sum()) == pytest.approx(
            float(up - down) / 2, rel=2e-2, abs=2e-5
        )


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_the_fast_tokenizer_equals_open_clips_own(clean: str) -> None:
    slow = open_clip.SimpleTokenizer(clean=clean)
    vocabulary = EmbeddedVocabulary(fast_tokenizer(slow), torch.zeros(slow.vocab_size, 1), 77)
    texts = (ROOT / "fuse/demo/corpus.txt").read_text().splitlines()[::10]
    texts += [
        "It's a dog\u2019s \u201clife\u201d: ISN'T it 12345 50%?!",
        " naïve cafe\u0301\tx\n y ",
        "日本語 🦊🦊!!! 'S_'LL",
        "zero\u200bwidth\u00a0space",
        "",
    ]
    assert len(texts) > 500
    for text, (ids, spans) in zip(texts, vocabulary.encode(texts), strict=True):
        assert list(ids) == slow.encode(text), text
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert vocabulary.decode([ids])[0] == slow.decode(list(ids)).strip()
    row = vocabulary.head + vocabulary.encode(texts[:1])[0][0] + vocabulary.tail
    assert [*row] == slow(texts[:1])[0, : len(row)].tolist()
    (dog,) = slow.encode("dog")
    assert vocabulary.token_texts[dog] == " dog"
    assert not vocabulary.allowed[[slow.sot_token_id, slow.eot_token_id]].any()


def test_open_clip_by_the_name_of_an_architecture(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folders["clip"] / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    file = str(folders["clip"] / "open_clip_model.safetensors")
    got = OpenCLIP.load("tiny", pretrained=file).embed_texts(TEXTS)
    torch.testing.assert_close(got, OpenCLIP.load(str(folders["clip"])).embed_texts(TEXTS))
    with pytest.raises(FuseError, match=r"pretrained=null.*checkpoint file"):
        OpenCLIP.load("tiny")


def test_open_clip_mistakes_are_explained(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model_id, pretrained, words in [
        ("ViT-B-23", None, "model_id=ViT-B-23.*did you mean ViT-B-32"),
        ("vit-b-32", None, "did you mean ViT-B-32"),
        ("ViT-B-32", None, "ViT-B-32.*laion2b_s34b_b79k"),
        ("ViT-B-32", "laion2b_s34b_b7k", "did you mean laion2b_s34b_b79k.*ViT-B-32"),
        ("/no/such/folder", None, "model_id=/no/such/folder: no such folder"),
        (str(tmp_path), None, "could not load it"),
        (str(folders["clip"]), "openai", "pretrained=openai.*weights of its own"),
    ]:
        with pytest.raises(FuseError, match=words) as raised:
            OpenCLIP.load(model_id, pretrained=pretrained)
        assert model_id in str(raised.value)
    broken = save_open_clip(tmp_path / "broken", "clip")
    weights = broken / "open_clip_model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if k != "ln_final.weight"}, weights)
    with pytest.raises(FuseError, match=r"ln_final\.weight"):
        OpenCLIP.load(str(broken))
    weights.write_bytes(b"broken")
    with pytest.raises(FuseError, match="could not load it"):
        OpenCLIP.load(str(broken))
    weights.unlink()
    with pytest.raises(FuseError, match="weights"):
        OpenCLIP.load(str(broken))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(FuseError, match="pip install open_clip_torch"):
        OpenCLIP.load(str(folders["clip"]))


# ---- classifiers ----
CLASSES = {0: "Joy", 1: "anger", 2: "calm"}
SMALL: dict[str, Any] = {"vocab_size": 64, "id2label": CLASSES}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 24}
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24}
ENDS: dict[str, Any] = {"bos_token_id": 15, "eos_token_id": 16}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
BART = {"d_model": 32, "max_position_embeddings": 24, "scale_embedding": True}
for side in ("encoder", "decoder"):
    BART |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
BART_ENDS = {"pad_token_id": 15, "bos_token_id": 18, "eos_token_id": 19}
CLASSIFIERS: dict[str, tuple[Any, Any]] = {
    "bert": (transformers.BertConfig(**SMALL, **BERT), bert_tokenizer),
    "distilbert": (transformers.DistilBertConfig(**SMALL, **DISTIL), bert_tokenizer),
    "roberta": (
        transformers.RobertaConfig(**SMALL, **{**BERT, "max_position_embeddings": 48}),
        bert_tokenizer,
    ),
    "gpt2": (transformers.GPT2Config(**SMALL, **GPT2, **ENDS), lambda: word_tokenizer(None, None)),
    "llama": (
        transformers.LlamaConfig(**SMALL, **LLAMA, **ENDS, pad_token_id=-1),
        lambda: word_tokenizer("<s>", "</s>", pad_token="</s>"),
    ),
    "bart": (
        transformers.BartConfig(**SMALL, **BART, **BART_ENDS, decoder_start_token_id=19),
        lambda: word_tokenizer("<s>", "</s>", pad_token="[PAD]"),
    ),
    "mbart": (
        transformers.MBartConfig(**SMALL, **BART, **BART_ENDS),
        lambda: word_tokenizer("<s>", "</s>", pad_token="[PAD]"),
    ),
    "t5": (
        transformers.T5Config(
            **SMALL, **T5, pad_token_id=15, eos_token_id=18, decoder_start_token_id=15
        ),
        lambda: word_tokenizer(None, "</s>", pad_token="[PAD]"),
    ),
    "t5 of two tables": (
        transformers.T5Config(
            **SMALL,
            **T5,
            pad_token_id=15,
            eos_token_id=18,
            decoder_start_token_id=15,
            tie_word_embeddings=False,
        ),
        lambda: word_tokenizer(None, "</s>", pad_token="[PAD]"),
    ),
}


def save(folder: Path, auto_class: Any, config: Any, *others: Any) -> Path:
    """A folder with random weights, large enough that texts differ."""
    torch.manual_seed(0)
    network = auto_class.from_config(config)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    for part in (network, *others):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classes_in_a_batch_equal_the_networks_own_one_by_one(tmp_path: Path, kind: str) -> None:
    config, tokenizer = CLASSIFIERS[kind]
    auto_class = transformers.AutoModelForSequenceClassification
    folder = str(save(tmp_path / kind, auto_class, config, tokenizer()))
    model, peer = Classifier.load(folder), auto_class.from_pretrained(folder).eval()
    texts = [*TEXTS, "the dog a"]  # ends with token 0, which a batch is padded with
    with torch.no_grad():
        rows = [
            model.vocabulary.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts
        ]
        expected = torch.cat([peer(input_ids=row).logits.log_softmax(-1) for row in rows])
    inputs = batch(model, texts)
    torch.testing.assert_close(model.vector(inputs), expected, atol=1e-5, rtol=1e-5)
    assert expected.std(0).min() > 1e-3  # the texts differ
    read = with_embeddings(model, inputs)
    found = model.vector(read)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (by_first,) = torch.autograd.grad(found[0, 1], read.embeddings)
    assert by_first[0].any()
    assert not by_first[1:].any()
    # Embeddings stand for their tokens, whatever the ids are
    other = replace(batch(model, ["the blue cup"]), embeddings=None)
    under = batch(model, ["a dog house"])
    swapped = replace(under, embeddings=model.vocabulary.embedding[other.ids])
    torch.testing.assert_close(model.vector(swapped), model.vector(other), atol=1e-5, rtol=1e-5)


def test_classes_by_name_and_by_index(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "bert", transformers.AutoModelForSequenceClassification, *given("bert")
    )
    model = Classifier.load(str(folder))
    assert model.labels == ["Joy", "anger", "calm"]
    assert [model.class_index(target) for target in ("joy", "ANGER", "calm", 2, "0")] == [
        0,
        1,
        2,
        2,
        0,
    ]
    for target, words in [
        ("angry", "target=angry: did you mean anger.*Joy, anger, calm"),
        (3, "target=3"),
        (-1, "target=-1"),
        ("", "Joy"),
    ]:
        with pytest.raises(FuseError, match=words):
            model.class_index(target)


def test_a_text_may_be_of_several_classes(tmp_path: Path) -> None:
    config, tokenizer = given("bert")
    config = copy.deepcopy(config)
    config.problem_type = "multi_label_classification"
    kind = transformers.AutoModelForSequenceClassification
    model = Classifier.load(str(save(tmp_path, kind, config, tokenizer)))
    found = model.vector(batch(model)).exp()
    assert (found.sum(1) - 1).abs().max() > 1e-3
    logits = kind.from_pretrained(tmp_path)(batch(model).ids[:1]).logits
    torch.testing.assert_close(found[:1], logits.sigmoid(), atol=1e-5, rtol=1e-5)
    assert model.class_index("joy") == 0


def test_a_decoder_without_padding_or_special_tokens_reads_to_the_end(tmp_path: Path) -> None:
    table = {word: i for i, word in enumerate([*WORDS, "\n", *map(str, range(40))])}
    inner = Tokenizer(token_models.WordLevel(table, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=24)
    kind = transformers.AutoModelForSequenceClassification
    folder = str(save(tmp_path, kind, given("gpt2")[0], tokenizer))
    model, peer = Classifier.load(folder), kind.from_pretrained(folder).eval()
    texts = ["the dog", "dog a", "snow in a", "a"]
    rows = Template().encode(model.vocabulary, texts)
    expected = torch.cat([peer(torch.tensor([row.ids])).logits for row in rows])
    torch.testing.assert_close(
        model.vector(batch(model, texts)), expected.log_softmax(-1), atol=1e-5, rtol=1e-5
    )


def given(kind: str) -> tuple[Any, Any]:
    config, tokenizer = CLASSIFIERS[kind]
    return config, tokenizer()


def test_networks_without_classes_are_refused(tmp_path: Path) -> None:
    auto_class = transformers.AutoModelForSequenceClassification
    rating = transformers.BertConfig(vocab_size=64, num_labels=3, problem_type="regression", **BERT)
    with pytest.raises(FuseError, match=r"rating.*3 outputs.*expected classes, or one rating"):
        Classifier.load(str(save(tmp_path / "rating", auto_class, rating, bert_tokenizer())))
    with pytest.raises(FuseError, match="weights such as classifier"):
        Classifier.load(
            str(save(tmp_path / "plain", transformers.AutoModel, rating, bert_tokenizer()))
        )
    decoder = Classifier.load(str(save(tmp_path / "gpt2", auto_class, *given("gpt2"))))
    with pytest.raises(FuseError, match="empty text"):
        decoder.vector(batch(decoder, ["dog", ""]))


# ---- masked LMs ----
MASKED: dict[str, Any] = {
    "bert": transformers.BertConfig(vocab_size=64, **BERT),
    "roberta": transformers.RobertaConfig(vocab_size=64, **{**BERT, "max_position_embeddings": 48}),
    "distilbert": transformers.DistilBertConfig(vocab_size=64, **DISTIL),
}


def masked_lm(folder: Path, kind: str = "bert", **options: Any) -> MaskedLM:
    return MaskedLM.load(
        str(save(folder, transformers.AutoModelForMaskedLM, MASKED[kind], bert_tokenizer())),
        **options,
    )


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_lm_equals_a_plain_loop(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model = masked_lm(tmp_path / kind, kind, dtype=dtype)
    inputs = batch(model)
    read = inputs.free.clone()
    read[0, 2] = False
    expected = torch.zeros(read.shape)
    for i, position in read.nonzero().tolist():
        ids = inputs.ids[i, inputs.mask[i]].clone()
        ids[position] = model.vocabulary.tokenizer.mask_token_id
        logits = model.network(input_ids=ids[None]).logits[0, position]
        expected[i, position] = logits.float().log_softmax(-1)[inputs.ids[i, position]]
    sizes: list[int] = []
    handle = model.network.get_output_embeddings().register_forward_hook(
        lambda *arguments: sizes.append(arguments[2].shape[1])
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    for given_inputs in (
        inputs,
        replace(inputs, embeddings=model.vocabulary.embedding[inputs.ids]),
    ):
        got = model.label_log_probs(given_inputs, read)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)
    handle.remove()
    assert set(sizes) == {1}  # logits of the masked position alone
    assert (expected[read] < -0.01).all()
    assert not model.label_log_probs(inputs, torch.zeros_like(read)).any()


def test_masked_lm_gradient_by_one_hot_tokens_equals_finite_differences(
    tmp_path: Path, generator: torch.Generator
) -> None:
    """A token acts twice: as input to the other positions, and as the label of its own."""
    model = double(masked_lm(tmp_path / "bert"))
    inputs, table = batch(model, TEXTS[:2]), model.vocabulary.embedding
    positions = torch.tensor(
        [[2, 3, 1, 1], [1, 1, 1, 1]]
    )  # the last ones are padding: repeated, and without a shift
    kept = torch.tensor([[True, True, True, False], [True, False, False, False]])

    def value(one_hot: torch.Tensor) -> torch.Tensor:
        plain = torch.nn.functional.one_hot(inputs.ids, len(table)).double()
        shift = (one_hot - plain)[torch.arange(2)[:, None], positions] * kept[..., None]
        given_inputs = replace(
            inputs, embeddings=one_hot @ table, label_positions=positions, labels=shift
        )
        return model.label_log_probs(given_inputs, inputs.free).sum()

    base = torch.nn.functional.one_hot(inputs.ids, len(table)).double().requires_grad_()
    (found,) = torch.autograd.grad(value(base), base)
    assert model.label_log_probs(inputs, inputs.free).sum() == pytest.approx(
        float(value(base.detach())), abs=1e-9
    )
    for row, position in [(0, 1), (0, 2), (0, 3), (1, 1)]:
        token = int(torch.randint(len(WORDS), (1,), generator=generator))
        step = torch.zeros_like(base)
        step[row, position, token] = 1e-4
        numeric = float(value(base.detach() + step) - value(base.detach() - step)) / 2e-4
        assert float(found[row, position, token]) == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def test_a_label_is_counted_at_its_position_alone(tmp_path: Path) -> None:
    model = masked_lm(tmp_path / "bert")
    inputs = batch(model, TEXTS[:1])
    labels = torch.ones(1, 1, len(model.vocabulary))
    plain = model.label_log_probs(inputs, inputs.free)
    for position in range(inputs.ids.shape[1]):
        shifted = replace(inputs, label_positions=torch.tensor([[position]]), labels=labels)
        changed = model.label_log_probs(shifted, inputs.free) != plain
        assert changed.nonzero().tolist() == ([[0, position]] if inputs.free[0, position] else [])


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer("[CLS]", "[SEP]", pad_token="[PAD]")
    folder = save(
        tmp_path / "unmasked", transformers.AutoModelForMaskedLM, MASKED["bert"], tokenizer
    )
    with pytest.raises(FuseError, match=r"unmasked.*no mask token"):
        MaskedLM.load(str(folder))
    with pytest.raises(FuseError, match=r"model_id=.*demo/lm"):
        MaskedLM.load(str(ROOT / "fuse/demo/lm"))


# ---- captioners ----
SIGHT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
}
CHAT = (
    "{% for m in messages %}user {% for p in m.content %}"
    "{{ '<image> ' if p.type == 'image' else p.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}the {% endif %}"
)


def save_captioner(folder: Path, kind: str) -> Path:
    """A folder of a tiny captioner with its processor."""
    t = transformers
    names = {"pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = word_tokenizer("<s>", "</s>", ("[PAD]", "[UNK]", "<image>"), **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": len(tokenizer),
    }
    side = {"height": 32, "width": 32}
    processor: Any
    if kind == "blip":
        text: dict[str, Any] = {
            **common,
            **ids,
            "sep_token_id": ids["eos_token_id"],
            "encoder_hidden_size": 32,
        }
        config: Any = t.BlipConfig(text_config=text, vision_config=SIGHT)
        processor = t.BlipProcessor(t.BlipImageProcessor(size=side), tokenizer)
    elif kind == "blip-2":
        queries = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "encoder_hidden_size": 32,
        }
        text = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            **ids,
        }
        text |= {"model_type": "opt", "vocab_size": len(tokenizer)}
        config = t.Blip2Config(
            vision_config=SIGHT,
            qformer_config=queries,
            text_config=text,
            num_query_tokens=3,
            image_token_index=image_id,
        )
        processor = t.Blip2Processor(t.BlipImageProcessor(size=side), tokenizer, num_query_tokens=3)
    else:
        vision = {**SIGHT, "model_type": "clip_vision_model"}
        config = t.LlavaConfig(
            vision_config=vision,
            text_config={**common, **ids, "model_type": "llama"},
            image_token_index=image_id,
            vision_feature_layer=-1,
        )
        pictures = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
        processor = t.LlavaProcessor(
            pictures, tokenizer, 16, "default", CHAT, num_additional_image_tokens=1
        )
    return save(folder, t.AutoModelForImageTextToText, config, processor)


@pytest.mark.parametrize("kind", ["blip", "blip-2", "llava"])
def test_captions_are_the_networks_own_words(tmp_path: Path, kind: str) -> None:
    captioner = Captioner.load(str(save_captioner(tmp_path / kind, kind)))
    texts = captioner.caption(IMAGE, count=6, max_new_tokens=5)
    assert len(set(texts)) == len(texts) == 6
    assert texts == captioner.caption(IMAGE, count=6, max_new_tokens=5)
    assert all(text == " ".join(text.split()) and 0 < len(text.split()) <= 5 for text in texts)
    assert captioner.caption(IMAGE, count=1, max_new_tokens=5) == captioner.caption(
        IMAGE, max_new_tokens=5
    )

    processor, prompt = captioner.processor, "user <image> describe the picture the "
    inputs = (
        processor(images=IMAGE, text=prompt, return_tensors="pt")
        if kind == "llava"
        else processor(images=IMAGE, return_tensors="pt")
    )
    length = {
        "blip": 1,
        "blip-2": 4,
        "llava": inputs["input_ids"].shape[1] if "input_ids" in inputs else 0,
    }[kind]
    for width in (6, 12, 24):  # as many beams as six different texts need
        with torch.no_grad():
            rows = captioner.network.generate(
                **inputs,
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=5,
                do_sample=False,
            )
        decoded = processor.tokenizer.batch_decode(rows[:, length:], skip_special_tokens=True)
        texts = [" ".join(text.split()) for text in decoded]
        own = list(dict.fromkeys(text for text in texts if text))
        if len(own) >= 6:
            break
    assert captioner.caption(IMAGE, 6, 5, "describe the picture") == own[:6]


def test_a_chat_network_hears_the_question_and_does_not_repeat_it(tmp_path: Path) -> None:
    captioner = Captioner.load(str(save_captioner(tmp_path / "llava", "llava")))
    heard = [
        captioner.caption(IMAGE, 4, 5, question)
        for question in ("describe the picture", "dog dog dog blue snow house")
    ]
    assert heard[0] != heard[1]
    other = open_image(ROOT / "images/house.png")
    (prompt,) = captioner.prompts.choices("dog")
    pixels = [captioner.prompts.inputs(one, prompt)["pixel_values"] for one in (other, IMAGE)]
    assert pixels[0].ne(pixels[1]).any()


def test_captioners_run_in_half_types(tmp_path: Path) -> None:
    for kind in ("blip", "blip-2", "llava"):
        captioner = Captioner.load(str(save_captioner(tmp_path / kind, kind)), dtype=torch.bfloat16)
        assert captioner.caption(IMAGE, max_new_tokens=3)


def test_captioner_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FuseError, match=r"model_id=.*demo/lm"):
        Captioner.load(str(ROOT / "fuse/demo/lm"))
    folder = save_captioner(tmp_path / "blip", "blip")
    captioner = Captioner.load(str(folder))
    for options, words in [({"count": 0}, "count=0"), ({"max_new_tokens": 0}, "max_new_tokens=0")]:
        with pytest.raises(FuseError, match=words):
            captioner.caption(IMAGE, **options)
    with pytest.raises(FuseError, match=r"count=60.*only"):
        captioner.caption(IMAGE, count=60, max_new_tokens=1)
    for file in folder.glob("*process*"):
        file.unlink()
    with pytest.raises(FuseError, match=r"model_id=.*blip"):
        Captioner.load(str(folder))


# ---- causal LMs ----
WINDOW = {"sliding_window": 6, "num_key_value_heads": 1}
CAUSAL: dict[str, Any] = {
    "gpt2": transformers.GPT2Config(vocab_size=64, **GPT2, **ENDS),
    "llama": transformers.LlamaConfig(vocab_size=64, **LLAMA, **ENDS),
    "llama, shared keys": transformers.LlamaConfig(
        vocab_size=64, **LLAMA, num_key_value_heads=1, **ENDS
    ),
    "phi": transformers.PhiConfig(vocab_size=64, **LLAMA, **ENDS),
    "gpt_neox": transformers.GPTNeoXConfig(vocab_size=64, **LLAMA, **ENDS),
    "opt": transformers.OPTConfig(
        vocab_size=64, ffn_dim=48, word_embed_proj_dim=32, **LLAMA, **ENDS
    ),
    "bloom": transformers.BloomConfig(vocab_size=64, n_layer=2, n_head=2, hidden_size=32, **ENDS),
    "mistral, short windows": transformers.MistralConfig(vocab_size=64, **LLAMA, **WINDOW, **ENDS),
    "mistral, windows": transformers.MistralConfig(
        vocab_size=64, **LLAMA, **{**WINDOW, "sliding_window": 12}, **ENDS
    ),
    "gemma2, short windows": transformers.Gemma2Config(
        vocab_size=64, head_dim=16, final_logit_softcapping=0.5, **LLAMA, **WINDOW, **ENDS
    ),
    "mixtral": transformers.MixtralConfig(
        vocab_size=64, num_local_experts=4, num_key_value_heads=1, **LLAMA, **ENDS
    ),
    "granite": transformers.GraniteConfig(vocab_size=64, logits_scaling=4.0, **LLAMA, **ENDS),
    "mamba": transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, **ENDS),
}


REUSE = {"packed": {}, "padded": {"packing": False}, "whole": {"prefix_cache": False}}


def causal_lm(folder: Path, kind: str, **options: Any) -> CausalLM:
    tokenizer = word_tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    save(folder, transformers.AutoModelForCausalLM, CAUSAL[kind], tokenizer)
    return CausalLM.load(str(folder), **options)


def plain_nll(model: CausalLM, ids: tuple[int, ...], free: tuple[int, int]) -> float:
    logits = model.network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    losses = [-float(logits[position - 1, ids[position]]) for position in range(*free)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("kind", "way"), sampled_pairs(CAUSAL, REUSE))
def test_the_prefix_cache_and_packing_change_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    model = causal_lm(tmp_path / "lm", kind)
    term = Term(model, NLL(), prefix="a picture", **REUSE[way])
    term.engine.runner.launch_tokens = 0  # many batches
    beam = ["a red house in the snow a dog", "the blue cup in a house"]
    texts = [f"{text} {word}" for text in beam for word in WORDS[:4]]
    texts += ["a red house in a snow a dog", "the blue cup", "a red dog in a house"]
    texts.append("a red house in the snow a dog in a house")
    rows = term.encode(texts)
    plain = [plain_nll(model, row.ids, row.free) for row in rows]
    for prompts in (beam, texts[:3]):
        term.engine.prefill(term.encode(prompts))
        assert term.engine.score(rows).tolist() == pytest.approx(plain, abs=1e-4)
    monkeypatch.setattr(prefix_cache, "ESTIMATE_WINDOW", 99)
    assert term.engine.estimate(rows).tolist() == pytest.approx(plain, abs=1e-4)
    assert model.supports_prefix_cache == (kind != "mamba")
    unpacked = ("mamba", "bloom", "gemma2, short windows")
    assert model.supports_packing == (kind not in unpacked)


def test_a_fused_activation_changes_no_result() -> None:
    config = transformers.GPT2Config(vocab_size=64, activation_function="gelu_new", **GPT2, **ENDS)
    network = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(40).reshape(2, 20)
    plain = network(ids).logits
    model = CausalLM(network, word_tokenizer("<s>", "</s>", bos_token="<s>", eos_token="</s>"))
    torch.testing.assert_close(model.network(ids).logits, plain, atol=1e-5, rtol=0)
    assert not [
        module for module in model.network.modules() if type(module).__name__ == "NewGELUActivation"
    ]
