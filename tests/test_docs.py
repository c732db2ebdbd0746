"""What the documentation says runs, and what it names is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Watched, browser
from command_line import find_prompt
from conftest import ROOT

import fuse
from fuse import registry

DOCS = ROOT / "docs"
BLOCKS = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_BLOCKS = [
    path
    for path in sorted(DOCS.rglob("*.md"))
    if path.name != "cluster.md" and BLOCKS.search(path.read_text())  # which needs one
]
NAMED = ("images", "fuse", "conf", "gradients", "scripts", "find_prompt.py", "README.md")
"""What commands and code of the documentation name."""


@pytest.mark.full
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda path: path.stem)
def test_all_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """Its commands and code, in their order."""
    for name in NAMED:
        (tmp_path / name).symlink_to(ROOT / name)
    code = ""
    for kind, text in BLOCKS.findall(page.read_text()):
        if kind == "python":
            code += text
            (tmp_path / "own_code.py").write_text(code)
            check([sys.executable, "own_code.py"], tmp_path)
            continue
        for line in text.splitlines():
            python, *words = shlex.split(line)
            assert python == "python", line
            if words[0] == "find_prompt.py":  # without a process of its own: it is quicker
                done = find_prompt(*words[1:], folder=tmp_path)
                assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
            else:
                check([sys.executable, *words], tmp_path)


def check(command: list[str], folder: Path) -> None:
    """Run a command as a person does."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-500:]}{done.stderr[-2000:]}"


@pytest.mark.full
def test_the_notebook_runs() -> None:
    client = pytest.importorskip("nbclient", reason="it comes with the extra `docs`")
    nbformat = pytest.importorskip("nbformat", reason="it comes with the extra `docs`")
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    client.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT}}).execute()
    texts = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("house" in text for text in texts)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    pytest.importorskip("mkdocs", reason="it comes with the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    check([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)], ROOT)
    return folder


@pytest.mark.full
def test_the_site_has_all_pages_and_its_formulas(site: Path) -> None:
    assert (site / "tutorial/index.html").is_file()
    formulas = (site / "adapter/index.html").read_text()
    assert "arithmatex" not in formulas and formulas.count('display="block"') >= 5


@pytest.mark.full
def test_the_site_asks_no_other_host(site: Path) -> None:
    pages = sorted(site.rglob("index.html"))
    assert len(pages) > 10
    with browser() as chromium:
        watched = Watched(chromium.new_context(offline=True), "file:")
        for page in pages:
            watched.page.goto(page.as_uri())
            for formula in watched.page.locator("math").all():
                assert formula.bounding_box()["height"] > 5, page
        assert not watched.elsewhere


def test_every_public_name_has_its_place_in_the_api() -> None:
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    listed = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    for table in re.findall(r"<!-- registry: (\w+) -->", text):
        listed |= set(getattr(registry, table).modules())
    assert listed == set(fuse.__all__)


def test_every_link_leads_to_a_file() -> None:
    for page in (ROOT / "llms.txt", *ROOT.glob("*.md"), *DOCS.rglob("*.md")):
        text = page.read_text()
        links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
        for link in links:
            path = link.partition("#")[0]
            if path and not link.startswith(("https://", "http://", "mailto:")):
                assert (page.parent / path).exists(), f"{page}: {link}"


def test_the_readme_opens_with_a_picture_of_a_run() -> None:
    assert "(docs/images/run.svg)" in _read("README.md").split("\n## ")[0]


def test_contributing_knows_every_kind_of_part() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tables = [name for name, own in vars(registry).items() if isinstance(own, registry.Registry)]
    for name in tables:
        assert f"`{name}`" in text, f"CONTRIBUTING.md does not tell how to add to {name}"
    for page in ("CONTRIBUTING.md", "llms.txt", "docs/howto/method.md"):
        named = re.findall(r"(?<=[`(])[\w./-]+/[\w.-]+\.(?:py|md|yaml)(?=[`)])", _read(page))
        assert named
        for path in named:
            below = (ROOT / page).parent / path
            assert (ROOT / path).is_file() or below.is_file() or path in NOT_YET, path


NOT_YET = ("fuse/search/methods/shuffle.py", "conf/refine/shuffle.yaml")
"""What a reader is told to write."""


def _read(name: str) -> str:
    return (ROOT / name).read_text()
