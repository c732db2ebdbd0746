"""Text of a given meaning: `experiment=sentence` on held-out texts, with real MiniLM and a language
model of your choice.

cosine: of the prompt's and the target's embedding, recomputed from the two texts. f1: of their
words. regret: the loss found minus that of the target's own text under the same objective; above 0
the search is to blame, at or below 0 the objective. won: the share of targets without regret.
whole: the share of prompts that end as a sentence does. perplexity: of the prompt under the model
of the search; judged, under the model of --judge, which had no say in it, and reference, that of
the target under the same. In the last row: means, and medians of the perplexities.

    python benchmarks/sentences.py --model ../shared/realbed/gpt2-flickr --texts
    ../shared/realbed/text/captions.txt
"""

from __future__ import annotations

import math
import random
import re
import tempfile
from pathlib import Path
from statistics import median

from runs import Row, arguments, build_run, mean, show

import fuse
from fuse.app.overrides import quoted
from fuse.app.terms import Models

MEDIANS = ("perplexity", "judged", "reference")


def main() -> None:
    options = arguments(
        __doc__,
        model={"required": True, "help": "hub id, folder or GGUF file of the primary"},
        texts={
            "required": True,
            "type": Path,
            "help": "text file of a text a line, or of running text as in wikitext; targets are "
            "drawn from the last 1000 sentences of 5 to 20 words",
        },
        retrieve={
            "type": Path,
            "help": "text file to start from the nearest texts of (init=retrieve), without the "
            "lines that hold one of the sentences that targets are drawn from",
        },
        judge={"help": "another language model, for the perplexity of what was found"},
        judge_start={"default": "auto", "help": "the special tokens before all that it reads"},
        start={"help": "primary.start: the special tokens before all"},
        number={"type": int, "default": 20},
        seed={"type": int, "default": 0},
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    found = sentences(options.texts.read_text())[-1000:]
    targets = random.Random(options.seed).sample(found, options.number)
    judge = Judge(options.judge, options.judge_start) if options.judge else None
    overrides = options.overrides.split()
    if options.start:
        overrides.append(f'primary.start="{options.start}"')
    if options.retrieve:
        overrides += ["init=retrieve", f"corpus={without(found, options.retrieve)}"]
    models: Models = {}
    rows: list[Row] = []
    for target in targets:
        rows.append(invert(target, [f"primary.model_id={options.model}", *overrides], models))
        if judge is not None:
            rows[-1]["judged"] = judge.perplexity(rows[-1]["prompt"])
            rows[-1]["reference"] = judge.perplexity(target)
        if options.verbose:
            print(rows[-1], flush=True)
    last: Row = {"target": "all", "prompt": ""}
    for name, value in rows[0].items():
        if not isinstance(value, str):
            values = [row[name] for row in rows]
            last[name] = median(values) if name in MEDIANS else mean(values)
    show("Text of a given meaning", [*rows, last], options.json)


def invert(target: str, overrides: list[str], models: Models) -> Row:
    """Search for a text of the target's meaning."""
    search = build_run("experiment=sentence", f"target={quoted(target)}", *overrides, models=models)
    result = search.run()
    (encoder,) = (one for one in models.values() if isinstance(one, fuse.SentenceEncoder))
    a, b = encoder.embed_texts([result.prompt, target])
    regret = result.loss - search.objective.evaluate_text(target)[0]
    return {
        "target": target,
        "prompt": result.prompt,
        "cosine": float(a @ b),
        "f1": word_f1(result.prompt, target),
        "regret": regret,
        "won": float(regret <= 0),
        "whole": float(result.prompt.endswith((".", "!", "?"))),
        "perplexity": math.exp(mean_nll(search.objective.primary.loss, result)),
        "evaluations": float(result.evaluations),
        "seconds": result.seconds,
    }


def mean_nll(loss: fuse.NLL, result: fuse.Result) -> float:
    """Return the primary's loss of a prompt as a mean over its tokens."""
    count = max(1, len(result.free_ids))
    return result.terms["primary"].loss * count ** (loss.length_penalty - 1)


def without(held_out: list[str], corpus: Path) -> Path:
    """Write a corpus anew, without the lines that hold one of some sentences."""
    kept = []
    for line in corpus.read_text().splitlines():
        if not any(sentence in line for sentence in held_out):
            kept.append(f"{line}\n")
    path = Path(tempfile.mkdtemp()) / corpus.name
    path.write_text("".join(kept))
    return path


class Judge:
    """A language model that had no say in a search."""

    def __init__(self, model_id: str, start: str) -> None:
        self._term = fuse.Term(fuse.CausalLM.load(model_id), fuse.NLL(), start=start)

    def perplexity(self, text: str) -> float:
        """exp of the mean of -log p over the text's tokens, its own way of spelling it."""
        return math.exp(float(self._term.score(self._term.encode([text]))[0]))


def sentences(text: str) -> list[str]:
    """Return the sentences of 5 to 20 words; the spacing of wikitext is undone."""
    found = []
    for line in text.splitlines():
        line = re.sub(r" @(.)@ ", r"\1", line.strip())
        line = re.sub(r" ([.,;:!?%)\]]|'\w+|n't)", r"\1", line)
        line = re.sub(r"([(\[$]) ", r"\1", line)
        for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z])", line):
            plain = sentence.isascii() and not re.search(r'["=<>]', sentence)
            whole = sentence[:1].isupper() and sentence.endswith((".", "!", "?"))
            if plain and whole and 5 <= len(sentence.split()) <= 20:
                found.append(sentence)
    return found


def word_f1(a: str, b: str) -> float:
    """The harmonic mean of precision and recall of the sets of words."""
    first, second = (set(re.findall(r"[a-z]+", text.lower())) for text in (a, b))
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 0.0


if __name__ == "__main__":
    main()
