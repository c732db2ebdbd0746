"""Files of results: in input order, valid at every moment, and never over what is not ours."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from fuse.app.formats import coco
from fuse.app.formats.done import Done
from fuse.app.formats.files import ResultFiles
from fuse.app.items import Item, Items
from fuse.app.run_folder import RunFolder, remove_half_written
from fuse.app.tally import Tally
from fuse.registry import FORMATS

TEXT = 'a house, "red"'


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, "PNG")
    return path


def leave(folder: Path, item: dict[str, Any], text: str = TEXT, **others: Any) -> None:
    """Write what a search leaves in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    terms = {"primary": {"loss": 1.5}, "clip": {"loss": 0.25}}
    report = {"status": "done", "prompt": text, "loss": 4.0, "terms": terms, "item": item}
    (folder / "result.json").write_text(json.dumps({**report, **others}))


def some(*names: str) -> Items:
    return Items(lambda: [Item(name) for name in names], len(names), names)


def files(folder: Path, items: Items, **config: Any) -> tuple[ResultFiles, list[str]]:
    problems: list[str] = []
    config = {"formats": list(FORMATS), "sidecar": False, **config}
    return ResultFiles(RunFolder(folder, problems), items, config), problems


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run over three pictures, the first of which was finished last; another is at work."""
    for name in ("b", "a", "c"):
        path = picture(tmp_path / "in" / f"{name}.png")
        leave(tmp_path / "run" / path.name, {"file_name": path.name}, image=str(path))
    leave(tmp_path / "run" / "d.png", {"file_name": "d.png"}, status="running", image="d.png")
    leave(tmp_path / "run" / "gone.png", {"file_name": "gone.png"}, image="gone.png")
    return tmp_path / "run"


NAMES = ("a.png", "b.png", "c.png", "d.png")


def test_every_format_holds_what_is_done_in_the_order_of_the_input(run: Path) -> None:
    writer, problems = files(run, some(*NAMES))
    for _ in range(2):  # the second time nothing changes
        writer.write()
        lines = (run / "metadata.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["file_name"] for row in rows] == ["a.png", "b.png", "c.png"]
        losses = {"loss": 4.0, "loss_primary": 1.5, "loss_clip": 0.25}
        assert rows[0] == {"file_name": "a.png", "text": TEXT, **losses}
        with (run / "results.csv").open(newline="") as file:
            assert [row["text"] for row in csv.DictReader(file)] == [TEXT] * 3
        captions = json.loads((run / "coco_results.json").read_text())
        assert captions[1] == {"image_id": "b.png", "caption": TEXT}
        assert not problems


def test_datasets_loads_the_folder_and_the_lines(run: Path, tmp_path: Path) -> None:
    files(run, some(*NAMES))[0].write()
    (run / "dataset" / "e.png").write_bytes((run / "dataset" / "a.png").read_bytes())  # in between
    cache = str(tmp_path / "cache")
    folder = datasets.load_dataset(
        "imagefolder", data_dir=str(run / "dataset"), split="train", cache_dir=cache
    )
    assert len(folder) == 3 and folder[2]["text"] == TEXT
    assert folder[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    lines = datasets.load_dataset(
        "json", data_files=str(run / "metadata.jsonl"), split="train", cache_dir=cache
    )
    assert lines["text"] == [TEXT] * 3


def test_ids_are_coco_s_where_all_names_have_one(tmp_path: Path) -> None:
    names = ["COCO_val2014_000000391895.jpg", "000000000042.jpg", "sub/7.png"]
    for number, name in enumerate(names):
        leave(tmp_path / str(number), {"file_name": name}, image=name)
    writer, _ = files(tmp_path, some("0", "1", "2"), formats=["coco"])
    writer.write()
    read = json.loads((tmp_path / coco.NAME).read_text())
    assert [entry["image_id"] for entry in read] == [391895, 42, 7]
    leave(tmp_path / "1", {"file_name": "7.jpg"}, image="7.jpg")
    writer.write()
    read = json.loads((tmp_path / coco.NAME).read_text())
    assert [entry["image_id"] for entry in read] == [names[0], "7.jpg", "sub/7.png"]


def test_a_sidecar_replaces_nothing_that_is_not_ours(run: Path) -> None:
    pictures = run.parent / "in"
    (pictures / "b.txt").write_text("mine")
    writer, problems = files(run, some(*NAMES), formats=[], sidecar=True)
    writer.write()
    writer.write()
    assert (pictures / "a.txt").read_text() == TEXT + "\n"
    assert (pictures / "b.txt").read_text() == "mine"
    assert len(problems) == 1 and "b.txt" in problems[0] and "sidecar=overwrite" in problems[0]
    leave(run / "a.png", {"file_name": "a.png"}, "better", image=str(pictures / "a.png"))
    (pictures / "c.txt").write_text("mended by hand")
    leave(run / "c.png", {"file_name": "c.png"}, "better", image=str(pictures / "c.png"))
    writer.write()
    assert (pictures / "a.txt").read_text() == "better\n"
    assert (pictures / "c.txt").read_text() == "mended by hand"
    files(run, some(*NAMES), formats=[], sidecar="overwrite")[0].write()
    assert (pictures / "b.txt").read_text() == TEXT + "\n"
    assert sorted(path.name for path in pictures.glob(".*")) == []


def test_pictures_that_would_share_a_sidecar_are_told(run: Path) -> None:
    pictures = run.parent / "in"
    other = picture(pictures / "a.jpg")
    leave(run / "a.jpg", {"file_name": "a.jpg"}, "another", image=str(other))
    writer, problems = files(run, some(*NAMES, "a.jpg"), formats=[], sidecar="overwrite")
    writer.write()
    writer.write()
    assert (pictures / "a.txt").read_text() == TEXT + "\n"
    assert len(problems) == 1 and "a.png, and a.jpg would have the same file" in problems[0]


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "caf\udce9.png", "two\nlines\t.png"])
def test_odd_names_are_in_every_file_and_beside_the_picture(tmp_path: Path, name: str) -> None:
    """The longest name that there is; bytes that are no Unicode; signs that no line holds."""
    path, run = picture(tmp_path / "in" / name), tmp_path / "run"
    leave(run / "odd", {"file_name": name}, image=str(path))
    writer, problems = files(run, some("odd"), sidecar=True)
    writer.write()
    assert problems == []
    assert path.with_suffix(".txt").read_text() == TEXT + "\n"
    shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    (row,) = datasets.load_dataset(
        "json",
        data_files=str(run / "metadata.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert row["file_name"] == shown
    with (run / "results.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["file_name"] == shown
    assert json.loads((run / "coco_results.json").read_bytes())[0]["image_id"] == shown


def test_a_row_is_unicode(tmp_path: Path) -> None:
    leave(tmp_path, {"target": "a\ud800b", "row": 3}, text="\udce9")
    done = Done.of(tmp_path, json.loads((tmp_path / "result.json").read_text()))
    assert done is not None
    assert (done.row["target"], done.row["text"], done.row["row"]) == ("a\\ud800b", "\\xe9", 3)


def test_what_cannot_be_written_is_told_once(run: Path) -> None:
    (run / "metadata.jsonl").mkdir()
    (run / "dataset").write_text("in the way")
    writer, problems = files(run, some(*NAMES))
    writer.write()
    writer.write()
    assert len(problems) == 2
    assert all("could not be written" in line for line in problems)
    assert (run / "results.csv").read_text().count("\n") == 4


def test_items_without_names_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        leave(tmp_path / f"{number:08d}", {"row": number})
    writer, _ = files(tmp_path, Items(lambda: []), formats=["jsonl", "coco"])
    writer.write()
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [9, 10, 100]
    assert json.loads((tmp_path / coco.NAME).read_text())[0]["image_id"] == 9


def test_the_tally_tells_the_rate_of_this_session_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    tally = Tally(10)
    for _ in range(4):
        tally.add({"status": "done"}, former=True)
    now = 60.0
    tally.add({"status": "done"})
    tally.add(None)
    assert tally.line() == "6 of 10, 2.0 a minute, 0:02:00 left, 1 failed"
    assert Tally(None).line() == "0 of ?, 0 failed"


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    kept = (".lock", ".lock.1", ".results", ".finished-0-of-2", "a.png/.hidden.png", "a.png/x.1")
    left = (".metadata.jsonl.123", "a.png/.result.json.9", "dataset/.a\nb.png.77")
    for name in (*kept, *left):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_half_written(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert files - {"a.png", "dataset"} == set(kept)
