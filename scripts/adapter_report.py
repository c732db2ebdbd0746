"""Report how far the adapters of a pair of models can be trusted, as a table and a figure.

The figure shows predicted against true changes of the loss. Takes the overrides of find_prompt.py;
every secondary of the run is reported on, with every adapter. One word of each of some lines of
TEXTS is replaced by each of up to 1,500 others.

    python scripts/adapter_report.py secondary=[demo_clip] --out report.png
    python scripts/adapter_report.py primary=causal_lm secondary=[sentence] \\
        target="two dogs play" --texts captions.txt
    python scripts/adapter_report.py adapter.cache_dir=shared      # to share what is fitted
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from runs import build_run, show  # noqa: E402

from fuse.adapters import ADAPTERS  # noqa: E402
from fuse.adapters.corpus import corpus_words  # noqa: E402
from fuse.adapters.fidelity import Report, draw_trial  # noqa: E402
from fuse.nn.embedding_table import POINTS  # noqa: E402

MEASURES = ("spearman", "recall", "cosine")
Shown = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Predicted and true losses of one trial, by the names of secondary and adapter."""


def main() -> None:
    """Report on every adapter of every secondary."""
    options = arguments()
    texts = random.Random(0).sample(options.texts.read_text().splitlines(), options.trials)
    words = corpus_words(str(options.texts)) or []
    rows: list[dict[str, Any]] = []
    shown: Shown = {}
    models: dict[Any, Any] = {}
    for name in ADAPTERS:
        run = build_run(f"adapter={name}", *options.overrides, models=models)
        for key, term in run.objective.secondaries.items():
            adapter, generator = term.adapter, torch.Generator().manual_seed(0)
            report = adapter.report(term, texts, words, generator, point=options.point)
            rows.append(row_of(key, name, report))
            if adapter.ranks:
                generator = torch.Generator().manual_seed(0)
                trial = draw_trial(run.objective.vocabulary, term, texts[0], 1500, generator)
                position = [trial.position]
                scores = adapter.token_scores([trial.row], position, term, options.point)
                shown[f"{key}, {name}"] = (scores[0, trial.tokens], trial.losses)
    show("Adapters", rows, options.json)
    draw(rows, shown, options.out)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, corpus = parser.add_argument, ROOT / "fuse/demo/corpus.txt"
    add("overrides", nargs="*", help="as find_prompt.py takes them")
    add("--texts", type=Path, default=corpus, help="text file, one sentence a line")
    add("--trials", type=int, default=30)
    add("--point", choices=POINTS, default="mean", help="where losses are linearised")
    add("--out", type=Path, default=Path("adapter_report.png"), help="the figure")
    add("--json", type=Path, help="write the rows to this file too")
    return parser.parse_args()


def row_of(key: str, adapter: str, report: Report) -> dict[str, Any]:
    """Return one row of the table."""
    fidelity: dict[str, Any] = dict.fromkeys(MEASURES)
    if report.fidelity is not None:
        fidelity = dataclasses.asdict(report.fidelity)
    errors = {case: round(error, 3) for case, error in report.fit_errors.items()}
    return {
        "secondary": key,
        "adapter": adapter,
        **fidelity,
        "vocabulary": report.vocabulary,
        "corpus": report.corpus,
        "fit_errors": json.dumps(errors),
    }


def draw(rows: list[dict[str, Any]], shown: Shown, file: Path) -> None:
    """Draw bars of every adapter's figures, and predicted against true losses of one trial."""
    size = (4 + 3 * len(shown), 3.4)
    count = 1 + len(shown)
    figure, grid = plt.subplots(1, count, figsize=size, constrained_layout=True, squeeze=False)
    panels = grid[0]
    names = [f"{row['secondary']}\n{row['adapter']}" for row in rows]
    for shift, measure in enumerate(MEASURES):
        at = [i + 0.27 * (shift - 1) for i in range(len(rows))]
        panels[0].bar(at, [row[measure] or 0.0 for row in rows], 0.25, label=measure)
    panels[0].axhline(0.1, linestyle=":", color="gray", label="recall by chance")
    panels[0].set_xticks(range(len(rows)), names, fontsize=6)
    panels[0].legend(fontsize=6)
    for panel, (name, (predicted, true)) in zip(panels[1:], shown.items(), strict=True):
        panel.scatter(predicted.cpu(), true, s=3)
        panel.set(title=name, xlabel="predicted", ylabel="true loss")
    figure.savefig(file, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
