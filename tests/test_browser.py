"""The page and the reports in a real browser: pytest -m full tests/test_browser.py

Needs Chromium, and pip install -e '.[browser]'.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Watched, browser, served
from command_line import find_prompt
from conftest import ROOT

from fuse.app.web.searching import Searching

pytestmark = pytest.mark.full
HOUSE = str(ROOT / "images/house.png")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Searching:
    return Searching(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(searching: Searching) -> Iterator[str]:
    with served(searching) as found:
        yield found


@pytest.fixture
def visitor(chromium: Any, address: str) -> Iterator[Watched]:
    """A visitor of the page, in a session of his own."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield visit(context, address)
    context.close()


def visit(context: Any, address: str) -> Watched:
    found = Watched(context, address)
    found.page.goto(address)
    found.page.get_by_role("tab", name="Caption a picture").wait_for()
    return found


def press(page: Any, name: str) -> None:
    page.locator("button:visible", has_text=name).first.click()


def choose(page: Any, label: str, value: str) -> None:
    """Choose an entry of a drop-down list."""
    page.get_by_label(label, exact=True).locator("visible=true").click()
    page.get_by_role("option", name=value, exact=True).click()


def give_picture(page: Any, path: str) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def prompt_of(page: Any) -> str:
    """Return the text that is shown; in another line stands the field's name."""
    found = page.locator(".prompt:visible")
    return "".join(found.first.inner_text().splitlines()[1:]).strip() if found.count() else ""


def until(condition: Callable[[], Any], page: Any, seconds: float = 60.0) -> Any:
    """Wait until a condition holds, and return what it is then."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, page.locator("body").inner_text()
        page.wait_for_timeout(50)
    return found


def download(page: Any, folder: Path) -> zipfile.ZipFile:
    """Save the run folder that the page offers."""
    with page.expect_download() as coming:
        page.locator("a[download$='.zip']:visible").first.click()
    coming.value.save_as(folder / "run.zip")
    return zipfile.ZipFile(folder / "run.zip")


def test_a_picture_gets_a_caption_that_grows(visitor: Watched, tmp_path: Path) -> None:
    page = visitor.page
    give_picture(page, HOUSE)
    page.get_by_alt_text("your picture").wait_for()
    press(page, "Search")
    seen = set()
    while not page.locator("iframe.report:visible").count():
        seen.add(prompt_of(page))
        page.wait_for_timeout(50)
    assert len(seen) > 3 and "house" in prompt_of(page)
    report = page.frame_locator("iframe.report").first
    assert report.locator("h1").inner_text().strip() == prompt_of(page)
    files = download(page, tmp_path)
    result = json.loads(files.read("result.json"))
    assert result["prompt"].strip() == prompt_of(page) and result["status"] == "done"
    assert not visitor.errors and not visitor.elsewhere


def test_a_stop_ends_the_search_and_keeps_what_is_found(visitor: Watched, tmp_path: Path) -> None:
    page = visitor.page
    give_picture(page, HOUSE)
    choose(page, "method", "gcg")
    press(page, "Search")
    until(lambda: prompt_of(page), page)
    press(page, "Stop")
    page.locator("iframe.report:visible").wait_for()
    assert json.loads(download(page, tmp_path).read("result.json"))["status"] == "interrupted"


def test_a_text_named_png_gets_a_clear_message(visitor: Watched, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    page = visitor.page
    give_picture(page, str(text))
    page.get_by_text("not a picture").first.wait_for()
    press(page, "Search")
    until(lambda: page.get_by_text("not a picture").count() > 1, page)
    assert not prompt_of(page)


def test_two_visitors_at_once_both_finish(chromium: Any, address: str) -> None:
    contexts = [chromium.new_context() for _ in range(2)]
    visitors = [visit(context, address).page for context in contexts]
    for page in visitors:
        give_picture(page, HOUSE)
    for page in visitors:
        press(page, "Search")
    for page in visitors:
        page.locator("iframe.report:visible").wait_for()
    assert len({prompt_of(page) for page in visitors}) == 1
    for context in contexts:
        context.close()


def losses_of(page: Any) -> str:
    """Return where the search stands, in the field of the losses."""
    return page.get_by_label("losses").locator("visible=true").first.input_value()


def test_a_stop_takes_who_waits_out_of_the_line(chromium: Any, address: str) -> None:
    contexts = [chromium.new_context() for _ in range(3)]
    first, second, third = (visit(context, address).page for context in contexts)
    for page in (first, second, third):
        give_picture(page, HOUSE)
    choose(first, "method", "gcg")
    first.get_by_label("number input for seconds at most").first.fill("120")
    press(first, "Search")
    until(lambda: prompt_of(first), first)
    press(second, "Search")
    until(lambda: "1 search before" in losses_of(second), second)
    press(third, "Search")
    until(lambda: "2 searches before" in losses_of(third), third)
    press(second, "Stop")
    until(lambda: "stopped before" in losses_of(second), second, 10)
    until(lambda: "1 search before" in losses_of(third), third, 10)
    press(second, "Search")  # at the end of the line
    until(lambda: "2 searches before" in losses_of(second), second, 10)
    contexts[1].close()
    assert not first.locator("iframe.report:visible").count()  # it searches all the time
    press(first, "Stop")
    for page in (first, third):
        page.locator("iframe.report:visible").wait_for()
    for context in contexts:
        context.close()


def test_two_methods_side_by_side(visitor: Watched) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Elicit a text").click()
    page.get_by_label("text that the model is to say").fill("in the snow.")
    choose(page, "compare with", "random")
    press(page, "Search")
    until(lambda: page.locator("iframe.report:visible").count() == 2, page, 100)
    frames = page.locator("iframe.report:visible")
    for number, method in enumerate(("gcg", "random")):
        assert f"found by {method}" in frames.nth(number).content_frame.locator("body").inner_text()
    assert not visitor.errors


def test_a_question_is_answered(visitor: Watched) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Inspect").click()
    page.locator("textarea:visible").first.fill("<b>snow</b> & house")
    press(page, "Ask")
    page.locator(".answer table").first.wait_for()
    assert "<b>snow</b>" in page.locator(".answer").inner_text()
    assert not page.locator(".answer td b").count()


def test_who_leaves_ends_the_search(chromium: Any, address: str, searching: Searching) -> None:
    context = chromium.new_context()
    page = visit(context, address).page
    give_picture(page, HOUSE)
    choose(page, "method", "gcg")
    press(page, "Search")
    until(lambda: prompt_of(page), page)
    context.close()
    ends = time.monotonic() + 25
    while any(searching.place.iterdir()):
        assert time.monotonic() < ends, "the run folder is still there"
        time.sleep(0.2)


@pytest.mark.parametrize("path", ["/etc/hostname", str(ROOT / "pyproject.toml")])
def test_a_file_of_the_server_is_refused(visitor: Watched, address: str, path: str) -> None:
    assert visitor.page.request.get(f"{address}gradio_api/file={path}").status in (403, 404)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_quiet_and_as_wide_as_the_window(
    chromium: Any, run: Path, width: int, scheme: str
) -> None:
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    watched = Watched(context, "file:")
    watched.page.goto(f"file://{run}/report.html")
    watched.page.locator("svg").first.wait_for()
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not watched.errors and not watched.elsewhere
    context.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert find_prompt(f"hydra.run.dir={folder}", "quiet=true").returncode == 0
    return folder
