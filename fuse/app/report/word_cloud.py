"""A picture of the words of prompts, the frequent ones larger."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from fuse.app.report.record import RunRecord
from fuse.app.run_folder import RunFolder
from fuse.errors import FuseError

FILE = "word_cloud.png"
SIZE = (900, 450)
MAX_WORDS = 150


def counts_of(records: Sequence[RunRecord]) -> Counter[str]:
    """Return how often the prompts hold each word: those that were collected, else the best."""
    found: Counter[str] = Counter()
    for record in records:
        for prompt in record.result.get("found") or [record.result["prompt"]]:
            words = [word.strip(".,;:!?()\"'") for word in str(prompt).split()]
            found.update(word for word in words if word)
    return found


def word_cloud(records: Sequence[RunRecord], folder: Path, problems: list[str]) -> str | None:
    """Write the picture into a folder, and return it as a data address; None without a word.

    Raises:
        FuseError: the library is not installed.
    """
    try:
        from wordcloud import WordCloud
    except ImportError as error:
        raise FuseError(
            "--word-cloud: needs the package wordcloud; pip install 'fuse-prompt[views]'"
        ) from error
    counts = counts_of(records)
    if not counts:
        return None
    cloud = WordCloud(
        width=SIZE[0],
        height=SIZE[1],
        background_color=None,
        mode="RGBA",
        colormap="tab10",  # to be read on a light and on a dark page
        max_words=MAX_WORDS,
        random_state=0,
    )
    content = BytesIO()
    cloud.generate_from_frequencies(counts).to_image().save(content, "PNG")
    RunFolder(folder, problems).write(FILE, content.getvalue())
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
