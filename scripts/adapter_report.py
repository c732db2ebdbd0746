"""How far the adapters of a pair of models can be trusted: a table, and a figure of predicted against true changes.

Takes the overrides of find_prompt.py; every secondary of the run is reported on, with every adapter. The texts are lines
of TEXTS, one word of which is replaced by each of up to 1,500 others.

    python scripts/adapter_report.py secondary=[demo_clip] --out report.png
    python scripts/adapter_report.py primary=causal_lm secondary=[sentence] target="two dogs play" --texts captions.txt
    python scripts/adapter_report.py adapter.cache_dir=shared          # fitted adapters are written there, to be shared
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

import fuse  # noqa: E402
from fuse.adapter import ADAPTERS  # noqa: E402
from fuse.adapter.corpus import corpus_words  # noqa: E402
from fuse.adapter.fidelity import draw_trial  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as find_prompt.py takes them")
    parser.add_argument("--texts", type=Path, default=ROOT / "fuse/demo/corpus.txt", help="text file, one sentence a line")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--point", default="mean", help="where the gradient is taken: current, mask or mean (default)")
    parser.add_argument("--out", type=Path, default=Path("adapter_report.png"), help="the figure")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    texts = random.Random(0).sample(options.texts.read_text().splitlines(), options.trials)
    words = corpus_words(str(options.texts)) or []
    rows: list[dict[str, Any]] = []
    shown: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    models: dict[Any, Any] = {}
    for name in ADAPTERS:
        run = build_run(f"adapter={name}", *options.overrides, models=models)
        for key, term in run.objective.secondaries.items():
            assert term.adapter is not None
            report = term.adapter.report(term, texts, words, torch.Generator().manual_seed(0), point=options.point)
            rows.append(row(key, name, report))
            if not term.adapter.ranks:
                continue
            trial = draw_trial(run.objective.vocabulary, term, texts[0], 1500, torch.Generator().manual_seed(0))
            scores = term.adapter.token_scores([trial.row], [trial.position], term, options.point)[0, trial.tokens]
            shown[f"{key}, {name}"] = (scores, trial.losses)
    show("Adapters", rows, options.json)
    draw(rows, shown, options.out)


def row(key: str, adapter: str, report: fuse.adapter.fidelity.Report) -> dict[str, Any]:
    """One row of the table."""
    fidelity = dataclasses.asdict(report.fidelity) if report.fidelity else {"spearman": None, "recall": None, "cosine": None}
    errors = json.dumps({case: round(error, 3) for case, error in report.fit_errors.items()})
    return {
        "secondary": key,
        "adapter": adapter,
        **fidelity,
        "vocabulary": report.vocabulary,
        "corpus": report.corpus,
        "fit_errors": errors,
    }


def draw(rows: list[dict[str, Any]], shown: dict[str, tuple[torch.Tensor, torch.Tensor]], file: Path) -> None:
    """Bars of every adapter's figures, and the predicted against the true change of one trial."""
    figure, panels = plt.subplots(1, 1 + len(shown), figsize=(4 + 3 * len(shown), 3.4), constrained_layout=True)
    names = [f"{r['secondary']}\n{r['adapter']}" for r in rows]
    for shift, measure in enumerate(("spearman", "recall", "cosine")):
        panels[0].bar([i + 0.27 * (shift - 1) for i in range(len(rows))], [r[measure] or 0.0 for r in rows], 0.25, label=measure)
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
