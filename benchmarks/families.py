"""The matrix of model families: tiny checkpoints with random weights, one of every family that
transformers can load for a role, each checked against the family's own plain forward pass.

right: losses, reuse, gradients and searches are the family's own to 1e-4. refused: one line says
why. wrong: numbers differ without a word. traceback: any other error. no reference: the family's
own code does not read such a checkpoint, so that nothing can be compared.

    python benchmarks/families.py --threads 1                      # all of it, about half an hour
    python benchmarks/families.py --role causal --family nemotron llama
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from runs import ROOT, Row, arguments, show

sys.path.insert(0, str(ROOT / "benchmarks"))

import supported
import transformers
from checkpoints import (
    captioner,
    causal,
    classifier,
    diffusion,
    dual,
    masked,
    openclip,
    sentence,
)
from checkpoints.family import VERDICTS, Family, Findings, NoReference
from checkpoints.sandbox import run_in_child

from fuse import FuseError
from fuse.app import console

ROLES = {
    "causal": causal,
    "masked": masked,
    "sentence": sentence,
    "classifier": classifier,
    "dual": dual,
    "open_clip": openclip,
    "captioner": captioner,
    "diffusion": diffusion,
}
CACHE = Path.home() / ".cache" / "fuse" / "families"


def main() -> None:
    options = arguments(
        __doc__,
        role={"nargs": "+", "default": list(ROLES), "choices": list(ROLES)},
        family={"nargs": "+", "default": [], "help": "names; all families where none is given"},
        write={"action": "store_true", "help": "write SUPPORTED.md"},
        cache={"type": Path, "default": CACHE, "help": "where checkpoints are kept"},
    )
    console.quiet_libraries()
    rows: list[Row] = []
    for role in options.role:
        for family in ROLES[role].families():
            if not options.family or family.name in options.family:
                rows.append(check(family, options.cache / role))
                print(told(rows[-1]), flush=True)
    columns = ("family", "role", "tokenizer", "verdict", "fast ways", "seconds", "note")
    table = [{column: row[column] for column in columns} for row in rows]
    show(counts(rows), table, None)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    if options.write:
        supported.write(rows, ROOT / "SUPPORTED.md")


def check(family: Family, cache: Path) -> Row:
    """Return the matrix's row of a family, found in a process of its own."""
    cache.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    found = run_in_child(partial(_checked, family, cache), cache / f"{family.name}.log")
    row = {"errors": {}, "fast ways": "", "note": "", **found}
    seconds = round(time.perf_counter() - begun, 1)
    names = {"family": family.name, "role": family.role, "tokenizer": family.tokenizer}
    return {**names, **row, "seconds": seconds}


def _checked(family: Family, cache: Path) -> dict[str, Any]:
    """Make a family's checkpoint where it is not there yet, and check it."""
    findings = Findings()
    try:
        folder = checkpoint(family, cache)
        family.check(folder, findings)
        return findings.row()
    except NoReference as error:
        return {"verdict": "no reference", "note": _line(error)}
    except FuseError as error:
        lines = str(error).splitlines()
        verdict = "refused" if len(lines) == 1 else "traceback"
        note = str(error).replace(f"{cache}/", "")
        return {**findings.row(), "verdict": verdict, "note": note}
    except Exception as error:
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [one for one in traceback.extract_tb(error.__traceback__) if "/fuse/" in one.filename]
        at = f"{Path(place.filename).name}:{place.lineno}"
        if own:
            at = f"{Path(own[-1].filename).name}:{own[-1].lineno} -> {at}"
        return {**findings.row(), "verdict": "traceback", "note": f"{_line(error)} [{at}]"}


def checkpoint(family: Family, cache: Path) -> Path:
    """Return the folder of a family's checkpoint, which is made where it is not there yet."""
    folder, stamp = cache / family.name, cache / family.name / "made_by.txt"
    if stamp.is_file() and stamp.read_text() == VERSION:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        family.build(folder)
    except Exception as error:
        traceback.print_exc()
        raise NoReference(f"not built: {_line(error)}") from error
    stamp.write_text(VERSION)
    return folder


def _version() -> str:
    """Return a hash of what makes checkpoints."""
    digest = hashlib.sha256(transformers.__version__.encode())
    for file in sorted((ROOT / "benchmarks" / "checkpoints").glob("*.py")):
        if file.name in ("exceptions.py", "shrink.py", "spelling.py", "weights.py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    """Return an error's kind and the beginning of its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


VERSION = _version()
"""Of the code that this process runs, whatever becomes of the files."""


def told(row: Row) -> str:
    """Return a row as a line, which is printed when it is done."""
    return f"{row['role']} {row['family']}: {row['verdict']} {row['fast ways']} {row['note']}"


def counts(rows: list[Row]) -> str:
    """Return how many rows have each verdict."""
    found = Counter(row["verdict"] for row in rows)
    return ", ".join(f"{verdict} {found[verdict]}" for verdict in VERDICTS)


if __name__ == "__main__":
    main()
