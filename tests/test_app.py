"""The page in the browser, by Gradio's own client: what a visitor sees, and what is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from conftest import ROOT

from fuse.app.web.searching import GOALS, MAX_SECONDS, MAX_TEXT, Searching, Wanted
from fuse.errors import FuseError

HOUSE = str(ROOT / "images/house.png")


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Searching:
    return Searching(tmp_path_factory.mktemp("page"))


def wanted(goal: str = GOALS[0], text: str = "", **other: Any) -> Wanted:
    options = {"method": "autodan", "strategy": "greedy", "weight": 10.0, "seconds": 30.0}
    return Wanted(goal=goal, text=text, **{"picture": HOUSE, **options, **other})


def test_a_picture_is_captioned_step_by_step(searching: Searching, tmp_path: Path) -> None:
    found = list(searching.search(wanted(strategy="beam"), Event()))
    assert len(found) > 5 and [one.archive for one in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].archive is not None
    shutil.unpack_archive(found[-1].archive, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert "house" in result["prompt"] and result["status"] == "done"
    names = {"config.json", "report.html", "result.json", "trace.jsonl"}
    assert set(zipfile.ZipFile(found[-1].archive).namelist()) == names
    assert f"image={HOUSE}" in result["command"]


def test_a_stop_ends_it_after_its_step(searching: Searching) -> None:
    stop = Event()
    archives = []
    for progress in searching.search(wanted(), stop):
        archives.append(progress.archive)
        stop.set()
    assert len(archives) == 2 and archives[0] is None and archives[1] is not None


def test_other_goals(searching: Searching) -> None:
    for goal, text in ((GOALS[1], "a boat by the sea"), (GOALS[2], "in the snow.")):
        steps = list(searching.search(wanted(goal, text, seconds=1.0), Event()))
        assert steps[-1].archive is not None


def test_what_is_asked_for_is_bounded(searching: Searching, tmp_path: Path) -> None:
    assert f"time_limit={MAX_SECONDS}" in searching.overrides(wanted(seconds=1e9))
    text = tmp_path / "a.png"
    text.write_text("no picture")
    for one, message in (
        (wanted(picture=str(text)), "not a picture"),
        (wanted(picture=None), "none was given"),
        (wanted(GOALS[2], ""), "expected 1 to"),
        (wanted(GOALS[2], "a" * (MAX_TEXT + 1)), "expected 1 to"),
        (wanted(method="pez", strategy="beam"), "pez"),
    ):
        with pytest.raises(FuseError, match=message):
            list(searching.search(one, Event()))


@pytest.fixture(scope="module")
def address(searching: Searching) -> Iterator[str]:
    pytest.importorskip("gradio", reason="it comes with the extra `app`")
    from fuse.app.web.page import launch

    blocks = launch(searching, prevent_thread_lock=True, quiet=True)
    yield blocks.local_url
    blocks.close()


def test_two_visitors_at_once_both_finish(address: str) -> None:
    from gradio_client import Client, handle_file

    jobs = []
    for _ in range(2):
        client = Client(address, verbose=False)
        arguments = GOALS[0], handle_file(HOUSE), "", "autodan", "greedy", 10.0, 30.0
        jobs.append(client.submit(*arguments, api_name="/find"))
    prompts = set()
    for job in jobs:
        prompt, losses, _, archive = job.result(timeout=300)
        prompts.add("".join(part["token"] for part in prompt))
        assert "demo_clip" in losses and zipfile.is_zipfile(archive)
        assert len(job.outputs()) > 3  # it was seen while it grew
    assert len(prompts) == 1 and "" not in prompts


def test_a_mistake_is_told(address: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    text = tmp_path / "text.png"
    text.write_text("no picture")
    client = Client(address, verbose=False)
    with pytest.raises(Exception, match="not a picture"):
        client.predict(
            GOALS[0], handle_file(str(text)), "", "autodan", "auto", 1.0, 5.0, api_name="/find"
        )


@pytest.mark.parametrize(
    "path", ["/etc/hostname", str(ROOT / "pyproject.toml"), "../../etc/passwd"]
)
def test_other_files_are_not_served(address: str, path: str) -> None:
    with pytest.raises(HTTPError) as refusal:
        urlopen(f"{address}gradio_api/file={quote(path)}")
    assert refusal.value.code in (403, 404)
