"""How well each adapter ranks and searches, for a secondary with another tokenizer, and what it
costs.

spearman, recall: a word of one caption is replaced by each of up to 1500 others of the corpus; the
true change of 1 - cos to another target is compared with the adapter's scores; recall is the share
of the truly best 10 in the best tenth of the ranking.
search_loss: the mean of the loss that GCG reaches with equal numbers of candidates scored
("random": the method random, which reads no gradient). fit_seconds, peak_mb: time and memory of the
fit; file_mb: of what is kept of it. apply_ms: the ranking of 12 positions of one row; score_ms: the
secondary's scoring of 256 candidates, for comparison. The demo pair is measured on held-out scenes;
with --model and --captions a pair with MiniLM, on captions that no adapter was fitted on (the model
may have seen them); with --source and --target, two tokenizers, the fit of `fuse` to 100,000 words
at widths 768 -> 512.

    python benchmarks/adapter.py --model ../shared/realbed/gpt2-flickr --captions
    ../shared/realbed/text/captions.txt \\
        --source ../shared/realbed/tokenizers/gpt2 --target ../shared/realbed/tokenizers/clip
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import torch
from runs import ROOT, Row, arguments, mean, show
from world.drawing import draw
from world.scenes import plain_caption, random_scene

import fuse
from fuse.adapters import Adapter
from fuse.adapters.corpus import corpus_words
from fuse.adapters.fidelity import Fidelity, compare, draw_trial, mean_fidelity
from fuse.adapters.store import save
from fuse.app import places
from fuse.models import EmbeddingModel
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.registry import ADAPTERS

CANDIDATES, POSITIONS, STEP = 1500, 12, 256
T = TypeVar("T")
Goal = tuple[str, torch.Tensor]
"""A caption to change, and the vector of another one's meaning or picture."""


def main() -> None:
    options = arguments(
        __doc__,
        trials={"type": int, "default": 30},
        searches={"type": int, "default": 20, "help": "targets of a search; 0 leaves it out"},
        budget={"type": int, "default": 1000, "help": "candidates scored in a search"},
        adapters={"default": ",".join(ADAPTERS)},
        point={
            "default": "mean",
            "help": "what the secondary reads at the position: current, mask or mean (default)",
        },
        model={"help": "hub id or folder of a primary for the pair with MiniLM"},
        captions={
            "type": Path,
            "help": "text file; the last 1000 lines are the trials, the others the corpus",
        },
        source={"help": "hub id or folder of a tokenizer, for the timing of a large fit"},
        target={"help": "another one"},
    )
    number = max(options.trials, options.searches)
    lm = fuse.CausalLM.load(str(ROOT / "fuse/demo/lm"))
    clip = fuse.CLIP.load(str(ROOT / "fuse/demo/clip"))
    rows = measure(
        "demo", lm, clip, 10, ROOT / "fuse/demo/corpus.txt", list(demo_goals(clip, number)), options
    )
    if options.model and options.captions:
        lm, encoder = (
            fuse.CausalLM.load(options.model),
            fuse.SentenceEncoder.load(places.minilm()),
        )
        lines = [
            line.strip()
            for line in options.captions.read_text().splitlines()
            if len(line.split()) > 5
        ]
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder) / "corpus.txt"
            corpus.write_text("\n".join(lines[:-1000]))
            goals = list(caption_goals(encoder, lines[-1000:], number))
            rows += measure(
                f"{Path(options.model).name} -> MiniLM", lm, encoder, 40, corpus, goals, options
            )
    if options.source and options.target:
        rows.append(large_fit(options.source, options.target))
    show(f"Adapters, {options.trials} trials, {options.searches} searches", rows, options.json)


def demo_goals(clip: fuse.CLIP, count: int) -> Iterator[Goal]:
    """A held-out picture, and the caption of another one."""
    rng = random.Random(1)
    for _ in range(count):
        picture, caption = (
            draw(random_scene(rng, heldout=True), rng),
            plain_caption(random_scene(rng, heldout=True)),
        )
        yield caption, clip.embed_images([picture])[0]


def caption_goals(encoder: fuse.SentenceEncoder, lines: list[str], count: int) -> Iterator[Goal]:
    """The meaning of one caption, and the first ten words of another."""
    rng = random.Random(1)
    for _ in range(count):
        target, caption = rng.sample(lines, 2)
        yield " ".join(caption.split()[:10]), encoder.embed_texts([target])[0]


