"""The words that an adapter is fitted on: of a text file, of a `datasets` id, or of the two vocabularies."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from fuse.types import FuseError
from fuse.vocabulary import Vocabulary

log = logging.getLogger(__name__)

WIKITEXT = "Salesforce/wikitext:wikitext-103-raw-v1"
MAX_LINES = 500_000


def corpus_words(corpus: str, source: Vocabulary, target: Vocabulary) -> list[str]:
    """Each word of the corpus once, the most frequent first.

    `corpus` is a text file or a `datasets` id with a `text` column, its configuration after a colon ("id:config").
    Where a dataset cannot be reached: one warning, and the words of both vocabularies instead.

    Raises:
        FuseError: a file that cannot be read, or a corpus without words.
    """
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FuseError(f"adapter.corpus={corpus}: expected a UTF-8 text file ({error})") from error
    elif path.suffix == ".txt":
        raise FuseError(f"adapter.corpus={corpus}: no such file; give a text file or a `datasets` id")
    else:
        lines = _dataset_lines(corpus)
        if lines is None:
            log.warning("adapter.corpus=%s cannot be reached; fitting on the words of both vocabularies instead", corpus)
            return vocabulary_words(source, target)
    counts = Counter(word for line in lines for word in line.split())
    if not counts:
        raise FuseError(f"adapter.corpus={corpus}: holds no words; give a text file with some")
    return sorted(counts, key=lambda word: (-counts[word], word))


def vocabulary_words(*vocabularies: Vocabulary) -> list[str]:
    """All distinct alphabetic words that single tokens of these vocabularies spell, in the order of their ids."""
    texts = (text.strip() for vocabulary in vocabularies for text in vocabulary.token_texts)
    return list(dict.fromkeys(text for text in texts if text.isalpha()))


def fingerprint_words(words: list[str]) -> str:
    """A hash of the words in their order."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _dataset_lines(corpus: str) -> list[str] | None:
    """The first lines of a dataset's training split, or None where it cannot be reached."""
    import datasets

    name, _, config = corpus.partition(":")
    try:
        stream = datasets.load_dataset(name, config or None, split="train", streaming=True)
        return [row["text"] for row in islice(stream, MAX_LINES)]
    except Exception as error:  # the hub client raises many kinds; every one means that there is no corpus
        log.debug("loading %s failed: %s", corpus, error)
        return None
