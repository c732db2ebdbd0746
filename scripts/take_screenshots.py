"""Take pictures of the page and of a report in a browser: python scripts/take_screenshots.py

Writes into docs/images. Needs Chromium, and pip install -e '.[browser]'.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import browser_path  # noqa: E402

from fuse.app import console  # noqa: E402
from fuse.app.web.page import launch  # noqa: E402

WIDTHS = {1280: 900, 400: 800}
"""Of the window, and its height."""
COLOURS = 160


def taken(page: Any, folder: Path, name: str) -> None:
    """Take pictures of all of a page, for each width, in few colours."""
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(500)  # plots are drawn anew
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": width, "height": height})  # a frame is drawn where seen
        page.wait_for_timeout(500)
        image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        path = folder / f"{name}-{width}.png"
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def search(page: Any) -> bytes:
    """Caption a picture on the page, and return the run folder that it gives."""
    page.locator("input[type=file]").first.set_input_files(str(ROOT / "images/house.png"))
    page.get_by_alt_text("your picture").wait_for()
    page.locator("button:visible", has_text="Search").click()
    page.locator("iframe.report:visible").wait_for(timeout=120_000)
    with page.expect_download() as coming:
        page.locator("a[download$='.zip']:visible").first.click()
    return Path(coming.value.path()).read_bytes()


def main() -> None:
    """Drive the browser through both colour schemes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    console.quiet_libraries()
    blocks = launch(prevent_thread_lock=True, quiet=True)
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as own:
        chromium = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = chromium.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
            page.goto(blocks.local_url)
            content = search(page)
            taken(page, folder, f"page-{scheme}")
            zipfile.ZipFile(io.BytesIO(content)).extract("report.html", own)
            page.goto(f"file://{own}/report.html")
            taken(page, folder, f"report-{scheme}")
        chromium.close()
    blocks.close()


if __name__ == "__main__":
    main()
