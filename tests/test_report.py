"""The pages of runs: what they say is exact, all text is escaped, and they never cost a result."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch
from command_line import Done, find_prompt
from conftest import ROOT

import fuse
from fuse.app.build import build
from fuse.app.changes import changed_parts
from fuse.app.config import compose
from fuse.app.interrupt import StopRequest
from fuse.app.overrides import as_typed, prepared
from fuse.app.report import inside, write
from fuse.app.report.command import main
from fuse.app.report.inside import contributions, front, readings
from fuse.app.report.record import read_run
from fuse.app.report.svg import ticks
from fuse.app.report.tree import ancestors
from fuse.app.session import Session
from fuse.types import BeamRow, Step

SCRIPT = "<script>alert(1)</script>"


def run_at(folder: Path, *arguments: str) -> Done:
    """Make a run that is as short as can be."""
    return find_prompt("steps=1", "secondary=[]", *arguments, f"hydra.run.dir={folder}")


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("report") / "run"
    done = find_prompt("steps=3", "method.search_width=64", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_leaves_a_page_that_needs_nothing_else(run: Path) -> None:
    page, record = page_of(run), read_run(run)
    assert record.result["prompt"] in page.text
    assert "script" not in page.tags and "link" in page.tags
    assert all(one.startswith("data:") for one in page.addresses), page.addresses
    assert page.tags.count("svg") == 5  # three curves, fluency against match, the tree
    assert "python find_prompt.py steps=3 method.search_width=64" in page.text
    assert "search_width: 64" in page.text


def test_a_tokens_worth_is_the_loss_without_it() -> None:
    search = build(compose([]))
    objective, text = search.objective, "A red house stands alone in the snow."
    ids = objective.spell(text)
    total, terms = objective.evaluate_text(text)
    found = contributions(objective, ids)
    for i, changes in enumerate(found):
        (without,) = objective.vocabulary.decode([ids[:i] + ids[i + 1 :]])
        other, others = objective.evaluate_text(without)
        assert sum(changes.values()) == pytest.approx(other - total, abs=1e-4)
        for name, change in changes.items():
            expected = terms[name].weight * (others[name].loss - terms[name].loss)
            assert change == pytest.approx(expected, abs=1e-4)
    assert max(sum(changes.values()) for changes in found) > 1
    assert contributions(objective, ids[:1]) == [{}]
    for parts in readings(objective, text).values():
        assert "".join(parts) == text


def test_the_numbers_of_the_page_are_the_losses_without_each_token(run: Path) -> None:
    record, html = read_run(run), (run / "report.html").read_text(encoding="utf-8")
    assert record.config is not None
    objective = build(record.config).objective
    ids = tuple(record.result["free_ids"])
    (whole,) = objective.vocabulary.decode([ids])
    total, _ = objective.evaluate_text(whole)
    cell = '<td class="num">(-?[0-9.]+)</td>'
    found = re.findall(f'<span class="part">[^<]*</span></td>{cell}{cell}', html)
    assert [int(token) for token, _ in found] == list(ids)
    for i, (_, change) in enumerate(found):
        (without,) = objective.vocabulary.decode([ids[:i] + ids[i + 1 :]])
        assert float(change) == pytest.approx(objective.evaluate_text(without)[0] - total, abs=2e-4)


def test_all_text_is_escaped(tmp_path: Path) -> None:
    picture = tmp_path / "<script>alert(1)<b>.png"
    shutil.copy(ROOT / "images/house.png", picture)
    folder = tmp_path / "run"
    done = find_prompt(
        f"label={SCRIPT}", f"image={picture}", "method=random", "steps=1",
        "method.search_width=4", f"primary.prefix={SCRIPT}", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    result |= {"prompt": SCRIPT, "method": SCRIPT, "found": [SCRIPT], "ended": SCRIPT}
    result["terms"][SCRIPT] = result["terms"]["demo_clip"]
    (folder / "result.json").write_text(json.dumps(result))
    main([str(folder), "--no-models"])
    page = page_of(folder)
    assert "script" not in page.tags and "b" not in page.tags
    assert page.text.count(SCRIPT) > 5


def test_a_folder_of_pictures_gets_an_index(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, other in (("house", "house"), ("boat", f"{SCRIPT[:8]} & 1")):
        shutil.copy(ROOT / f"images/{name}.png", pictures / f"{other}.png")
    folder = tmp_path / "run"
    done = find_prompt(
        f"image={pictures}", "steps=1", "method.search_width=32", f"hydra.run.dir={folder}"
    )
    assert done.returncode == 0, done.stderr
    index = Page((folder / "index.html").read_text())
    assert index.tags.count("img") == 2 and index.tags.count("script") == 1
    records = {path.parent.name: read_run(path.parent) for path in folder.rglob("result.json")}
    assert len(records) == 2
    for record in records.values():
        assert record.result["prompt"] in index.text
        assert "image=" in record.result["command"]
        assert (record.folder / "report.html").is_file()
        assert "What each token is worth" in page_of(record.folder).text
    best = min(records, key=lambda name: records[name].result["loss"])
    assert f"Lowest loss: {best}" in index.text
    main([str(folder)])  # the models are loaded anew, each picture with its own
    for record in records.values():
        assert "What each token is worth" in page_of(record.folder).text


def test_a_run_through_vectors_gets_pages_and_an_index(tmp_path: Path, clip: fuse.CLIP) -> None:
    vectors = clip.embed_texts(["a red house", "a blue boat"]).float()
    numpy.save(tmp_path / "v.npy", vectors.numpy())
    folder = tmp_path / "run"
    given = (f"target_vector={tmp_path}/v.npy", "image=null", "steps=1", "method.search_width=16")
    done = find_prompt(*given, "quiet=true", f"hydra.run.dir={folder}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    index = Page((folder / "index.html").read_text())
    assert "2 runs" in index.text
    main([str(folder)])  # each with its own vector
    for name in ("00000000", "00000001"):
        page, record = page_of(folder / name), read_run(folder / name)
        assert record.result["prompt"] in index.text
        assert "What each token is worth" in page.text and "is not shown" not in page.text
        assert f"target_vector={tmp_path}/v.npy" in record.result["command"]


def test_the_command_of_an_item_is_for_it_alone() -> None:
    session = Session(StopRequest())
    session._overrides = prepared(["targets=texts.txt", "column=text", "seed=3"])
    whole = {"image": "house.png", "target": None}
    command = session._command({**whole, "target": "[it's], 2"}, whole)
    _, _, *typed = shlex.split(command)
    assert prepared(typed) == prepared(["seed=3", 'target="[it\'s], 2"'])
    command = session._command({**whole, "image": "a b.png"}, whole)
    assert command == "python find_prompt.py seed=3 'image=a b.png'"


def test_an_index_of_very_many_runs_lists_the_first(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        shutil.copytree(run, tmp_path / name)
    monkeypatch.setattr(write, "MOST_RUNS", 2)
    write.write_index(tmp_path, [])
    text = Page((tmp_path / "index.html").read_text()).text
    assert "The first 2 runs are listed; 1 more are left out." in text


@pytest.mark.full
def test_a_sweep_gets_an_index_with_the_options_that_differ(tmp_path: Path) -> None:
    done = find_prompt("-m", "seed=1,2", "steps=1", "secondary=[]", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "index.html").read_text()
    assert "<th>seed</th>" in index and "steps</th>" in index
    assert "primary.model_id" not in index


def test_a_page_never_costs_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of a page")

    monkeypatch.setattr(write, "look_inside", broken)
    done = run_at(tmp_path)
    assert done.returncode == 0 and (tmp_path / "result.json").is_file()
    (line,) = [line for line in done.stderr.splitlines() if "warning" in line]
    assert "report.html: not written (ZeroDivisionError: of a page)" in line
    assert not (tmp_path / "report.html").exists()


def test_no_page_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    assert run_at(tmp_path, "report=false").returncode == 0
    assert not (tmp_path / "report.html").exists()


def test_folders_without_a_run_are_told_in_one_line(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "result.json").write_text('{"prompt": "a", "terms": {"primary": 3}}')
    for folder, message in ((tmp_path / "none", "holds no result.json"), (strange, "not those of")):
        with pytest.raises(SystemExit):
            main([str(folder)])
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "config.json").unlink()
    main([str(copy)])
    assert "is not shown: the run has no config.json" in page_of(copy).text


def test_a_word_cloud_is_drawn_where_asked_for(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("wordcloud", reason="word clouds need the extra `views`")
    copy = shutil.copytree(run, tmp_path / "copy")
    main([str(copy), "--no-models", "--word-cloud"])
    assert fuse.open_image(copy / "word_cloud.png").size == (900, 450)
    assert "Words of the prompts" in page_of(copy).text


@pytest.mark.parametrize(
    "argument",
    [
        "steps=3",
        "method=gcg",
        "secondary=[demo_clip,demo_mood]",
        'label=it\'s "so", $x & <b>',
        "label=null",
        'label="null"',
        "target=a, b",
        "image=[a b.png,c.png]",
        "primary.weight=2.5",
        "+secondary@secondary.second=clip",
    ],
)
def test_the_command_repeats_the_run(argument: str) -> None:
    (override,) = prepared([argument])
    (again,) = shlex.split(as_typed(override))
    assert prepared([again]) == [override]


def step(number: int, prompt: str, parent: int | None, *beam: tuple[str, int]) -> Step:
    rows = tuple(BeamRow(text, float(len(text)), own) for text, own in beam)
    loss = 10.0 - len(prompt)
    return Step(number, "autodan", loss, loss, prompt, (), {}, 0, 0.0, parent=parent, beam=rows)


def test_ancestors_go_back_through_the_rows_of_the_beam() -> None:
    trace = [
        step(1, "a", 0, ("b", 0), ("a", 0)),
        step(2, "a c", 1, ("b d", 0), ("a c", 1)),
        step(3, "a c e", 1, ("b d f", 0)),
        step(4, "b", 0, ("b", 0)),
    ]
    found = ancestors(trace)
    assert [(one.step, one.row, one.prompt) for one in found] == [
        (1, 1, "a"),
        (2, 1, "a c"),
        (3, None, "a c e"),
    ]
    assert found[-1].parts == [("a c", False), (" e", True)]


def test_the_trace_says_where_the_beam_came_from(run: Path) -> None:
    steps = read_run(run).trace
    for before, after in pairwise(steps):
        for row in after.beam:
            assert row.parent is not None
            own = before.beam[row.parent].prompt
            assert row.prompt.startswith(own) and row.prompt != own
        losses = [row.loss for row in after.beam]
        assert losses == sorted(losses)


def test_what_changed_is_found_word_by_word() -> None:
    found = changed_parts("a red house.", "a big red boat.")
    assert found == [("a", False), (" big", True), (" red", False), (" boat", True), (".", False)]


def test_plots_have_round_ticks_and_the_right_front() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(1.0, 1.0) == [1.0]
    assert front([(1, 3), (2, 2), (2, 3), (3, 1), (4, 1)]) == [(1, 3), (2, 2), (3, 1)]
    assert inside.split(torch.tensor([[1.0, 2, 3], [1, float("inf"), 1]])) == [(1.0, 5.0)]
