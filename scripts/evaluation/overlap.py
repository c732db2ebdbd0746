"""How many words a text shares with its references: BLEU, ROUGE, CIDEr and METEOR, each by the
library that is kept for it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from evaluation.records import Record

ROUGE = ("rouge1", "rouge2", "rougeL")


def bleu(records: Sequence[Record]) -> float:
    """Return the BLEU of all texts together, from 0 to 100 (sacrebleu)."""
    import sacrebleu

    most = max(len(record.references) for record in records)
    streams: list[list[str | None]] = []
    for index in range(most):
        column = [r.references[index] if index < len(r.references) else None for r in records]
        streams.append(column)
    texts: Any = [record.text for record in records]
    return float(sacrebleu.corpus_bleu(texts, streams).score)


def rouge(records: Sequence[Record]) -> dict[str, list[float]]:
    """Return the F-measure of each text, the best of its references (rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE))
    found: dict[str, list[float]] = {name: [] for name in ROUGE}
    for record in records:
        scores = scorer.score_multi(list(record.references), record.text)
        for name in ROUGE:
            found[name].append(scores[name].fmeasure)
    return found


def cider(records: Sequence[Record]) -> list[float]:
    """Return the CIDEr of each text (pycocoevalcap).

    Its tokenizer is a program in Java; ours are words in lower case, without signs.
    """
    from pycocoevalcap.cider.cider import Cider

    return [float(score) for score in Cider().compute_score(*_tokenized(records))[1]]


def meteor(records: Sequence[Record]) -> list[float]:
    """Return the METEOR of each text (pycocoevalcap).

    Raises:
        RuntimeError: there is no Java, which it is written in, or it fails.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    if shutil.which("java") is None:
        raise RuntimeError(
            "it is a program in Java, and there is no java here; install a Java runtime, "
            "such as Debian's default-jre-headless"
        )
    scorer = Meteor()
    try:
        return [float(score) for score in scorer.compute_score(*_tokenized(records))[1]]
    except (OSError, ValueError) as error:  # it has ended, and says nothing more
        raise RuntimeError(f"its program in Java has failed ({error})") from error
    finally:
        if scorer.lock.locked():  # else it would wait for its own lock when it is freed
            scorer.lock.release()
        with suppress(OSError):
            scorer.meteor_p.stdin.close()


def _tokenized(records: Sequence[Record]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and texts by number, with single blanks between words."""
    references = {i: [words(text) for text in r.references] for i, r in enumerate(records)}
    return references, {i: [words(record.text)] for i, record in enumerate(records)}


def words(text: str) -> str:
    """Return the words of a text, in lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))


PER_TEXT: dict[str, Callable[[Sequence[Record]], Any]] = {
    "rouge": rouge,
    "CIDEr": cider,
    "METEOR": meteor,
}
"""What tells a number, or several by name, of each text."""
