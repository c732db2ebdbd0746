"""Write the pages beside what a run has left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from fuse.app.build import build
from fuse.app.hints import Config
from fuse.app.report.inside import Inside, look_inside
from fuse.app.report.page import index, page
from fuse.app.report.record import RunRecord, read_run, run_folders
from fuse.app.report.word_cloud import word_cloud
from fuse.app.run_folder import CHECKPOINT, INDEX, PAGE, RunFolder
from fuse.app.sources import items_of
from fuse.app.terms import Models
from fuse.errors import FuseError, one_line
from fuse.search import checkpoint
from fuse.search.search import Search
from fuse.search.state import ScoredLog, SearchState

log = logging.getLogger(__name__)

MOST_RUNS = 1000
"""How many runs an index lists."""


def write_page(folder: RunFolder, search: Search, state: SearchState) -> None:
    """Write the page of a run whose models are at hand. Whatever fails is one warning."""
    try:
        assert state.best is not None
        inside = look_inside(search.objective, state.best.ids, state.scored)
        folder.write(PAGE, _encoded(page(read_run(folder.path), inside)))
    except Exception as error:  # the page is not worth a run's result
        log.debug("the page could not be made", exc_info=error)
        log.warning("%s: not written (%s)", folder.path / PAGE, _reason(error))


def write_index(root: Path, problems: list[str]) -> None:
    """Write the index of a folder in which several runs are. Whatever fails is one warning."""
    try:
        folders = run_folders(root)
        records = records_of(folders[:MOST_RUNS])
        if len(records) > 1:
            text = index(root, records, left_out=len(folders[MOST_RUNS:]))
            RunFolder(root, problems).write(INDEX, _encoded(text))
    except Exception as error:
        log.debug("the index could not be made", exc_info=error)
        log.warning("%s: not written (%s)", root / INDEX, _reason(error))


def _encoded(text: str) -> bytes:
    """Return a page as it is written; a name that is no UTF-8 does not cost the page."""
    return text.encode(errors="backslashreplace")


def _reason(error: Exception) -> str:
    return one_line(error if isinstance(error, FuseError) else f"{type(error).__name__}: {error}")


def records_of(folders: Sequence[Path]) -> list[RunRecord]:
    """Return the records of those runs that have found something."""
    found = []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except FuseError as error:
            log.info("left out: %s", error)
    return found


def pages_of(root: Path, *, models: bool, words: bool) -> list[Path]:
    """Write the page of every run in a folder, and the index where there are several.

    Args:
        models: whether the models are loaded, to say what each token is worth.
        words: whether the pages get a word cloud.

    Returns:
        The files that were written.

    Raises:
        FuseError: there is no run, or a file cannot be written.
    """
    records = records_of(run_folders(root))
    if not records:
        read_run(root)  # says what is missing
    loaded: Models = {}
    problems: list[str] = []
    written = []
    for record in records:
        inside, notes = _inside(record, loaded) if models else (None, [])
        cloud = word_cloud([record], record.folder, problems) if words else None
        text = _page(record, inside, notes, cloud)
        RunFolder(record.folder, problems).write(PAGE, _encoded(text))
        written.append(record.folder / PAGE)
    if len(records) > 1:
        cloud = word_cloud(records, root, problems) if words else None
        left_out = len(records[MOST_RUNS:])
        text = index(root, records[:MOST_RUNS], cloud, left_out)
        RunFolder(root, problems).write(INDEX, _encoded(text))
        written.append(root / INDEX)
    if problems:
        raise FuseError("\n".join(problems))
    return written


def _page(record: RunRecord, inside: Inside | None, notes: Sequence[str], cloud: str | None) -> str:
    """Return the page of a run.

    Raises:
        FuseError: its files hold something else than a run writes.
    """
    try:
        return page(record, inside, notes, cloud)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FuseError(
            f"{record.folder}: its files are not those of a run ({type(error).__name__}: {error}); "
            "give the folder of another one"
        ) from error


def _inside(record: RunRecord, models: Models) -> tuple[Inside | None, list[str]]:
    """Load the models of a run, and return what they say of its prompt; or why they do not."""
    if record.config is None:
        return None, ["What each token is worth is not shown: the run has no config.json."]
    try:
        search = build(_with_vector(record, record.config), models=models)
        ids = tuple(int(token) for token in record.result["free_ids"])
        return look_inside(search.objective, ids, _scored(record, search)), []
    except (FuseError, KeyError, TypeError, ValueError) as error:
        return None, [f"What each token is worth is not shown: {one_line(error)}"]


def _with_vector(record: RunRecord, config: Config) -> Config:
    """Return a run's configuration with its own vector, where it is one of several that are known
    by their numbers alone.

    Raises:
        FuseError: what they came from cannot be read any more.
    """
    if set(record.item) != {"row"}:
        return config
    for item in items_of(config).each():
        if item.name == record.folder.name:
            return item.configured(config, RunFolder(record.folder, []))
    raise FuseError(f"{record.folder.name}: its vector is not there any more")


def _scored(record: RunRecord, search: Search) -> ScoredLog | None:
    """Return what the run has scored up to its last checkpoint; None where there is none."""
    path = record.folder / CHECKPOINT
    try:
        if "" not in checkpoint.names(path):
            return None
        return checkpoint.read(path, {"": search})[1][""].scored
    except FuseError as error:
        log.info("no checkpoint: %s", error)
        return None
