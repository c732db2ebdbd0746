"""What is seen of a run while it is at work, and who else is told of its steps."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import find_prompt
from rich.console import Console

import fuse
from fuse.app import live, trackers
from fuse.app.config import compose
from fuse.app.tally import Tally
from fuse.app.trackers import Tracked
from fuse.errors import FuseError
from fuse.types import Step, TermResult


def step(number: int, prompt: str, loss: float) -> Step:
    terms = {"primary": loss / 2, "clip": loss / 20}
    return Step(number, "gcg", loss, loss, prompt, (), terms, 100 * number, 0.5 * number)


def rendered(view: live.SearchView) -> str:
    """Return what a terminal gets."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="standard")
    console.print(live.together([view]))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_search_is_shown_with_its_losses_and_what_has_changed() -> None:
    view = live.SearchView("boat.png", 20)
    rendered(view)  # before the first step, too
    view(step(1, "a red house", 4.0))
    view(step(2, "a red boat", 2.0))
    view(step(3, "a red car", 3.0))
    text = rendered(view)
    assert "boat.png" in text and "step 3/20" in text
    assert "primary 1.000, clip 0.100" in text and "200 candidates/s" in text
    assert "a red\x1b[1;32m boat\x1b[0m" in text
    assert view.line.endswith("candidates/s: a red boat")


def test_how_far_the_whole_run_is_stands_below_its_searches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(live, "errors", console)
    tally = Tally(9)
    tally.add({"status": "failed"})
    with live.shown({"boat.png": 2, "cat.png": 2}, line=tally.line) as views:
        for name, view in views.items():
            view(step(1, f"a {name}", 1.0))
        ends = time.monotonic() + 20
        while "1 failed" not in console.file.getvalue():  # type: ignore[attr-defined]
            assert time.monotonic() < ends
            time.sleep(0.05)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 of 9" in shown
    end = shown[shown.rindex("1 failed") :]  # it is gone from what stays there
    assert "boat.png" in end and "cat.png" in end


def test_codes_that_a_terminal_obeys_are_not_passed_on() -> None:
    view = live.SearchView("\x1b[2Jname", 2)
    view(step(1, "\x1b[31mred [bold]house", 1.0))
    assert "\x1b[2J" not in rendered(view) and "\x1b[31m" not in rendered(view)
    assert "[bold]house" in rendered(view)


def test_elsewhere_than_on_a_terminal_a_plain_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with live.shown({"": 9}) as views:
        for number in range(1, 9):
            now[0] += 2.0
            views[""](step(number, f"prompt {number}", 9.0 - number))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 3/9", "step 6/9", "step 8/9"]


def test_quiet_shows_the_result_alone(tmp_path: Path) -> None:
    done = find_prompt("steps=1", "secondary=[]", "quiet=true", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 2


class Kept:
    """A tracker that keeps what it is told."""

    made: list[Kept] = []  # noqa: RUF012

    def __init__(self, value: Any, folder: Path, name: str, config: Any) -> None:
        self.value, self.told, self.closed = value, [], False
        Kept.made.append(self)

    def log(self, step: Step, numbers: Any) -> None:
        if step.step == 3:
            raise OSError("no room")
        self.told.append((step.step, dict(numbers)))

    def close(self) -> None:
        self.closed = True


def test_a_tracker_is_told_of_every_step_and_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Kept)
    monkeypatch.setattr(Kept, "made", [])
    done = find_prompt("steps=2", "secondary=[]", "wandb=mine", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (kept,) = Kept.made
    assert kept.value == "mine" and kept.closed
    assert [number for number, _ in kept.told] == [1, 2]
    assert {"loss", "best_loss", "terms/primary", "candidates_per_second"} == set(kept.told[0][1])
    config = compose(["wandb=mine"])
    tracked = Tracked(config, tmp_path)
    for number in (1, 3, 4):
        tracked(step(number, "a", 1.0))
    assert [number for number, _ in Kept.made[1].told] == [1]


def test_a_tracker_that_is_not_installed_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(trackers, "import_module", absent)
    for key in trackers.TRACKERS:
        config = compose([f"{key}=true" if key == "tensorboard" else f"{key}=mine"])
        with pytest.raises(FuseError, match=rf"{key}=.*: needs the package {key}; pip install"):
            Tracked(config, tmp_path)


def test_tensorboard_has_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="it comes with the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = Tracked(compose(["tensorboard=true"]), tmp_path)
    for number in (1, 2):
        tracked(step(number, "a", 3.0 - number))
    tracked.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == [2.0, 1.0]
    assert [event.step for event in events.Scalars("terms/clip")] == [1, 2]


def test_weights_and_biases_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="it comes with the extra `wandb`")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracked = Tracked(compose(["wandb=mine"]), tmp_path)
    tracked(step(1, "a", 2.0))
    tracked.close()
    (file,) = tmp_path.rglob("*.wandb")
    assert "offline-run" in file.parent.name and file.stat().st_size > 0


def test_trackio_has_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio", reason="it comes with the extra `trackio`")
    tracked = Tracked(compose(["trackio=mine"]), tmp_path)
    tracked(step(1, "a", 2.0))
    tracked.close()
    assert list(tmp_path.rglob("*.db"))


def test_a_notebook_shows_a_result_with_all_text_escaped() -> None:
    term = TermResult(1.5, 2.0, "<b>read</b>")
    result = fuse.Result("<script>", (), 3.0, 9.0, {"a&b": term}, 4, 1000, 2.0)
    html = result._repr_html_()
    assert "<strong>&lt;script&gt;</strong>" in html and "&lt;b&gt;read" in html
    assert "a&amp;b" in html and "1.5000" in html and "1,000" in html
    assert "<script>" not in html and "<b>" not in html
