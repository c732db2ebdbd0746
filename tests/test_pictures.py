"""What `image` stands for: a picture, a folder, a list; nothing is left out without a word."""

from __future__ import annotations

import os
import threading
import unicodedata
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fuse
from fuse.app.items import ALONE
from fuse.app.pictures import Pictures, find_pictures, picture_items
from fuse.app.run_folder import RunFolder


def picture(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, kind)
    return path


def reasons(found: Pictures) -> dict[str, str]:
    return {one.path.name: one.reason for one in found.skipped}


def test_one_path_is_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that leads nowhere: whoever reads it says what is wrong."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("self").symlink_to("self")
    for value in ("a.png", "pipe", "self", "x" * 300, 2024, "/dev/zero"):
        assert find_pictures(value) == Pictures({"": Path(str(value))})


@pytest.mark.parametrize("value", [None, "", "  ", [], ["a.png", ""], [None], "a\0b"])
def test_what_is_no_path_is_refused(value: Any) -> None:
    with pytest.raises(fuse.FuseError, match=r"^image=.*expected") as caught:
        find_pictures(value)
    assert str(caught.value).isprintable()


def test_a_folder_is_read_by_content_and_by_what_suffixes_promise(tmp_path: Path) -> None:
    for name in ("b.png", "A.JPG", "photo.jpe", "no_suffix", "letter.txt", ".hidden"):
        picture(tmp_path / name, "GIF")
    for name in ("broken.png", "photo.heic", "photo.jxl", "empty.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "nowhere.png").symlink_to("not_there")
    os.mkfifo(tmp_path / "pipe.png")
    found = find_pictures(str(tmp_path))
    assert not found.skipped and found.note is None
    assert list(found.paths.values()) == sorted(tmp_path.iterdir())
    assert list(found.paths)[:3] == ["hidden", "A.JPG", "b.png"]


def test_the_rest_of_a_folder_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "folder.png" / "b.png")
    (tmp_path / "notes\x1b[31m.txt").write_text("bread, milk")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    (tmp_path / "nothing").write_text("")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    os.mkfifo(tmp_path / "pipe")
    found = find_pictures(str(tmp_path))
    assert list(found.paths) == ["a.png"]
    assert set(reasons(found)) == {path.name for path in tmp_path.iterdir()} - {"a.png"}
    for name, reason in (
        ("folder.png", "nested=true"),
        ("notes\x1b[31m.txt", "not a picture"),
        ("drawing.eps", "EPS"),
        ("nothing", "empty"),
        ("pipe", "not a file"),
    ):
        assert reason in reasons(found)[name]
    assert found.note is not None and found.note.startswith("6 files skipped: ._a.png (")
    assert found.note.endswith(" and 1 more") and found.note.isprintable()


def test_folders_in_folders_are_looked_through_on_request(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "2024" / "a.png")
    picture(tmp_path / "2024" / "may" / "b.png")
    (tmp_path / "2024" / "up").symlink_to(tmp_path)
    found = find_pictures(str(tmp_path), nested=True)
    assert list(found.paths) == ["2024_a.png", "2024_may_b.png", "a.png"]
    assert "link to a folder" in reasons(found)["up"]
    assert list(find_pictures(str(tmp_path)).paths) == ["a.png"]


def test_folders_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    closed = tmp_path / "closed"
    closed.mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = find_pictures(str(tmp_path), nested=True)
    assert list(found.paths) == ["a.png"]
    assert "Permission denied" in reasons(found)["closed"]
    with pytest.raises(fuse.FuseError, match=r"^image=.*Permission denied"):
        find_pictures(str(closed))


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(fuse.FuseError, match="empty folder"):
        find_pictures(str(tmp_path))
    (tmp_path / "notes.txt").write_text("bread, milk")
    with pytest.raises(fuse.FuseError, match=r"without pictures \(notes.txt \(not a picture"):
        find_pictures(str(tmp_path))


