"""How well each adapter ranks single-token substitutions for a secondary with another tokenizer.

A token of one caption is replaced by each of up to 1500 others; the true change of 1 - cos to another target is compared
with the adapter's scores. recall: share of the truly best 10 in the best tenth of the ranking. The demo pair is measured
on held-out scenes; with --model and --captions, a pair with MiniLM on captions that no adapter was fitted on, too.

    python benchmarks/adapter.py --model ../shared/realbed/gpt2-flickr --captions ../shared/realbed/text/captions.txt
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from runs import ROOT, Row, arguments, mean, show
from world.drawing import draw
from world.scenes import plain_caption, random_scene

import find_prompt
import fuse
from fuse.adapter import ADAPTERS
from fuse.adapter.corpus import corpus_words
from fuse.adapter.fidelity import Fidelity, fidelity
from fuse.types import Ids

CANDIDATES = 1500
Trial = tuple[Ids, fuse.Term]
"""The free tokens of a caption, and a secondary with a target of its own."""


def main() -> None:
    options = arguments(
        __doc__,
        trials={"type": int, "default": 30},
        point={"default": "mean", "help": "what the secondary reads at the place: current, mask or mean (default)"},
        model={"help": "hub id or folder of a primary for the pair with MiniLM"},
        captions={"type": Path, "help": "text file; the last 1000 lines are the trials, the others the corpus"},
    )
    lm = fuse.CausalLM.load(str(ROOT / "fuse/demo/lm"))
    clip = fuse.CLIP.load(str(ROOT / "fuse/demo/clip"))
    rows = measure("demo", lm, clip, ROOT / "fuse/demo/corpus.txt", list(demo_trials(lm, clip, options.trials)), options.point)
    if options.model and options.captions:
        lm, encoder = fuse.CausalLM.load(options.model), fuse.SentenceEncoder.load(find_prompt.minilm())
        lines = [line.strip() for line in options.captions.read_text().splitlines() if len(line.split()) > 5]
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder) / "corpus.txt"
            corpus.write_text("\n".join(lines[:-1000]))
            trials = list(caption_trials(lm, encoder, lines[-1000:], options.trials))
            rows += measure(f"{Path(options.model).name} -> MiniLM", lm, encoder, corpus, trials, options.point)
    show(f"Ranking of substitutions, {options.trials} trials", rows, options.json)


def demo_trials(lm: fuse.CausalLM, clip: fuse.CLIP, count: int) -> Iterator[Trial]:
    """A held-out picture, and the caption of another one."""
    rng = random.Random(1)
    for _ in range(count):
        picture, told = draw(random_scene(rng, heldout=True), rng), plain_caption(random_scene(rng, heldout=True))
        (image,) = clip.embed_images([picture])
        yield lm.vocabulary.encode([told])[0][0], fuse.Term(clip, fuse.CosineDistance(image))


def caption_trials(lm: fuse.CausalLM, encoder: fuse.SentenceEncoder, lines: list[str], count: int) -> Iterator[Trial]:
    """The meaning of one caption, and the first ten words of another."""
    rng = random.Random(1)
    for _ in range(count):
        target, told = rng.sample(lines, 2)
        row = lm.vocabulary.encode([" ".join(told.split()[:10])])[0][0]
        yield row, fuse.Term(encoder, fuse.CosineDistance(encoder.embed_texts([target])[0]))


def measure(
    pair: str, lm: fuse.CausalLM, secondary: fuse.SentenceEncoder | fuse.CLIP, corpus: Path, trials: list[Trial], point: str
) -> list[Row]:
    """One row for each adapter and one for chance."""
    words = corpus_words(str(corpus))
    rows = []
    fitted = {}
    for name, kind in ADAPTERS.items():
        began = time.perf_counter()
        fitted[name] = (kind.fit(lm.vocabulary, secondary.vocabulary, words), time.perf_counter() - began)
    found: dict[str, list[Fidelity]] = {name: [] for name in ("random", *ADAPTERS)}
    generator = torch.Generator().manual_seed(0)
    tokens = word_tokens(lm, set(words))
    for row, term in trials:
        starts = [i for i, token in enumerate(row) if i and lm.vocabulary.token_texts[token].startswith(" ")]
        position = starts[int(torch.randint(len(starts), (1,), generator=generator))]
        tried = tokens[torch.randperm(len(tokens), generator=generator)[:CANDIDATES]]
        texts = lm.vocabulary.decode([(*row[:position], token, *row[position + 1 :]) for token in tried.tolist()])
        true = term.score(term.encode(texts))
        found["random"].append(fidelity(torch.rand(len(tried), generator=generator), true))
        for name, (adapter, _) in fitted.items():
            found[name].append(fidelity(adapter.token_scores([row], [position], term, point)[0, tried], true))
    for name, results in found.items():
        seconds = fitted[name][1] if name in fitted else 0.0
        spearman, recall = mean([r.spearman for r in results]), mean([r.recall for r in results])
        rows.append({"pair": pair, "adapter": name, "fit_seconds": seconds, "spearman": spearman, "recall": recall})
    return rows


def word_tokens(lm: fuse.CausalLM, words: set[str]) -> torch.Tensor:
    """The allowed tokens that are words of the corpus by themselves, space included."""
    texts = lm.vocabulary.token_texts
    return torch.tensor([i for i in lm.vocabulary.allowed.nonzero().flatten().tolist() if texts[i][0] == " " and texts[i][1:] in words])


if __name__ == "__main__":
    main()
