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
from fuse.app.report.write import write_page
from fuse.app.run import CheckpointEvery, Job, Run, facts_of
from fuse.app.run_folder import CONFIG, PAGE, RunFolder, anchored, from_inside
from fuse.app.terms import Models
from fuse.app.web.files import checked_picture, kept, uploaded
from fuse.app.web.texts import checked_text
from fuse.types import Step

MAX_SECONDS = 120.0
"""Of one search."""
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
            stop: ends the search after its step; before the first one, nothing is left.

        Raises:
            FuseError: what is wanted is not to be had.
        """
        with tempfile.TemporaryDirectory(dir=self.place) as around:
            folder = RunFolder(Path(around) / "run", [])
            steps: list[Step] = []
            if wanted.file:
                wanted = replace(wanted, file=kept(wanted.file, folder.path))
            overrides = self.overrides(wanted)
            run, view = self._run(overrides, folder, steps)
            for _ in run.rounds(stop):
                yield Progress(view, _curve(steps))
            found, state = run.found.get(""), run.state("")
            if isinstance(found, Exception):
                raise found
            if found is None or state is None:  # stopped before anything was found
                return
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

        given = [from_inside(one, folder.path) for one in prepared(overrides)]
        command = " ".join(["python find_prompt.py", *map(as_typed, given)])
        facts = facts_of(config, search, command, time.perf_counter() - began)
        facts["image"] = from_inside(facts["image"], folder.path)
        folder.write_json(CONFIG, from_inside(anchored(whole), folder.path))
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
            return [*found, f"image={quoted(checked_picture(wanted.file))}"]
        return [*found, "image=null", f"secondary.demo_clip.target_vector={self._vector(wanted)}"]

    def _vector(self, wanted: Wanted) -> str:
        """Return the embedding that is sought: that of the file, or the CLIP's of the text."""
        if wanted.file:
            return quoted(uploaded(wanted.file, "embedding"))
        from fuse.app.inspection.named import load_model
        from fuse.models import EmbeddingModel

        text = checked_text(wanted.text, "meaning")
        model, _ = load_model("demo_clip", "clip", EmbeddingModel)
        numbers = ",".join(f"{value:.6f}" for value in model.embed_texts([text])[0].tolist())
        return f"[{numbers}]"


def _curve(steps: Sequence[Step]) -> list[tuple[int, float]]:
    return [(step.step, step.best_loss) for step in steps]