def test_a_list_holds_pictures_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "2024/a.png", "2024/b.png"):
        picture(tmp_path / name)
    found = find_pictures(["a.png", 2024, "missing.png", "a.png"])
    assert {name: str(path) for name, path in found.paths.items()} == {
        "a.png": "a.png",
        "a_2.png": "2024/a.png",
        "b.png": "2024/b.png",
        "missing.png": "missing.png",
        "a_3.png": "a.png",
    }
    assert list(find_pictures(2024).paths) == ["a.png", "b.png"]


def test_a_pattern_stands_for_what_it_finds(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png", "[d].png"):
        picture(tmp_path / name)
    found = find_pictures(f"{tmp_path}/**/?.png")
    assert list(found.paths) == ["a.png", "b.png", "c.png"]
    for one in (f"{tmp_path}/[d].png", f"{tmp_path}/?.gif"):
        assert find_pictures(one) == Pictures({"": Path(one)})


class _Server(BaseHTTPRequestHandler):
    """Sends a picture, too much, or an error."""

    def do_GET(self) -> None:
        self.send_response(404 if "missing" in self.path else 200)
        self.end_headers()
        self.wfile.write(self.server.picture)  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        return


def test_a_picture_of_an_address_is_fetched_when_it_is_opened(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        server.picture = picture(tmp_path / "a.png").read_bytes()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        assert picture_items(f"{address}a.png") is ALONE
        assert fuse.open_image(f"{address}a.png").size == (4, 4)
        with pytest.raises(fuse.FuseError, match="more than max_bytes=10"):
            fuse.open_image(f"{address}a.png", options=fuse.ReadingOptions(max_bytes=10))
        with pytest.raises(fuse.FuseError, match=r"^image=http.*could not be fetched \(Not Found"):
            fuse.open_image(f"{address}missing.png")
        server.shutdown()
    with pytest.raises(fuse.FuseError, match="could not be fetched"):
        fuse.open_image(f"{address}a.png")
    with pytest.raises(fuse.FuseError, match="give it alone"):
        find_pictures([f"{address}a.png"])


def test_names_of_results_are_safe_and_differ(tmp_path: Path) -> None:
    names = ["result.json", "CONFIG.JSON", "a.png", "A.png", "new\nline\x1b.png", 'a:b*?"<>|.png']
    names += ["é.png", unicodedata.normalize("NFD", "é.png"), " .png", "...", "写真.png"]
    names += ["写" * 80 + ".png", "x" * 250, "x" * 249 + "y", "\udcff.png"]
    paths = [picture(tmp_path / str(i) / name) for i, name in enumerate(names)]
    found = find_pictures([str(path) for path in paths])
    assert list(found.paths.values()) == paths
    folded = {unicodedata.normalize("NFC", name).casefold() for name in found.paths}
    assert len(folded) == len(paths)
    assert not folded & {"result.json", "config.json", "trace.jsonl"}
    for name in found.paths:
        assert name.isprintable() and not set(name) & set('/\\:*?"<>|')
        assert len(name.encode()) < 200 and name == name.strip(" .")
    assert "a.png" in found.paths and "写真.png" in found.paths


def test_each_picture_is_looked_at_wherever_the_list_was(tmp_path: Path) -> None:
    first, second = str(picture(tmp_path / "a.png")), str(picture(tmp_path / "b.png"))
    value = [first, second]
    secondaries = {"own": {"image": "other.png"}, "same": {"image": value}}
    (group,) = picture_items(value).groups(2)
    assert [item.name for item in group] == ["a.png", "b.png"]
    config = {"image": value, "secondary": secondaries}
    assert group[1].configured(config, RunFolder(tmp_path, [])) == {
        "image": second,
        "secondary": {"own": {"image": "other.png"}, "same": {"image": second}},
        "item": {"file_name": second},
    }
    for one in (first, None):
        assert picture_items(one) is ALONE


def test_a_picture_of_a_folder_is_named_within_it(tmp_path: Path) -> None:
    picture(tmp_path / "2024" / "a.png")
    items = picture_items(str(tmp_path), nested=True)
    (item,) = items.each()
    assert item.name == "2024_a.png" and item.row == {"file_name": "2024/a.png"}
    assert items.in_order(["other", "2024_a.png"]) == ["2024_a.png"]
