"""The words that an adapter is fitted on: of a text file, a `datasets` id, or both vocabularies."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from fuse.errors import FuseError
from fuse.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

MAX_DATASET_ROWS = 500_000
"""How many rows of a dataset are read."""


def corpus_fingerprint(corpus: str) -> str:
    """Return a hash of a text file's bytes; a dataset's id as it is, with the number of rows read.

    Raises:
        FuseError: a text file that cannot be read.
    """
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise _unreadable(corpus, error) from error
    if path.suffix == ".txt" or path.is_absolute():
        raise FuseError(
            f"adapter.corpus={corpus}: no such file; give a text file or a `datasets` id"
        )
    return f"{corpus}[:{MAX_DATASET_ROWS}]"


def corpus_words(corpus: str) -> list[str] | None:
    """Return each word of the corpus, a run of letters and digits, once, the most frequent first.

    Args:
        corpus: a text file, or a `datasets` id with a `text` column, its configuration after a
            colon ("id:config").

    Returns:
        None, with a warning, where a dataset is out of reach.

    Raises:
        FuseError: a file that is no text, or a corpus without words.
    """
    texts = _texts(corpus)
    if texts is None:
        return None
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r"[^\W_]+", text))
    if not counts:
        raise FuseError(f"adapter.corpus={corpus}: holds no words; give a text file with some")
    return sorted(counts, key=lambda word: (-counts[word], word))


def vocabulary_words(*vocabularies: Vocabulary) -> list[str]:
    """Return all different alphabetic words that single tokens spell, in the order of their ids."""
    found: dict[str, None] = {}
    for vocabulary in vocabularies:
        for text in vocabulary.token_texts:
            if text.strip().isalpha():
                found[text.strip()] = None
    return list(found)


def _texts(corpus: str) -> Iterable[str] | None:
    """Return the texts of a file or of a dataset; None, with a warning, where out of reach."""
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(corpus, error) from error
    try:
        return _dataset_texts(corpus)
    except Exception as error:  # the hub's client raises many kinds; each means that there is none
        log.warning(
            "adapter.corpus=%s cannot be reached (%s); using both vocabularies' words instead",
            corpus, type(error).__name__,
        )  # fmt: skip
        return None


def _unreadable(corpus: str, error: Exception) -> FuseError:
    return FuseError(f"adapter.corpus={corpus}: expected a UTF-8 text file ({error})")


def _dataset_texts(corpus: str) -> list[str]:
    """Return the first texts of a dataset's training split."""
    import datasets

    name, _, config = corpus.partition(":")
    stream = datasets.load_dataset(name, config or None, split="train", streaming=True)
    return [row["text"] for row in islice(stream, MAX_DATASET_ROWS)]
