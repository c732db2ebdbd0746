"""method=paraphrase: the primary reads the best prompts, and writes another one."""

from __future__ import annotations

import pytest
import torch

import fuse
from fuse.guide import Guide
from fuse.search.methods.paraphrase import REQUEST, unlike

TEXTS = ["A red house stands in the snow.", "A red house stands in snow.", "Two cats at night."]


@pytest.fixture
def objective(lm: fuse.CausalLM) -> fuse.Objective:
    return fuse.Objective(fuse.Term(lm, fuse.NLL()))


def test_what_is_shown_differs() -> None:
    rows = [(1, 2, 3, 4), (1, 2, 3, 5), (4, 3, 2, 1), (1, 2, 6, 7), (8, 9)]
    assert unlike(rows, 1) == rows[:1]
    assert unlike(rows, 3) == [rows[0], (8, 9), (1, 2, 6, 7)]
    assert len(unlike(rows, 9)) == len(rows)


def test_it_writes_lines_as_the_primary_does(
    objective: fuse.Objective, generator: torch.Generator
) -> None:
    method, guide = fuse.Paraphrase(search_width=16, temperature=0.3), Guide(objective)
    beam = [objective.spell(text) for text in TEXTS]
    found = method.propose(None, beam, guide, generator)
    assert found is not None and len(found.ids) > 4
    assert objective.valid(found.ids) == [True] * len(found.ids)
    assert len(set(found.ids)) == len(found.ids) and not {*beam} & {*found.ids}
    drawn = objective.evaluate(found.ids).loss.mean()
    other = [fuse.random_prompt(guide, 8, generator) for _ in range(8)]
    assert drawn < objective.evaluate(other).loss.mean() - 2


def test_what_is_read_grows_token_by_token(lm: fuse.CausalLM, generator: torch.Generator) -> None:
    """No token is read twice, and the prefix cache changes nothing."""
    found, num_read = [], []
    for cached in (True, False):
        objective = fuse.Objective(fuse.Term(lm, fuse.NLL(), prefix_cache=cached))
        beam = [objective.spell(text) for text in TEXTS]
        sizes: list[int] = []

        def note(_: object, given: object, options: dict[str, torch.Tensor], sizes=sizes) -> None:
            sizes.append(options["input_ids"].numel())

        with lm.network.register_forward_pre_hook(note, with_kwargs=True):
            method = fuse.Paraphrase(search_width=4)
            own = torch.Generator().manual_seed(0)
            proposed = method.propose(None, beam, Guide(objective), own)
        assert proposed is not None
        found.append(proposed.ids)
        num_read.append(sum(sizes))
    assert found[0] == found[1]
    assert 4 * num_read[0] < num_read[1]


def test_a_request_fits_the_context(
    objective: fuse.Objective, lm: fuse.CausalLM, generator: torch.Generator
) -> None:
    text = "A red house stands in the snow by the sea, and a blue boat is near the old tree. "
    beam = [objective.spell((text * 4)[: 300 - i]) for i in range(6)]
    method = fuse.Paraphrase(search_width=3)
    found = method.propose(None, beam, Guide(objective), generator)
    assert found is not None and all(len(row) < lm.vocabulary.max_length for row in found.ids)


def test_a_model_that_chats_is_asked(
    objective: fuse.Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, method = Guide(objective), fuse.Paraphrase()
    shown = [objective.spell(text) for text in TEXTS]
    assert not guide.chats
    plain = objective.vocabulary.tokenizer.decode(method._request(shown, guide))
    assert plain == "<|endoftext|>" + "".join(f"{text}\n" for text in reversed(TEXTS))
    with pytest.raises(fuse.FuseError, match="no chat template"):
        fuse.Paraphrase(style="chat")._request(shown, guide)
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}[assistant]"
    monkeypatch.setattr(objective.vocabulary.tokenizer, "chat_template", template)
    asked = objective.vocabulary.tokenizer.decode(method._request(shown, guide))
    lines = "\n".join(reversed(TEXTS))
    assert asked == f"[user] {REQUEST.format(prompt=lines)}[assistant]"
    lines_alone = fuse.Paraphrase(style="lines")._request(shown, guide)
    assert objective.vocabulary.tokenizer.decode(lines_alone) == plain


def test_it_refines(objective: fuse.Objective, generator: torch.Generator) -> None:
    result = fuse.search(
        objective,
        fuse.AutoDAN(search_width=8, steps=6),
        fuse.Beam(1),
        refine=fuse.Paraphrase(search_width=8, steps=2),
        generator=generator,
    )
    assert [step.method for step in result.trace][-1] == "paraphrase"
    assert result.trace[-1].best_loss <= result.trace[5].best_loss


def test_a_primary_that_predicts_nothing_is_refused(clip: fuse.CLIP, house: torch.Tensor) -> None:
    objective = fuse.Objective(fuse.Term(clip, fuse.CosineDistance(house)))
    with pytest.raises(fuse.FuseError, match=r"method=paraphrase.*causal LM"):
        fuse.Search(objective, fuse.Paraphrase())
