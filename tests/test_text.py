"""Texts are taken exactly: starts, what stands around a prompt, special tokens within a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import ROOT
from torch.nn.functional import normalize
from transformers import AutoTokenizer, GPT2LMHeadModel

import fuse
from fuse.models import chat
from fuse.text.template import Template

WHITE_SPACE_AND_SIGNS = ["A  red house", "A\tred house", "A red\r\nhouse", "A\u200bred", "A\x00b"]
SCRIPTS = [
    "\u0645\u0631\u062d\u0628\u0627",
    "\u4f60\u597d\u4e16\u754c",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "e\u0301cole",
    "\u200f\u05e9\u05dc\u05d5\u05dd",
]
SURROGATE = "caf\udce9"


@pytest.fixture(scope="module")
def without_start(lm: fuse.CausalLM) -> fuse.CausalLM:
    """The demo LM with a tokenizer that puts nothing before a text, as GPT-2's."""
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "fuse/demo/lm")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    network = GPT2LMHeadModel.from_pretrained(ROOT / "fuse/demo/lm", dtype=torch.float32)
    return fuse.CausalLM(network, tokenizer)


def read(model: fuse.CausalLM, label: str = "", **options: Any) -> tuple[int, ...]:
    """What a term's model reads of one prompt."""
    loss = fuse.CrossEntropy(label) if label else fuse.NLL()
    term = fuse.Term(model, loss, **options)
    return fuse.Objective(term).evaluate_text("A red house")[1]["primary"].ids


def own(model: fuse.CausalLM, text: str) -> tuple[int, ...]:
    """What the tokenizer itself makes of a text."""
    return tuple(model.vocabulary.tokenizer(text).input_ids)


# --- starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["The 2 dogs play in 2024", "A house, 3 boats.", "A red house"])
def test_a_start_is_that_text(lm: fuse.CausalLM, text: str) -> None:
    """Numbers follow a lone blank in this vocabulary."""
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()))
    assert fuse.search(objective, fuse.GCG(search_width=4), init=text, steps=0).prompt == text
    assert fuse.search(objective, fuse.Caption(texts=[text])).prompt == text
    blank = lm.vocabulary.blank
    assert not (objective.allowed & blank).any()
    words = fuse.Objective(fuse.Term(lm, fuse.NLL()), constraints=fuse.Constraints(words=True))
    if blank[list(objective.spell(text))].any():
        with pytest.raises(fuse.FuseError, match="is not allowed"):
            words.spell(text)


def test_a_start_that_the_label_changes_is_refused(lm: fuse.CausalLM) -> None:
    """Where the tokenizer reads the end of one and the beginning of the other as one token."""
    tokens = lm.vocabulary.token_texts
    candidates = (t for t in tokens if len(t) == 4 and t.isalpha() and t.islower())
    for token in candidates:
        loss = fuse.CrossEntropy(token[2:] + " house")
        objective = fuse.Objective(fuse.Term(lm, loss, join="none"))
        (encoded,) = objective.primary.encode([f"A {token[:2]}"])
        (spelled,) = lm.vocabulary.decode([encoded.free_ids])
        if spelled != f"A {token[:2]}":
            with pytest.raises(fuse.FuseError, match=r"init='A .*reads it as"):
                objective.spell(f"A {token[:2]}")
            return
    raise AssertionError("no such pair of texts")


@pytest.mark.parametrize("text", [*WHITE_SPACE_AND_SIGNS, *SCRIPTS])
@pytest.mark.parametrize("kind", ["lm", "clip"])
def test_any_text_is_scored_as_it_is_reported_or_refused_in_a_line(
    request: pytest.FixtureRequest, clip: fuse.CLIP, mood: fuse.Classifier, kind: str, text: str
) -> None:
    image = clip.embed_texts(["a red house"])[0]
    near, kinds = fuse.CosineDistance(image), fuse.ClassNLL(0)
    model = request.getfixturevalue(kind)
    primary = fuse.Term(model, fuse.NLL() if kind == "lm" else near, prefix=text)
    others = {"clip": fuse.Term(clip, near, suffix=text), "mood": fuse.Term(mood, kinds)}
    objective = fuse.Objective(primary, others, fuse.Constraints(ascii=False))
    rows = [objective.spell("a red house")]
    try:
        rows.append(objective.spell(text))
    except fuse.FuseError as error:
        assert "init=" in str(error) and "\n" not in str(error)
    objective.prefill(rows[:1])
    losses = objective.evaluate(rows).loss.tolist()
    for prompt, loss in zip(model.vocabulary.decode(rows), losses, strict=True):
        objective.clear()
        assert objective.evaluate_text(prompt)[0] == pytest.approx(loss, abs=1e-4)


