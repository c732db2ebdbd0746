"""Searches of visitors: what a page asks for, and where each stands after every step.

Nothing here knows how it is shown.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from fuse.app.build import build, weights_of
from fuse.app.config import compose
from fuse.app.live import SearchView
from fuse.app.overrides import as_typed, prepared
from fuse.app.report.write import write_page
from fuse.app.run import Job, report
from fuse.app.run_folder import CONFIG, RESULT, RunFolder
from fuse.app.terms import Models
from fuse.errors import FuseError
from fuse.images import open_image
from fuse.search.search import Search
from fuse.search.state import SearchState

MAX_SECONDS = 120.0
"""Of one search."""
MAX_PICTURE_BYTES = 20_000_000
MAX_TEXT = 500
"""Characters that a visitor may type into one field."""
GOALS = ("caption a picture", "find text of a meaning", "make the model say a text")


@dataclass(frozen=True)
class Wanted:
    """What a visitor asks for.

    Args:
        goal: one of `GOALS`.
        picture: the path of a picture that was uploaded; None for none.
        text: the meaning that is sought, or the text that is to be said.
        weight: of the picture's or the meaning's loss.
        seconds: after which the search ends.
    """

    goal: str
    picture: str | None
    text: str
    method: str
    strategy: str
    weight: float
    seconds: float
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Args:
        archive: its run folder as a file, at the end.
    """

    view: SearchView
    steps: list[tuple[int, float]]
    archive: str | None = None


class Searching:
    """Makes searches, one after another; models are loaded once.

    Args:
        place: the folder in which all run folders are.
    """

    def __init__(self, place: Path | None = None) -> None:
        self.place = place or Path(tempfile.mkdtemp(prefix="fuse-page-"))
        self._models: Models = {}

    def search(self, wanted: Wanted, stop: Event) -> Iterator[Progress]:
        """Yield where a search stands after every step, and its run folder at the end.

        Args:
            stop: ends the search after its step.

        Raises:
            FuseError: what is wanted is not to be had.
        """
        folder = RunFolder(Path(tempfile.mkdtemp(dir=self.place)) / "run", [])
        overrides = self.overrides(wanted)
        config = compose(overrides)
        search = build(config, models=self._models)
        view, steps = SearchView("", search.most_steps), []
        state = search.start()
        while not state.ended and not stop.is_set():
            before = state.step
            state = search.accept(state, search.evaluate(state, search.propose(state)))
            if state.last is not None and state.step > before:
                folder.append(state.last)
                view(state.last)
                steps.append((state.step, state.last.best_loss))
                yield Progress(view, list(steps))
        archive = self._finished(search, state, config, overrides, folder)
        yield Progress(view, steps, archive)

    def _finished(
        self,
        search: Search,
        state: SearchState,
        config: dict[str, Any],
        overrides: Sequence[str],
        folder: RunFolder,
    ) -> str:
        """Write what a run leaves, and return it as one file."""
        typed = [as_typed(one) for one in prepared(overrides)]
        facts = {
            "item": {},
            "seed": config["seed"],
            "image": config["image"],
            "method": config["method"]["name"],
            "models": weights_of(config, search.objective),
            "command": " ".join(["python find_prompt.py", *typed]),
        }
        status = "done" if state.ended else "interrupted"
        result = report(search.result(state), Job(search, folder, facts), status)
        folder.write_json(RESULT, result)
        folder.write_json(CONFIG, config)
        write_page(folder, search, state)
        return shutil.make_archive(str(folder.path), "zip", folder.path)

    def overrides(self, wanted: Wanted) -> list[str]:
        """Return the command line of what is wanted.

        Raises:
            FuseError: it is not to be had.
        """
        seconds = min(max(float(wanted.seconds), 1.0), MAX_SECONDS)
        found = [
            f"method={wanted.method}",
            f"strategy={wanted.strategy}",
            f"seed={int(wanted.seed)}",
            f"time_limit={seconds}",
        ]
        if wanted.goal == GOALS[0]:
            return [*found, f"image={self._picture(wanted)}", self._weight(wanted)]
        text = wanted.text.strip()
        if not text or len(text) > MAX_TEXT:
            raise FuseError(f"text: {len(text)} characters; expected 1 to {MAX_TEXT}")
        if wanted.goal == GOALS[1]:
            return [*found, "image=null", self._meaning(text), self._weight(wanted)]
        return [*found, "image=null", "secondary=[]", f"label={text}", "stop_at_label=true"]

    def _picture(self, wanted: Wanted) -> str:
        if not wanted.picture:
            raise FuseError("picture: none was given; drop one, or choose an example")
        if Path(wanted.picture).stat().st_size > MAX_PICTURE_BYTES:
            raise FuseError(
                f"picture: it has more than {MAX_PICTURE_BYTES:,} bytes; give a smaller"
            )
        open_image(wanted.picture, "picture")
        return wanted.picture

    def _weight(self, wanted: Wanted) -> str:
        return f"secondary.demo_clip.weight={float(wanted.weight)}"

    def _meaning(self, text: str) -> str:
        """Return the override that gives the CLIP the meaning of a text in a picture's place."""
        from fuse.app.inspection.named import load_model
        from fuse.models import EmbeddingModel

        model, _ = load_model("demo_clip", "clip", EmbeddingModel)
        numbers = ",".join(f"{value:.6f}" for value in model.embed_texts([text])[0].tolist())
        return f"secondary.demo_clip.target_vector=[{numbers}]"
