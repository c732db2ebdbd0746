r"""Say how good the texts of one or more runs are, and which run is the best.

    python scripts/evaluate.py RUN... --references captions.jsonl --images pictures \
        --clip openai/clip-vit-base-patch16 --lm gpt2 \
        --sentence sentence-transformers/all-mpnet-base-v2

A run is its folder, or its `metadata.jsonl` or `results.csv`. Each number comes with the interval
of 95 of 100 bootstrap resamples of the texts. What cannot be measured here is named, with the
reason. The judges are to be other models than those that were optimised. Needs
`pip install -e '.[evaluate]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from evaluation import judges, overlap  # noqa: E402
from evaluation.records import Record, read_results, with_references  # noqa: E402
from evaluation.summary import Estimate, estimate, front, mean_of  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from fuse.app.run_folder import saved_config  # noqa: E402
from fuse.errors import FuseError  # noqa: E402

LOWER_IS_BETTER = ("nll", "perplexity")
MATCH = ("CLIPScore", "similarity", "CIDEr", "rougeL", "BLEU")
"""What a run is ranked by: the first of them that was measured."""


def main() -> None:
    """Measure, and show a table."""
    options = _options()
    missing: dict[str, str] = {}
    found = {}
    try:
        for path in options.results:
            _warn_of_optimised(path, options, missing)
            found[str(path)] = measured(path, options, missing)
    except FuseError as error:
        sys.exit(f"error: {error}")
    show(found)
    for name, reason in missing.items():
        print(f"not measured: {name}: {reason}", file=sys.stderr)
    if options.json:
        plain = {run: {n: asdict(e) for n, e in own.items()} for run, own in found.items()}
        options.json.write_text(json.dumps(plain, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="runs")
    parser.add_argument("--references", type=Path, help=".txt, .jsonl or .csv; else the targets")
    parser.add_argument("--images", type=Path, help="the folder of the pictures")
    parser.add_argument("--clip", help="who judges texts and pictures; not the optimised one")
    parser.add_argument("--lm", help="who judges fluency; not the optimised one")
    parser.add_argument("--sentence", help="who compares texts and references")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    return parser.parse_args()


def measured(
    path: Path, options: argparse.Namespace, missing: dict[str, str]
) -> dict[str, Estimate]:
    """Return the numbers of a run by their names; what could not be measured joins `missing`."""
    records = read_results(path, options.images)
    if options.references is not None:
        num = len(records)
        records = with_references(records, options.references)
        if len(records) < num:
            missing[f"{num - len(records)} of {num} texts of {path}"] = "no reference is given"
    compared = [record for record in records if record.references]
    shown = [record for record in records if record.picture is not None]
    found: dict[str, Estimate] = {}

    def try_to(name: str, measure: Callable[[], dict[str, Estimate]]) -> None:
        try:
            found.update(measure())
        except ImportError as error:
            missing[name] = f"{error.name} is not installed; pip install -e '.[evaluate]'"
        except RuntimeError as error:
            missing[name] = str(error)

    def means(name: str, values: Sequence[float]) -> dict[str, Estimate]:
        return {name: estimate(mean_of(values), len(values), options.resamples)}

    if compared:
        try_to("BLEU", lambda: {"BLEU": _bleu(compared, options.resamples)})
        for name, measure in overlap.PER_TEXT.items():

            def all_of(name: str = name, measure: Callable = measure) -> dict[str, Estimate]:
                values = measure(compared)
                by_name = values if isinstance(values, dict) else {name: values}
                several: dict[str, Estimate] = {}
                for own, numbers in by_name.items():
                    several |= means(own, numbers)
                return several

            try_to(name, all_of)
        if options.sentence:
            found |= means("similarity", judges.similarity(options.sentence, compared))
    if shown and options.clip:
        found |= means("CLIPScore", judges.clip_score(options.clip, shown))
    if options.lm:
        values = judges.nll(options.lm, records)
        found |= means("nll", values)
        own = found["nll"]
        found["perplexity"] = Estimate(*(math.exp(x) for x in (own.value, own.low, own.high)))
    return found


def _bleu(records: Sequence[Record], resamples: int) -> Estimate:
    return estimate(lambda at: overlap.bleu([records[i] for i in at]), len(records), resamples)


def _warn_of_optimised(path: Path, options: argparse.Namespace, missing: dict[str, str]) -> None:
    """Name a judge that the run has optimised."""
    config = saved_config(path if path.is_dir() else path.parent) or {}
    entries = [config.get("primary", {}), *config.get("secondary", {}).values()]
    for judge in (options.clip, options.lm, options.sentence):
        if judge and any(entry.get("model_id") == judge for entry in entries):
            print(f"warning: {path}: {judge} was optimised, and is no judge", file=sys.stderr)


def show(runs: dict[str, dict[str, Estimate]]) -> None:
    """Show a leaderboard of runs, the best first; of several, the front of fluency and match."""
    names = list(dict.fromkeys(name for own in runs.values() for name in own))
    by = next((name for name in MATCH if name in names), None)
    order = sorted(runs, key=lambda run: -runs[run][by].value if by in runs[run] else math.inf)
    marks = dict.fromkeys(order, "")
    if by and "nll" in names:
        points = [(runs[run]["nll"].value, -runs[run][by].value) for run in order]
        marks = {run: "yes" * on for run, on in zip(order, front(points), strict=True)}
    table = Table(box=None, pad_edge=False)
    for title in ("run", *names, *([f"front of nll, {by}"] if any(marks.values()) else [])):
        table.add_column(title, overflow="fold")
    for run in order:
        cells = [str(runs[run][name]) if name in runs[run] else "-" for name in names]
        table.add_row(run, *cells, *([marks[run]] if any(marks.values()) else []))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