def test_what_is_no_unicode_is_refused_by_its_name(lm: fuse.CausalLM, clip: fuse.CLIP) -> None:
    wrong = {
        "init": lambda: fuse.Objective(fuse.Term(lm, fuse.NLL())).spell(SURROGATE),
        "label": lambda: fuse.Term(lm, fuse.CrossEntropy(SURROGATE)),
        "prefix": lambda: fuse.Term(lm, fuse.NLL(), prefix=SURROGATE),
        "suffix": lambda: fuse.Term(lm, fuse.NLL(), suffix=SURROGATE),
        "start": lambda: fuse.Term(lm, fuse.NLL(), start=SURROGATE),
        "target": lambda: clip.embed_texts([SURROGATE]),
        "block": lambda: fuse.Constraints(block=["a", SURROGATE]),
        "allow": lambda: fuse.Constraints(allow=SURROGATE),
        "text": lambda: lm.vocabulary.encode(["a", SURROGATE]),
    }
    for key, make in wrong.items():
        with pytest.raises(fuse.FuseError, match=rf"^{key}='caf\\udce9'.*UTF-8"):
            make()
    assert str(fuse.FuseError(f"model_id={SURROGATE}")).encode() == rb"model_id=caf\udce9"


# --- start tokens, and what touches the prompt ---------------------------------------------------


def test_the_start_is_the_tokenizers_own(lm: fuse.CausalLM, without_start: fuse.CausalLM) -> None:
    bos = lm.vocabulary.tokenizer.bos_token
    for model in (lm, without_start):
        assert read(model, "in the snow.") == own(model, "A red house in the snow.")
        assert read(model, prefix="Look:") == own(model, "Look: A red house")
    # Its own first token is predicted from a start token, which this tokenizer does not put
    assert read(without_start) == own(lm, "A red house")
    # Once, where the prefix brings it
    assert read(lm, prefix=bos) == own(lm, " A red house")
    assert read(lm, "!", prefix=bos, join="none") == own(lm, "A red house!")
    assert read(lm, prefix="Look:", start="none") == own(without_start, "Look: A red house")
    assert read(without_start, "!", start=bos) == own(lm, "A red house!")
    with pytest.raises(fuse.FuseError, match=r"start=none.*start=auto"):
        fuse.Term(lm, fuse.NLL(), start="none")


def test_a_search_begins_where_nothing_stands_before_it(without_start: fuse.CausalLM) -> None:
    objective = fuse.Objective(fuse.Term(without_start, fuse.CrossEntropy("in the snow.")))
    assert objective.primary.surroundings.free == (0, 0)
    result = fuse.search(objective, fuse.AutoDAN(search_width=8), fuse.Beam(2), steps=2)
    whole = own(without_start, f"{result.prompt} in the snow.")
    assert result.terms["primary"].ids == whole
    logits = without_start.network(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    label = range(len(result.free_ids), len(whole))
    expected = -sum(float(logits[i - 1, whole[i]]) for i in label) / len(label)
    assert result.loss == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("prefix", "suffix", "label"),
    [("<|user|>\n", "<|end|>\n<|model|>\n", "Yes."), ("(", ")", ""), ("\u300c", "\u300d", "x")],
)
def test_joined_by_nothing_the_text_is_what_was_given(
    lm: fuse.CausalLM, prefix: str, suffix: str, label: str
) -> None:
    exact = Template(prefix, suffix, label, join="none")
    assert exact.render("A red house")[0] == f"{prefix}A red house{suffix}{label}"
    options = {"prefix": prefix, "suffix": suffix, "join": "none"}
    assert read(lm, label, **options) == own(lm, f"{prefix}A red house{suffix}{label}")
    with pytest.raises(fuse.FuseError, match="join=nothing: expected one of space, none"):
        Template(join="nothing")


def test_surroundings_are_those_of_a_prompt_that_merges_with_none(lm: fuse.CausalLM) -> None:
    """The first stand-in for a prompt makes one token with this prefix."""
    pairs = [t for t in lm.vocabulary.token_texts if len(t) == 2 and t.isalpha()]
    merging = next(text for text in pairs if text[1] == "a")
    term = fuse.Term(lm, fuse.NLL(), prefix=merging[0], join="none")
    assert term.surroundings.ids == own(lm, merging[0])


