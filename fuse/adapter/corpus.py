"""The words that an adapter is fitted on: of a text file, of a `datasets` id, or of the two vocabularies."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from fuse.errors import FuseError
from fuse.vocabulary import Vocabulary

log = logging.getLogger(__name__)

MAX_LINES = 500_000
"""Lines read of a dataset."""


def corpus_fingerprint(corpus: str) -> str:
    """A hash of a text file's bytes; a dataset's id as it is, with the number of lines read.

    Raises:
        FuseError: a text file that cannot be read.
    """
    path = Path(corpus).expanduser()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".txt" or path.is_absolute():
        raise FuseError(f"adapter.corpus={corpus}: no such file; give a text file or a `datasets` id")
    return f"{corpus}[:{MAX_LINES}]"


def corpus_words(corpus: str) -> list[str] | None:
    """Each word of the corpus, a run of letters and digits, once, the most frequent first; None, with a warning, where it is out of reach.

    `corpus` is a text file, or a `datasets` id with a `text` column, its configuration after a colon ("id:config").

    Raises:
        FuseError: a file that is no text, or a corpus without words.
    """
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FuseError(f"adapter.corpus={corpus}: expected a UTF-8 text file ({error})") from error
    else:
        try:
            lines = _dataset_lines(corpus)
        except Exception as error:  # the hub's client raises many kinds; each means that there is no corpus
            log.warning(
                "adapter.corpus=%s cannot be reached (%s); using the words of both vocabularies instead", corpus, type(error).__name__
            )
            return None
    counts = Counter(word for line in lines for word in re.findall(r"[^\W_]+", line))
    if not counts:
        raise FuseError(f"adapter.corpus={corpus}: holds no words; give a text file with some")
    return sorted(counts, key=lambda word: (-counts[word], word))


def vocabulary_words(*vocabularies: Vocabulary) -> list[str]:
    """All distinct alphabetic words that single tokens of these vocabularies spell, in the order of their ids."""
    texts = (text.strip() for vocabulary in vocabularies for text in vocabulary.token_texts)
    return list(dict.fromkeys(text for text in texts if text.isalpha()))


def _dataset_lines(corpus: str) -> list[str]:
    """The first lines of a dataset's training split."""
    import datasets

    name, _, config = corpus.partition(":")
    stream = datasets.load_dataset(name, config or None, split="train", streaming=True)
    return [row["text"] for row in islice(stream, MAX_LINES)]