def measure(
    pair: str,
    lm: fuse.CausalLM,
    secondary: EmbeddingModel,
    weight: float,
    corpus: Path,
    goals: list[Goal],
    options: Namespace,
) -> list[Row]:
    """One row for each adapter and one for chance."""
    words = corpus_words(str(corpus)) or []
    generator = torch.Generator().manual_seed(0)
    terms = [
        fuse.Term(secondary, fuse.CosineDistance(vector), weight=weight) for _, vector in goals
    ]
    chosen = list(zip(goals, terms, strict=True))[: options.trials]
    trials = [
        (draw_trial(lm.vocabulary, term, text, CANDIDATES, generator, set(words)), term)
        for (text, _), term in chosen
    ]
    chance = mean_fidelity(
        [compare(torch.rand(len(t.tokens), generator=generator), t.losses) for t, _ in trials]
    )
    row = trials[0][0].row
    texts = lm.vocabulary.decode([(*row, token) for token in range(1000, 1000 + STEP)])
    score_ms = 1000 * timed(lambda: terms[0].score(terms[0].encode(texts)))[1]
    targets = terms[: options.searches]
    for term in targets:
        term.adapter = fuse.PooledAdapter.fit(
            lm.vocabulary, secondary
        )  # has no say where no gradient is read
    loss = search_loss(lm, targets, fuse.Random(search_width=64), options.budget)
    rows = [{"pair": pair, "adapter": "random", **cells(fidelity=chance), "search_loss": loss}]
    for name in options.adapters.split(","):
        kind = ADAPTERS[name]
        (adapter, seconds), peak = with_peak(
            partial(timed, partial(kind.fit, lm.vocabulary, secondary, words))
        )
        judged = (
            mean_fidelity([adapter.judge(t, term, options.point) for t, term in trials])
            if adapter.ranks
            else None
        )
        apply = partial(
            adapter.token_scores,
            [row] * POSITIONS,
            [i % len(row) for i in range(POSITIONS)],
            terms[0],
            options.point,
        )
        apply_ms = 1000 * min(timed(apply)[1] for _ in range(4)) if adapter.ranks else None
        for term in targets:
            term.adapter = adapter
        method = fuse.GCG(search_width=64, logit_weight=0.35, linearise=(options.point,))
        costs = {
            "fit_seconds": seconds,
            "peak_mb": peak,
            "file_mb": file_size(adapter),
            "apply_ms": apply_ms,
            "score_ms": score_ms,
        }
        rows.append(
            {
                "pair": pair,
                "adapter": name,
                **cells(costs, judged),
                "search_loss": search_loss(lm, targets, method, options.budget),
            }
        )
    return rows


def cells(costs: Row | None = None, fidelity: Fidelity | None = None) -> Row:
    """The columns of a row, empty where there is nothing to tell."""
    costs = costs or dict.fromkeys(("fit_seconds", "peak_mb", "file_mb", "apply_ms", "score_ms"))
    return {
        **costs,
        **{name: fidelity and getattr(fidelity, name) for name in ("spearman", "recall")},
    }


def search_loss(
    lm: fuse.CausalLM, targets: list[fuse.Term], method: fuse.GCG | fuse.Random, budget: int
) -> float | None:
    """The mean of the best loss after so many candidates scored, from the same random prompts."""
    losses = []
    for seed, term in enumerate(targets):
        objective = fuse.Objective(fuse.Term(lm, fuse.NLL()), {"secondary": term})
        result = fuse.search(
            objective,
            method,
            steps=2 * budget // method.search_width,
            generator=torch.Generator().manual_seed(seed),
        )
        within = [step.best_loss for step in result.trace if step.evaluations <= budget]
        losses.append(min(within, default=result.initial_loss))
    return mean(losses) if losses else None


def large_fit(source: str, target: str) -> Row:
    """The fit of `fuse` to 100,000 distinct made-up words."""
    from transformers import AutoTokenizer

    generator = torch.Generator().manual_seed(0)
    tables = [
        (AutoTokenizer.from_pretrained(name), width)
        for name, width in ((source, 768), (target, 512))
    ]
    first, second = (
        EmbeddedVocabulary(t, torch.randn(len(t), width, generator=generator), 77)
        for t, width in tables
    )
    rng, words = random.Random(0), dict[str, None]()
    syllables = [
        "ba",
        "be",
        "bo",
        "da",
        "de",
        "di",
        "ka",
        "ke",
        "ko",
        "la",
        "le",
        "lo",
        "ma",
        "me",
        "mi",
        "na",
        "ne",
        "no",
        "ra",
        "re",
        "ri",
        "sa",
        "se",
        "so",
        "ta",
        "te",
        "ti",
        "house",
        "light",
        "water",
        "stone",
        "ing",
        "er",
    ]
    while len(words) < 100_000:
        words["".join(rng.choices(syllables, k=rng.randint(1, 4)))] = None
    stand_in = SimpleNamespace(vocabulary=second)
    (adapter, seconds), peak = with_peak(
        partial(timed, partial(fuse.FuseAdapter.fit, first, stand_in, list(words)))
    )
    costs = {
        "fit_seconds": seconds,
        "peak_mb": peak,
        "file_mb": file_size(adapter),
        "apply_ms": None,
        "score_ms": None,
    }
    return {
        "pair": "768 -> 512, 100,000 words",
        "adapter": "fuse",
        **cells(costs),
        "search_loss": None,
    }


def timed(do: Callable[[], T]) -> tuple[T, float]:
    """The result, and the seconds that it took."""
    began = time.perf_counter()
    return do(), time.perf_counter() - began


def with_peak(do: Callable[[], T]) -> tuple[T, float]:
    """The result, and how far the process's memory rose meanwhile, in MB, looked at every few
    milliseconds.
    """
    over = threading.Event()
    seen = [resident()]

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = do()
    finally:
        over.set()
        thread.join()
    return result, max(seen) - seen[0]


def resident() -> float:
    """The memory that the process holds, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def file_size(adapter: Adapter) -> float:
    """The size of what is kept of an adapter, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save(adapter, path, {})
        return path.stat().st_size / 1e6


if __name__ == "__main__":
    main()