# --- special tokens in a text --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["\u00e9", "<|endoftext|>", "a \u00e9 boat", "<|startoftext|>"])
@pytest.mark.parametrize("where", ["prefix", "suffix"])
def test_clip_pools_where_the_network_does(clip: fuse.CLIP, prefix: str, where: str) -> None:
    """What this vocabulary does not know becomes its end token."""
    target, prompts = clip.embed_texts(["a red house"])[0], ["a red house", "a boat", "a red cup"]
    term = fuse.Term(clip, fuse.CosineDistance(target), **{where: prefix})  # type: ignore[arg-type]
    encoded = term.encode(prompts)
    for prefilled in ([], encoded[:1], encoded):
        term.clear()
        term.engine.prefill(prefilled)
        for row, loss in zip(encoded, term.score(encoded).tolist(), strict=True):
            ids = torch.tensor([row.ids])
            mask = torch.ones_like(ids)
            vector = clip.network.get_text_features(input_ids=ids, attention_mask=mask)
            expected = 1 - float(normalize(vector.pooler_output, dim=-1)[0] @ target)
            assert loss == pytest.approx(expected, abs=1e-5)


SPECIAL = ["\u00e9", "<|endoftext|>", "[SEP] [PAD]", "[CLS] a [MASK] [UNK]"]


@pytest.fixture(scope="module")
def open_clip() -> fuse.OpenCLIP:
    return fuse.OpenCLIP.load(str(ROOT / "fuse/demo/open_clip"))


@pytest.mark.parametrize("kind", ["lm", "clip", "open_clip", "mood", "minilm"])
def test_special_tokens_in_a_text_change_nothing_of_reuse(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """For every kind of model: read in batches, with what is cached, and one by one."""
    model: Any = request.getfixturevalue(kind)
    losses: dict[str, Any] = {"lm": fuse.NLL(), "mood": fuse.ClassNLL(0)}
    loss = losses.get(kind) or fuse.CosineDistance(model.embed_texts(["a house"])[0])
    for special in SPECIAL:
        term = fuse.Term(model, loss, prefix=special)
        plain = fuse.Term(model, loss, prefix=special, prefix_cache=False, packing=False)
        encoded = term.encode(["a red house", "a boat", f"a {special} cup"])
        term.engine.prefill(encoded[::2])
        alone = torch.cat([plain.score([row]) for row in encoded])
        torch.testing.assert_close(term.score(encoded), alone, atol=1e-4, rtol=0)


# --- constraints, weights, targets ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["gcg", "random", "autodan"])
def test_listed_words_of_several_tokens_are_put_in_whole(lm: fuse.CausalLM, method: str) -> None:
    from fuse.registry import METHODS

    listed = {"turquoise", "giraffe", "2"}
    constraints = fuse.Constraints(allow=sorted(listed))
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), constraints=constraints)
    assert all(len(lm.vocabulary.encode([f" {word}"])[0][0]) > 1 for word in listed - {"turquoise"})
    options = {} if method == "autodan" else {"prompt_length": 2}
    result = fuse.search(objective, METHODS[method](search_width=16, **options), steps=6)
    words = " ".join(step.prompt for step in result.trace).split()
    assert set(words) == listed
    # Without a list, or with words of one token each, nothing is added
    for allow in ([], ["."]):
        constraints = fuse.Constraints(allow=allow)
        assert fuse.Objective(fuse.Term(lm, fuse.NLL()), constraints=constraints).long_words == []


@pytest.mark.parametrize("method", ["gcg", "random", "autodan"])
def test_a_prompt_holds_the_words_that_it_must(lm: fuse.CausalLM, method: str) -> None:
    """Also where they cost likelihood, have several tokens, and are two."""
    from fuse.registry import METHODS

    constraints = fuse.Constraints(must=["Giraffe", "boat"])
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), constraints=constraints)
    options = {} if method == "autodan" else {"prompt_length": 3}
    result = fuse.search(objective, METHODS[method](search_width=16, **options), steps=4)
    assert {"giraffe", "boat"} <= set(result.prompt.lower().replace(".", " ").split())
    rows = [objective.spell(text) for text in ("a giraffe in a boat", "giraffes, boat")]
    assert objective.finished(rows) == [True, False]


def test_an_empty_word_is_refused() -> None:
    for key in ("block", "allow", "must"):
        for words in ([""], ["a", " "]):
            with pytest.raises(fuse.FuseError, match=f"^{key}='.*leave this one out"):
                fuse.Constraints(**{key: words})


def test_many_blocked_words_are_looked_for_at_once(lm: fuse.CausalLM) -> None:
    """One pattern, which is compiled once; a word may begin with another one."""
    constraints = fuse.Constraints(block=[f"word{i}" for i in range(700)] + ["it", "it's."])
    assert constraints._blocked is constraints._blocked
    for text, ok in (("a word", True), ("Word699!", False), ("it's. so", False), ("its", True)):
        assert constraints.accept(lm.vocabulary, (), text) == ok


