"""The page in the browser, by Gradio's own client: what a visitor sees, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import numpy
import pytest
import yaml
from browser import served
from command_line import find_prompt
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import fuse
from fuse.app.config import compose
from fuse.app.interrupt import StopRequest
from fuse.app.overrides import as_typed, prepared, quoted
from fuse.app.report.record import read_run
from fuse.app.web.asking import QUESTIONS, answer
from fuse.app.web.searching import CAPTION, ELICIT, INVERT, MAX_SECONDS, Searching, Wanted
from fuse.app.web.texts import MAX_TEXT
from fuse.errors import FuseError

HOUSE = str(ROOT / "images/house.png")


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Searching:
    return Searching(tmp_path_factory.mktemp("page"))


def wanted(goal: str = CAPTION, text: str = "", **other: Any) -> Wanted:
    options = {"method": "autodan", "strategy": "greedy", "file": HOUSE}
    return Wanted(goal=goal, text=text, **{**options, **other})


def test_a_run_of_the_page_is_that_of_the_command(searching: Searching, tmp_path: Path) -> None:
    found = 0
    for progress in searching.search(wanted(strategy="beam"), StopRequest()):
        found += 1
        if progress.archive is not None:  # it is gone afterwards
            shutil.unpack_archive(progress.archive, tmp_path / "page")
            assert progress.report is not None and "What each token is worth" in progress.report
    assert found > 5 and not list(searching.place.iterdir())
    result = json.loads((tmp_path / "page/result.json").read_text())
    assert "house" in result["prompt"] and result["status"] == "done"
    _, _, *typed = shlex.split(result["command"])  # it names the picture as the visitor knows it
    done = find_prompt(*typed, f"hydra.run.dir={tmp_path}/command", folder=tmp_path / "page")
    assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / "page") == steps_of(tmp_path / "command")
    names = {path.name for path in (tmp_path / "page").iterdir()}
    left = {path.name for path in (tmp_path / "command").iterdir()}
    assert names - {"house.png"} == left - {".lock", ".hydra", "find_prompt.log"}


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Return the trace of a run, but for its times."""
    lines = (folder / "trace.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


@pytest.mark.parametrize("name", ["my 'red' house.png", "result.json", "null", "a, $b=[c].png"])
def test_a_run_folder_tells_nothing_of_the_server(
    searching: Searching, tmp_path: Path, name: str
) -> None:
    (tmp_path / "upload").mkdir()
    given = shutil.copy(HOUSE, tmp_path / "upload" / name)
    run = tmp_path / "unpacked"
    report = ""
    for found in searching.search(wanted(file=given, seconds=1.0), StopRequest()):
        if found.archive is not None:  # it is gone afterwards
            shutil.unpack_archive(found.archive, run)
            report = str(found.report)
    files = [(run / name).read_text() for name in ("result.json", "config.json", "trace.jsonl")]
    for text in (report, *files):
        assert str(searching.place) not in text and str(tmp_path) not in text
    record = read_run(run)  # it finds the picture where the folder lies now
    assert record.config is not None
    assert record.result["image"] == record.config["image"]
    assert Path(record.result["image"]).read_bytes() == Path(HOUSE).read_bytes()
    _, _, *typed = shlex.split(record.result["command"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        assert Path(compose(typed)["image"]).absolute() == Path(record.result["image"])


@pytest.fixture
def visitors(searching: Searching) -> Any:
    pytest.importorskip("gradio", reason="the page comes with the extra `app`")
    from fuse.app.web.visitors import Visitors

    return Visitors(searching)


def test_a_stop_takes_who_waits_out_of_the_line(searching: Searching, visitors: Any) -> None:
    names = "first", "second", "third"
    first, second, third = (visitors.find(wanted(), "none", name) for name in names)
    assert "reading the models" in next(first)
    assert "1 search before yours" in next(second)[1]
    assert "2 searches before yours" in next(third)[1]
    visitors.stop("second", ELICIT)  # another one's search
    assert "1 search before yours" in next(second)[1]
    visitors.stop("second", CAPTION)
    assert [shown[1] for shown in second] == ["stopped before anything was found"]
    assert "1 search before yours" in next(third)[1]
    first.close()  # the browser is gone
    assert "reading the models" in next(third)
    visitors.stop("third")
    assert [shown[1] for shown in third] == ["stopped before anything was found"]
    assert not list(searching.place.iterdir())


def test_a_long_line_takes_nobody_else(visitors: Any) -> None:
    line = [visitors.find(wanted(), "none", str(i)) for i in range(21)]
    for i, one in enumerate(line):
        assert next(one)[1].startswith(f"waiting: {i} search" if i else "reading")
    with pytest.raises(FuseError, match="20 visitors are waiting already"):
        next(visitors.find(wanted(), "none", "late"))
    for one in reversed(line):
        one.close()


@pytest.mark.full
def test_two_searches_in_turn_are_those_alone(searching: Searching) -> None:
    both = [wanted(method=method, seconds=MAX_SECONDS) for method in ("autodan", "gcg")]
    alone = []
    for one in both:
        alone.append([found.steps for found in islice(searching.search(one, StopRequest()), 3)])
    in_turn = islice(zip(*(searching.search(one, StopRequest()) for one in both), strict=False), 3)
    steps = [[found.steps for found in pair] for pair in in_turn]
    assert len(steps) == 3 and steps == [list(pair) for pair in zip(*alone, strict=True)]


def test_a_stop_ends_it_after_its_step(searching: Searching) -> None:
    stop = StopRequest()
    archives = []
    for progress in searching.search(wanted(), stop):
        archives.append(progress.archive)
        stop.signal = signal.SIGINT
    assert len(archives) == 2 and archives[0] is None and archives[1] is not None


def test_other_goals(searching: Searching, tmp_path: Path, clip: fuse.CLIP) -> None:
    numpy.save(tmp_path / "v.npy", clip.embed_texts(["a blue boat"])[0].float().numpy())
    for one in (
        wanted(INVERT, "a boat by the sea", file=None, seconds=1.0),
        wanted(INVERT, file=str(tmp_path / "v.npy"), seconds=1.0),
        wanted(ELICIT, "in the snow.", seconds=1.0),
    ):
        *_, last = searching.search(one, StopRequest())
        assert last.archive is not None


@pytest.mark.parametrize("text", ["null", "[a,b]", 'so "it" is', "a\\b", 'a\\"b', "$x, {y}", "'a'"])
def test_a_text_is_taken_as_it_is_typed(text: str) -> None:
    (override,) = prepared([f"label={quoted(text)}"])
    (typed,) = shlex.split(as_typed(override))
    assert compose([f"label={quoted(text)}", "image=null"])["label"] == text
    assert prepared([typed]) == [override]


def test_what_is_asked_for_is_bounded(searching: Searching, tmp_path: Path) -> None:
    assert f"time_limit={MAX_SECONDS}" in searching.overrides(wanted(seconds=1e9))
    text = tmp_path / "a.png"
    text.write_text("no picture")
    for one, message in (
        (wanted(file=str(text)), "not a picture"),
        (wanted(file=None), "none was given"),
        (wanted(file="https://a.b/c.png"), "not there"),
        (wanted(fluency=float("nan")), "primary.weight=nan: expected a number"),
        (wanted(seconds=float("nan")), "time_limit=nan: expected a number"),
        (wanted(seed=-1), "seed=-1: expected"),
        (wanted(INVERT, file=str(text)), "target_vector"),
        (wanted(ELICIT, ""), "expected 1 to"),
        (wanted(ELICIT, "a" * (MAX_TEXT + 1)), "expected 1 to"),
        (wanted(method="pez", strategy="beam"), "pez"),
    ):
        with pytest.raises(FuseError, match=message):
            list(searching.search(one, StopRequest()))
    assert not list(searching.place.iterdir())


def test_questions_are_answered() -> None:
    for question in QUESTIONS:
        views = answer(question, "a house\n--model nowhere")
        assert views and all(view.rows for view in views)
    for question, text in (("nothing", "a"), ("tokens", " "), ("similar", "a\n" * 30)):
        with pytest.raises(FuseError, match="expected"):
            answer(question, text)


@pytest.fixture(scope="module")
def address(searching: Searching) -> Iterator[str]:
    with served(searching) as found:
        yield found


def test_two_visitors_at_once_both_finish(address: str) -> None:
    from gradio_client import Client, handle_file

    jobs = []
    for _ in range(2):
        client = Client(address, verbose=False)
        arguments = handle_file(HOUSE), "autodan", "none", "greedy", 1.0, 10.0, 30.0, 0
        jobs.append(client.submit(*arguments, api_name="/caption"))
    prompts = set()
    for job in jobs:
        prompt, losses, _, archive = job.result(timeout=300)[:4]
        prompts.add("".join(part["token"] for part in prompt["value"]))
        assert "demo_clip" in losses and zipfile.is_zipfile(archive["value"])
        assert len(job.outputs()) > 3  # it was seen while it grew
    assert len(prompts) == 1 and "" not in prompts


def test_a_mistake_is_told(address: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    text = tmp_path / "text.png"
    text.write_text("no picture")
    client = Client(address, verbose=False)
    with pytest.raises(Exception, match="not a picture"):
        arguments = handle_file(str(text)), "autodan", "none", "auto", 1.0, 10.0, 5.0, 0
        client.predict(*arguments, api_name="/caption")


@pytest.mark.parametrize(
    "path", ["/etc/hostname", str(ROOT / "pyproject.toml"), "../../etc/passwd"]
)
def test_other_files_are_not_served(address: str, path: str) -> None:
    with pytest.raises(HTTPError) as refusal:
        urlopen(f"{address}gradio_api/file={quote(path)}")
    assert refusal.value.code in (403, 404)


def test_a_space_has_what_the_page_needs(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio", reason="the page comes with the extra `app`")
    tomllib = pytest.importorskip("tomllib", reason="it comes with Python 3.11")
    from write_space import write_space

    write_space(tmp_path / "space")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    before, header, _ = (tmp_path / "space/README.md").read_text().split("---\n", 2)
    space = yaml.safe_load(header)
    assert not before and space["sdk"] == "gradio" and space["app_file"] == "app.py"
    (wanted_gradio,) = map(Requirement, project["optional-dependencies"]["app"])
    assert space["sdk_version"] == gradio.__version__ in wanted_gradio.specifier
    assert space["python_version"] in SpecifierSet(project["requires-python"])
    assert space["license"] == project["license"].lower() and len(space["short_description"]) <= 60
    lines = (tmp_path / "space/requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("--")] == project["dependencies"]
    code = "import app; from fuse.app.config import compose; print(compose()['image'])"
    command = [sys.executable, "-c", code]  # in whose working directory `fuse` is the Space's
    done = subprocess.run(command, cwd=tmp_path / "space", capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "space/images/house.png"), done.stderr
