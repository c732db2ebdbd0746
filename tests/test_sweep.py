"""Sweeps tell of every job; several processes share a run, and their results are those of one."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from itertools import chain
from pathlib import Path

import pytest
from command_line import OwnProcess, find_prompt
from conftest import ROOT

from fuse.app.interrupt import StopRequest
from fuse.app.overrides import encoded
from fuse.app.session import Session, session_of_worker
from fuse.app.shard import Shard
from fuse.app.sweep import JobOutcome, columns, named_folder, readable

QUICK = ("steps=1", "secondary=[]", "image=null")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_with_a_table_that_tells_of_failed_jobs(tmp_path: Path) -> None:
    sweep = ["-m", "seed=0,1", "init=a,Zebra%", "metric=primary", "constraints.block=[zebra]"]
    done = find_prompt(*sweep, *QUICK, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 2
    rows = table(tmp_path)
    assert [row["exit_code"] for row in rows] == ["0", "2", "0", "2"]
    assert [row["seed"] for row in rows] == ["0", "0", "1", "1"]
    assert rows[1]["init"] == "Zebra%" and "init='Zebra%'" in rows[1]["failure"]
    assert float(rows[0]["primary"]) > 0 and rows[0]["results"] == "1" and rows[0]["text"]
    assert rows[1]["primary"] == "" and "steps" not in rows[0]
    assert "exit_code" in done.stdout and "Zebra%" in done.stdout
    assert done.stderr.count("init='Zebra%'") == 1  # told once


def test_a_metric_that_is_no_term_is_refused(tmp_path: Path) -> None:
    done = find_prompt("-m", "metric=fit", *QUICK, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 2 and "metric=fit: " in done.stderr
    assert "expected one of loss, primary" in done.stderr.replace("did you mean", "")


def test_overrides_are_shown_as_they_were_typed() -> None:
    typed = readable(["++steps=1", f"++init={encoded('a, % b')}", "method=gcg"])
    assert typed == {"steps": "1", "init": "a, % b", "method": "gcg"}
    jobs = [JobOutcome(i, {"a": "1", "b": str(i)}, 0, [], 0.0) for i in (0, 1)]
    assert columns(jobs) == ["b"]
    assert named_folder(["-m", "seed=1"]) is None
    assert named_folder(["hydra.sweep.dir=a", f"hydra.sweep.dir={encoded('b c')}"]) == Path("b c")
    assert named_folder(["hydra.sweep.dir='b c'"]) == Path("b c")


def test_a_session_is_that_of_the_process_it_comes_to() -> None:
    """So models are loaded once in each worker of a launcher."""
    session = Session(StopRequest())
    try:
        there = pickle.loads(pickle.dumps(session))
        assert there is session_of_worker() and there is pickle.loads(pickle.dumps(session))
    finally:
        session_of_worker().stop.__exit__()
        session_of_worker.cache_clear()


@pytest.mark.full
def test_workers_of_joblib_find_the_same_as_one_process(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="of the extra `sweep`")
    sweep = ["-m", "seed=0,1,2", *QUICK, "method=random"]
    for name, more in (("one", []), ("two", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])):
        done = OwnProcess(*sweep, *more, f"hydra.sweep.dir={tmp_path / name}").join()
        assert done.returncode == 0, done.stderr
    assert table(tmp_path / "one") == table(tmp_path / "two")


def test_groups_are_shared_out_whole() -> None:
    groups = [[0, 1], [2, 3], [4, 5], [6]]
    for num in (1, 2, 3, 5):
        shards = [Shard(rank, num) for rank in range(num)]
        own = [list(shard.own(groups)) for shard in shards]
        assert sorted(chain.from_iterable(own)) == groups
        for shard, mine in zip(shards, own, strict=True):
            assert shard.own_number(7, 2) == sum(map(len, mine))


def test_processes_share_a_run_and_a_lost_share_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("boat.png", "cat.png", "house.png"):
        shutil.copy(ROOT / "images" / name, tmp_path / "pictures")
    options = [f"image={tmp_path}/pictures", "steps=1", "formats=[jsonl,coco]"]

    def run(name: str, rank: int = 0, num: int = 1) -> str:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(num))
        done = find_prompt(*options, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("whole")
    whole = (tmp_path / "whole/metadata.jsonl").read_text()
    assert "cat.png" not in run("two", 0, 2)
    rows = [json.loads(line) for line in (tmp_path / "two/metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["boat.png", "house.png"]
    run("two", 1, 2)
    assert (tmp_path / "two/metadata.jsonl").read_text() == whole
    run("lost", 1, 2)  # the other one was killed
    assert not (tmp_path / "lost/metadata.jsonl").exists()
    assert "cat.png: done already" in run("lost")
    assert (tmp_path / "lost/metadata.jsonl").read_text() == whole