@pytest.mark.parametrize("weight", [1e39, -1e39, float("inf"), float("nan")])
def test_a_weight_that_is_no_number_of_float32_is_refused(lm: fuse.CausalLM, weight: float) -> None:
    with pytest.raises(fuse.FuseError, match=r"^weight=.*expected a number"):
        fuse.Term(lm, fuse.NLL(), weight=weight)


def test_a_sum_that_overflows_is_refused_at_the_start(lm: fuse.CausalLM) -> None:
    terms = fuse.Term(lm, fuse.NLL()), {"other": fuse.Term(lm, fuse.NLL(), weight=2e38)}
    objective = fuse.Objective(terms[0], terms[1])
    with pytest.raises(fuse.FuseError, match=r"^other\.weight=2e\+38: .*smaller weight"):
        fuse.Search(objective, fuse.Random(), init="turquoise turquoise").start()


def test_a_network_of_nan_is_named_at_the_start(lm: fuse.CausalLM) -> None:
    """One that was changed after its model was made: such a network is refused."""
    network = GPT2LMHeadModel.from_pretrained(ROOT / "fuse/demo/lm", dtype=torch.float32)
    broken = fuse.CausalLM(network, lm.vocabulary.tokenizer)
    network.transformer.ln_f.weight.data.fill_(torch.nan)
    adapter = fuse.LexicalAdapter.fit(lm.vocabulary, broken)
    other = {"broken": fuse.Term(broken, fuse.NLL(), adapter=adapter)}
    objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), other)
    with pytest.raises(fuse.FuseError, match=r"^broken: of \d+ losses none is finite"):
        fuse.Search(objective, fuse.Random(prompt_length=3)).start()


def test_only_the_direction_of_a_target_counts() -> None:
    a, b = torch.eye(3)[:2]
    both, vectors = fuse.CosineDistance(a + b), torch.stack([a, 5 * b, a + b])
    expected = torch.tensor([1 - 0.5**0.5, 1 - 0.5**0.5, 0.0])
    torch.testing.assert_close(both.at(vectors), expected, atol=1e-6, rtol=0)
    assert float(fuse.CosineDistance(10 * a).at(a[None])) == pytest.approx(0, abs=1e-6)
    for wrong in (torch.zeros(3), torch.tensor([torch.nan, 0, 0]), torch.tensor([torch.inf, 0])):
        with pytest.raises(fuse.FuseError, match=r"^target"):
            fuse.CosineDistance(wrong)


# ---- chat templates ----
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CHATS = [
    [{"role": "user", "content": "{prompt}"}],
    [{"role": "system", "content": "Be {prompt}."}, {"role": "user", "content": "A house?"}],
    [{"role": "user", "content": "A house?"}, {"role": "assistant", "content": " {prompt} "}],
]


@pytest.mark.parametrize("messages", CHATS, ids=["user", "system", "assistant"])
def test_a_chat_is_what_the_tokenizer_makes_of_it(lm: fuse.CausalLM, messages: list[Any]) -> None:
    tokenizer, prompt, label = lm.vocabulary.tokenizer, "red and small", " in the snow."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", CHAT)
        prefix, suffix = chat.text_around(tokenizer, messages)
        filled = [{**m, "content": m["content"].replace("{prompt}", prompt)} for m in messages]
        expected = tokenizer.apply_chat_template(
            filled, add_generation_prompt=True, return_dict=False
        )
    template = Template(prefix, suffix, label, start="none", join="none")
    (encoded,) = template.encode(lm.vocabulary, [prompt])
    label_ids = tokenizer(label, add_special_tokens=False).input_ids
    assert list(encoded.ids) == expected + label_ids
    assert tokenizer.decode(encoded.free_ids).strip() == prompt
    assert encoded.ids[slice(*encoded.label)] == tuple(label_ids)


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (None, CHATS[0], "has no chat template"),
        (CHAT, [{"role": "user", "content": "no prompt"}], "stands there 0 times"),
        (CHAT, CHATS[0] * 2, "stands there 2 times"),
        ("{{ messages[1:] }}", CHATS[0], "writes the prompt 0 times"),
        ("{{ raise_exception('no such role') }}", CHATS[0], "no such role"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_chat_without_the_prompt_is_one_line(
    lm: fuse.CausalLM, template: str | None, messages: list[Any], words: str
) -> None:
    tokenizer = lm.vocabulary.tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", template)
        with pytest.raises(fuse.FuseError, match=words) as raised:
            chat.text_around(tokenizer, messages)
    assert "\n" not in str(raised.value)
