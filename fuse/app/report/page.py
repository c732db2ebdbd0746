"""The page of one run, and the index of several, as text."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fuse.app.report.inside import Inside, front, split
from fuse.app.report.record import RunRecord
from fuse.app.report.svg import curve, scatter
from fuse.app.report.tree import ancestors, tree
from fuse.app.run_folder import PAGE, flat, from_inside
from fuse.errors import FuseError
from fuse.images import open_image

PICTURE_SIZE, THUMBNAIL_SIZE = 480, 120
"""The longer side of a picture in a page, in pixels."""
TEMPLATES = Path(__file__).parent


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["address"] = quote
    return environment


def number(value: Any, digits: int = 4) -> str:
    """Return a number in few digits; a dash for none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def page(
    record: RunRecord,
    inside: Inside | None,
    notes: Sequence[str] = (),
    word_cloud: str | None = None,
) -> str:
    """Return the page of a run.

    Args:
        inside: what the models say of its prompt; None where they are not at hand.
        notes: what the page lacks, and why.
        word_cloud: the address of a picture of its words; None for none.
    """
    result, line = record.result, ancestors(record.trace)
    return (
        _environment()
        .get_template("page.html")
        .render(
            run=record,
            result=result,
            name=record.folder.name,
            picture=picture(result.get("image"), PICTURE_SIZE),
            inside=inside,
            largest=_largest(inside),
            curves=_curves(record),
            tree=tree(record.trace, line),
            line=_different(line),
            pareto=_pareto(record, inside),
            config=None if record.config is None else _as_yaml(record),
            command=result.get("command"),
            notes=notes,
            word_cloud=word_cloud,
        )
    )


def _largest(inside: Inside | None) -> float:
    """Return the largest change that leaving out a token makes, by which colours are scaled."""
    found = [1e-12]
    for token in inside.tokens if inside is not None else ():
        found += [abs(value) for value in token.changes.values() if abs(value) < float("inf")]
        found.append(abs(sum(token.changes.values())))
    return max(value for value in found if value < float("inf"))


def _curves(record: RunRecord) -> list[Any]:
    """Return the plots of the losses, the sum first."""
    trace = record.trace
    if not trace:
        return []
    steps = [step.step for step in trace]
    found = [curve("loss", [step.loss for step in trace], steps)]
    for name in record.terms:
        values = [step.terms.get(name, float("nan")) for step in trace]
        found.append(curve(name, values, steps, best=False))
    return found


def _different(line: Sequence[Any]) -> list[Any]:
    """Return the ancestors that differ from the one before."""
    return [one for one in line if any(changed for _, changed in one.parts)]


def _pareto(record: RunRecord, inside: Inside | None) -> Any:
    """Return the plot of fluency against match; None without a secondary."""
    names, weights = list(record.terms), torch.tensor(list(record.weights.values()))
    if len(names) < 2:
        return None
    points = inside.points if inside is not None else []
    if not points:  # without the log of all: the best of each step
        losses = [[step.terms.get(name, torch.nan) for name in names] for step in record.trace]
        points = split(torch.tensor(losses).reshape(-1, len(names)) * weights)
    own = torch.tensor([[term["loss"] for term in record.terms.values()]]) * weights
    found = split(own)
    return scatter(points, front(points), found[0]) if points and found else None


def _as_yaml(record: RunRecord) -> str:
    config = from_inside(record.config, record.folder)
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)


def picture(path: Any, size: int) -> str | None:
    """Return a picture as a data address, at most so large; None where there is none to show."""
    if not isinstance(path, str):
        return None
    try:
        image = open_image(path)
    except FuseError:
        return None
    image.thumbnail((size, size))
    content, kind = BytesIO(), "PNG" if max(image.size) <= 256 else "JPEG"
    image.save(content, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True)
class IndexRow:
    """One run in the index.

    Args:
        options: those in which the runs differ, by their keys.
        is_best: whether no other run has a lower loss.
    """

    address: str
    name: str
    result: Mapping[str, Any]
    picture: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_best: bool = False


def index(
    root: Path, records: Sequence[RunRecord], word_cloud: str | None = None, left_out: int = 0
) -> str:
    """Return the page that lists the runs of a folder.

    Args:
        left_out: how many others there are.
    """
    options = _differing(records)
    best = min((record.result.get("loss", torch.inf) for record in records), default=torch.inf)
    rows = []
    for record, own in zip(records, options, strict=True):
        address = (record.folder.relative_to(root) / PAGE).as_posix()
        name = record.folder.relative_to(root).as_posix()
        small = picture(record.result.get("image"), THUMBNAIL_SIZE)
        is_best = record.result.get("loss") == best and len(records) > 1
        rows.append(IndexRow(quote(os.fsencode(address)), name, record.result, small, own, is_best))
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("index.html")
        .render(
            name=root.absolute().name,
            rows=rows,
            left_out=left_out,
            keys=list(options[0]) if options else [],
            word_cloud=word_cloud,
            script=Markup(script),
            script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        )
    )


def _differing(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return for each run the options in which it differs from others, by their keys."""
    configs = [flat(record.config or {}) for record in records]
    keys = set[str]().union(*configs)
    differing = []
    for key in sorted(keys):
        values = {repr(config.get(key)) for config in configs}
        if len(values) > 1 and not _is_shown_elsewhere(key):
            differing.append(key)
    return [{key: config.get(key) for key in differing} for config in configs]


def _is_shown_elsewhere(key: str) -> bool:
    """Whether an option is a picture, which has its thumbnail, or says what stands at the top."""
    name = key.rpartition(".")[2]
    return name == "image" or (name == "target" and name != key)
