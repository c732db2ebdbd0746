"""What a run goes through: texts, vectors and rows of data sets, read one after the other."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import find_prompt
from PIL import Image
from safetensors.torch import save_file

import fuse
from fuse.app.items import ALONE, Item
from fuse.app.run_folder import RunFolder
from fuse.app.sources import items_of
from fuse.app.vectors import open_vectors, read_vector

CONFIG: dict[str, Any] = {
    **dict.fromkeys(("data", "split", "column", "targets", "target_vector", "target", "init")),
    "image": "house.png",
    "nested": False,
    "primary": {},
    "method": {"name": "gcg"},
}


def config(**given: Any) -> dict[str, Any]:
    whole = {**CONFIG, **given}
    entry = {name: whole[name] for name in ("image", "target", "target_vector")}
    return {**whole, "secondary": {"one": entry}}


def items(**given: Any) -> list[Item]:
    found = items_of(config(**given))
    several = list(found.each())
    assert found.num in (len(several), None)
    return several


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_lines_of_a_file_are_targets(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\ufeffa house\n\n  two cats \n", encoding="utf-8")
    first, second = items(targets=str(path))
    assert first == Item("00000000", {"target": "a house"}, {"row": 0, "target": "a house"})
    assert second.row == {"row": 2, "target": "two cats"}
    one = second.configured(config(targets=str(path)), RunFolder(tmp_path, []))
    assert one["target"] == one["secondary"]["one"]["target"] == "two cats"


def test_columns_of_files_are_targets(tmp_path: Path) -> None:
    texts = ["a house", "a boat"]
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "caption": t}) + "\n" for i, t in enumerate(texts))
    )
    both = table(tmp_path / "t.parquet", first=["x", "y"], second=texts)
    for given in ({"targets": str(path)}, {"targets": both, "column": "second"}):
        assert [item.values["target"] for item in items(**given)] == texts
    with pytest.raises(fuse.FuseError, match=r"^column=null: targets=.*first \(text\), second"):
        items(targets=both)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_each_row_of_vectors_is_an_item(tmp_path: Path, kind: str) -> None:
    rows = torch.randn(5, 3)
    path = tmp_path / f"vectors.{kind}"
    if kind == "npy":
        numpy.save(path, rows.numpy())
    elif kind == "safetensors":
        save_file({"any": rows}, path)
    else:
        table(path, id=list(range(5)), embedding=rows.tolist())
    found = items(target_vector=str(path))
    assert [item.row for item in found] == [{"row": i} for i in range(5)]
    torch.testing.assert_close(torch.tensor([i.values["target_vector"] for i in found]), rows)
    with pytest.raises(fuse.FuseError, match="holds 5 rows, expected one"):
        read_vector(str(path))


def test_a_file_of_one_row_is_one_search(tmp_path: Path) -> None:
    numpy.save(tmp_path / "one.npy", numpy.ones(3))
    value = str(tmp_path / "one.npy")
    assert items_of(config(target_vector=value)) is ALONE
    torch.testing.assert_close(read_vector(value), torch.full((3,), 3**-0.5))


def test_pickled_and_odd_vectors_are_refused(tmp_path: Path) -> None:
    numpy.save(tmp_path / "objects.npy", numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    numpy.save(tmp_path / "cube.npy", numpy.ones((2, 2, 2)))
    numpy.save(tmp_path / "words.npy", numpy.array(["a"]))
    table(tmp_path / "none.parquet", text=["a"])
    table(tmp_path / "two.parquet", a=[[1.0]], b=[[1.0]])
    (tmp_path / "x.pkl").write_bytes(b"")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(fuse.FuseError, match=r"^target_vector=.*could not be read"):
            open_vectors(str(path))
    assert open_vectors(str(tmp_path / "two.parquet"), "b").num == 1


def test_rows_of_a_parquet_file_are_pictures(tmp_path: Path) -> None:
    pictures = [{"bytes": png(), "path": "a.jpg"}, {"bytes": png("blue"), "path": None}]
    features = {
        "info": {
            "features": {"photo": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
        }
    }
    made = pa.table({"photo": pictures, "text": ["a", "b"]})
    made = made.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(made, tmp_path / "p.parquet")
    first, second = items(data=str(tmp_path / "p.parquet"))
    assert first.row == {"file_name": "00000000.jpg", "row": 0}
    assert second.row["file_name"] == "00000001.png"
    whole = config(data=str(tmp_path / "p.parquet"))
    own = RunFolder(tmp_path / "run" / second.name, [])
    path = Path(second.configured(whole, own)["secondary"]["one"]["image"])
    assert fuse.open_image(path).getpixel((0, 0)) == (0, 0, 255)
    texts = items(data=str(tmp_path / "p.parquet"), column="text")
    assert [item.values for item in texts] == [{"target": "a"}, {"target": "b"}]


def test_rows_of_a_webdataset_and_of_an_image_folder_are_pictures(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "folder" / part).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            (tmp_path / "folder" / part / name).write_bytes(png())
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
    found = items(data=str(tmp_path / "folder"), split="test")
    assert [item.row["file_name"] for item in found] == ["test/a.png", "test/b.png"]
    assert fuse.open_image(found[0].values["image"]).size == (4, 4)
    found = items(data=str(tmp_path / "shard-*.tar"))
    assert [item.content for item in found] == [png()] * 2
    with pytest.raises(fuse.FuseError, match=r"^split=no: data=.*expected one of"):
        items(data=str(tmp_path / "folder"), split="no")


def test_files_of_a_folder_that_are_no_rows_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "no suffix", ".hidden.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty.gif").touch()
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "round").symlink_to(".")
    note = items_of(config(data=str(tmp_path))).note
    assert note is not None and note.startswith("4 files skipped: ")
    for name, reason in {
        ".hidden.png": "begins with",
        "gone.png": "a link to nowhere",
        "no suffix": "no suffix of a picture",
        "notes.md": "not a picture",
    }.items():
        assert f"{name} (" in note
        assert reason in note.partition(f"{name} (")[2]
    assert "a.png" not in note


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "data.pkl").write_bytes(b"")
    for given, reason in (
        ({"data": "empty"}, "a folder without pictures"),
        ({"data": "data.pkl"}, "expected a file that ends with"),
        ({"data": "bad.parquet"}, "could not be read"),
        ({"targets": "blank.txt"}, "holds nothing"),
        ({"targets": "latin.txt"}, "no UTF-8"),
        ({"targets": "missing.txt"}, "No such file"),
        ({"target_vector": "missing.npy"}, "could not be read"),
        ({"targets": "blank.txt", "data": "empty"}, "give one of them"),
    ):
        paths = {name: str(tmp_path / value) for name, value in given.items()}
        with pytest.raises(fuse.FuseError, match=reason) as caught:
            items(**paths)
        assert str(caught.value).isprintable()


def test_texts_that_no_model_reads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\n")
    whole = {**config(targets=str(tmp_path / "t.txt")), "secondary": {"clip": {"image": "x"}}}
    with pytest.raises(fuse.FuseError, match="no model of this run reads target"):
        items_of(whole)


def test_the_hub_is_asked_only_where_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse.hub.why_unreachable", lambda: "no network")
    with pytest.raises(fuse.FuseError, match=r"^data=some/set: .*\(no network\); give a local one"):
        items(data="some/set")


def test_vectors_are_inverted_without_their_texts(tmp_path: Path, clip: fuse.CLIP) -> None:
    vectors = clip.embed_texts(["a red house", "a blue boat"]).float()
    value = table(tmp_path / "v.parquet", id=["a", "b"], vector=vectors.tolist())
    given = [f"target_vector={value}", "image=null", "steps=3"]
    done = find_prompt(*given, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metadata.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["row"] for row in found] == [0, 1] and found[0]["text"] != found[1]["text"]
    for row, vector in zip(found, vectors, strict=True):
        own = torch.cosine_similarity(clip.embed_texts([row["text"]]).float(), vector[None])
        assert row["loss_demo_clip"] == pytest.approx(1 - float(own), abs=1e-4)


def test_pictures_of_a_shard_become_a_data_set(tmp_path: Path) -> None:
    """One that is damaged costs no other, and is named."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in (("1.png", png()), ("2.png", b"damaged"), ("3.png", png("blue"))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    given = [f"data={tmp_path}/shard.tar", "steps=1", "formats=[imagefolder]", "sidecar=true"]
    done = find_prompt(*given, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "00000001.png: not a picture" in done.stderr
    assert "3 of ?, " in done.stderr and ", 1 failed" in done.stderr
    made = tmp_path / "run" / "dataset"
    found = datasets.load_dataset("imagefolder", data_dir=str(made), cache_dir=str(tmp_path / "c"))
    assert [row["image"].getpixel((0, 0)) for row in found["train"]] == [(255, 0, 0), (0, 0, 255)]
    assert not list(tmp_path.rglob("*.txt"))
