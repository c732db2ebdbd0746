"""Chromium, driven by playwright; skipped with a reason where one of them is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OFF_THE_NET = ("data:", "blob:", "file:", "about:")


def browser_path() -> str | None:
    """Return where the system has Chromium; None for playwright's own."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def browser() -> Iterator[Any]:
    """Give a browser without a window: the system's, else playwright's own."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="the browser's driver comes with the extra `browser`"
    )
    with api.sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}; playwright install chromium")
        yield chromium
        chromium.close()


class Watched:
    """A page of a browser whose errors, and addresses elsewhere, are kept.

    Args:
        context: of the browser.
        own: how the addresses begin that it may ask for.
    """

    def __init__(self, context: Any, own: str) -> None:
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(120_000)
        self._own = (own, *OFF_THE_NET)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self._own):
            self.elsewhere.append(request.url)


@contextmanager
def served(searching: Any) -> Iterator[str]:
    """Serve the page, and give its address."""
    pytest.importorskip("gradio", reason="the page comes with the extra `app`")
    from fuse.app.web.page import launch

    blocks = launch(searching, prevent_thread_lock=True, quiet=True)
    yield blocks.local_url
    blocks.close()
