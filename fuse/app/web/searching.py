"""Searches of visitors: what a page asks for, and where each stands after every step.

Nothing here knows how it is shown. What is asked for becomes a command line, so that it is checked
as such, and the run is that of the command.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fuse.app import console
from fuse.app.build import build
from fuse.app.config import compose
from fuse.app.interrupt import StopRequest
from fuse.app.items import ALONE
from fuse.app.live import SearchView
from fuse.app.overrides import as_typed, prepared, quoted
from fuse.app.report.page import picture
from fuse.app.report.write import write_page
from fuse.app.run import CheckpointEvery, Job, Run, facts_of
from fuse.app.run_folder import CONFIG, PAGE, RunFolder, anchored
from fuse.app.terms import Models
from fuse.app.web.texts import checked_text
from fuse.errors import FuseError
from fuse.images import ReadingOptions, open_image
from fuse.types import Step

MAX_SECONDS = 120.0
"""Of one search."""
MAX_FILE_BYTES = 20_000_000
"""Of a picture or an embedding."""
PREVIEW_SIZE = 256
"""The longer side of a picture as it is shown, in pixels."""
MAX_PIXELS = 50_000_000
CAPTION, INVERT, ELICIT = GOALS = ("caption", "invert", "elicit")


@dataclass(frozen=True)
class Wanted:
    """What a visitor asks for.

    Args:
        goal: one of `GOALS`.
        file: the path of an uploaded picture, or of an embedding; None for none.
        text: the meaning that is sought, where there is no embedding; or the text to be said.
        fluency: weight of the language model's loss; of the prompt's own loss beside a label.
        match: weight of the picture's or the meaning's loss.
        seconds: after which the search ends.
    """

    goal: str
    method: str
    file: str | None = None
    text: str = ""
    strategy: str = "auto"
    fluency: float = 1.0
    match: float = 10.0
    seconds: float = 30.0
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Args:
        archive: the path of its run folder as one file, at the end.
        report: the page of the run, at the end.
    """

    view: SearchView
    steps: Sequence[tuple[int, float]]
    archive: str | None = None
    report: str | None = None


class Searching:
    """Makes searches, one after another; models are loaded once.

    Args:
        place: the folder in which all run folders are, while they are needed.
    """

    def __init__(self, place: Path | None = None) -> None:
        self.place = place or Path(tempfile.mkdtemp(prefix="fuse-page-"))
        self._models: Models = {}

    def search(self, wanted: Wanted, stop: StopRequest) -> Iterator[Progress]:
        """Yield where a search stands after every step, and what it leaves at the end.

        The files are there until the next value is asked for.

        Args:
            stop: ends the search after its step.

        Raises:
            FuseError: what is wanted is not to be had.
        """
        with tempfile.TemporaryDirectory(dir=self.place) as around:
            folder = RunFolder(Path(around) / "run", [])
            steps: list[Step] = []
            run, view = self._run(self.overrides(wanted), folder, steps)
            for _ in run.rounds(stop):
                yield Progress(view, _curve(steps))
            found, state = run.found.get(""), run.state("")
            if isinstance(found, Exception):
                raise found
            if found is None or state is None:
                raise FuseError("stopped before anything was found")
            write_page(folder, run.jobs[""].search, state)
            archive = shutil.make_archive(str(folder.path), "zip", folder.path)
            page = folder.path / PAGE
            report = page.read_text(encoding="utf-8") if page.is_file() else None
            yield Progress(view, _curve(steps), archive, report)

    def _run(
        self, overrides: Sequence[str], folder: RunFolder, steps: list[Step]
    ) -> tuple[Run, SearchView]:
        """Return the run of a command line, and its view; `steps` gets all that it makes."""
        console.quiet_libraries()
        began = time.perf_counter()
        whole = compose(overrides)
        (item,) = ALONE.each()
        config = item.configured(whole, folder)
        search = build(config, models=self._models)
        view = SearchView("", search.most_steps)

        def tell(step: Step) -> None:
            view(step)
            steps.append(step)

        typed = [as_typed(one) for one in prepared(overrides)]
        command = " ".join(["python find_prompt.py", *typed])
        facts = facts_of(config, search, command, time.perf_counter() - began)
        folder.write_json(CONFIG, anchored(whole))
        job = Job(replace(search, on_step=tell), folder, facts)
        return Run({"": job}, CheckpointEvery.parse(config["checkpoint_every"])), view

    def overrides(self, wanted: Wanted) -> list[str]:
        """Return the command line of what is wanted.

        Raises:
            FuseError: it is not to be had.
        """
        found = [f"method={wanted.method}", f"strategy={wanted.strategy}", f"seed={wanted.seed}"]
        found.append(f"time_limit={min(max(wanted.seconds, 1.0), MAX_SECONDS)}")
        if wanted.goal == ELICIT:
            label = checked_text(wanted.text, "text to be said")
            found += ["image=null", "secondary=[]", "stop_at_label=true"]
            return [*found, f"label={quoted(label)}", f"primary.perplexity_weight={wanted.fluency}"]
        found += [f"primary.weight={wanted.fluency}", f"secondary.demo_clip.weight={wanted.match}"]
        if wanted.goal == CAPTION:
            return [*found, f"image={quoted(_picture(wanted.file))}"]
        return [*found, "image=null", f"secondary.demo_clip.target_vector={self._vector(wanted)}"]

    def _vector(self, wanted: Wanted) -> str:
        """Return the embedding that is sought: that of the file, or the CLIP's of the text."""
        if wanted.file:
            return quoted(_uploaded(wanted.file, "embedding"))
        from fuse.app.inspection.named import load_model
        from fuse.models import EmbeddingModel

        text = checked_text(wanted.text, "meaning")
        model, _ = load_model("demo_clip", "clip", EmbeddingModel)
        numbers = ",".join(f"{value:.6f}" for value in model.embed_texts([text])[0].tolist())
        return f"[{numbers}]"


def _curve(steps: Sequence[Step]) -> list[tuple[int, float]]:
    return [(step.step, step.best_loss) for step in steps]


def _uploaded(path: str | None, what: str) -> str:
    """Return the path of a file that was given.

    Raises:
        FuseError: there is none, or it is too large.
    """
    if not path:
        raise FuseError(f"{what}: none was given; drop a file, or choose an example")
    if not Path(path).is_file():
        raise FuseError(f"{what}: it is not there any more; give it again")
    if Path(path).stat().st_size > MAX_FILE_BYTES:
        raise FuseError(f"{what}: it has more than {MAX_FILE_BYTES:,} bytes; give a smaller file")
    return path


def picture_of(path: str) -> str | None:
    """Return the data address of an uploaded picture, made small.

    Raises:
        FuseError: it is none, or too large.
    """
    return picture(_picture(path), PREVIEW_SIZE)


def _picture(path: str | None) -> str:
    """Return the path of an uploaded picture.

    Raises:
        FuseError: it is none, or too large.
    """
    found = _uploaded(path, "picture")
    open_image(found, "picture", ReadingOptions(max_pixels=MAX_PIXELS))
    return found
