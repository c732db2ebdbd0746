"""How rows are put into batches that are read in one forward pass each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, groupby

MAX_PACKED_TOKENS = {"cpu": 1 << 10, "cuda": 1 << 14}
"""About how many tokens of packed rows are read at once; on a CPU its caches hold what is computed
of them.
"""


def packed_batches(sizes: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Divide rows into few packed batches, which have no padding.

    Args:
        sizes: how many tokens of each row are read.
        max_rows, max_tokens: how many a batch holds; the tokens are exceeded by less than one row.

    Returns:
        The rows' indices, sorted by size, in batches of about equally many tokens.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    ends = list(accumulate(sizes[i] for i in order))
    total = max(sum(sizes), 1)
    count = -(-total // max_tokens)
    found = []
    for _, part in groupby(
        zip(order, ends, strict=True), key=lambda pair: -(-pair[1] * count // total)
    ):
        rows = [i for i, _ in part]
        found += [rows[i : i + max_rows] for i in range(0, len(rows), max_rows)]
    return found


def padded_batches(sizes: Sequence[int], max_rows: int, launch_tokens: float) -> list[list[int]]:
    """Divide rows into padded batches, in which shorter rows are filled up to the longest.

    Of all ways to cut the rows, sorted by size, between unequal ones, take the one that reads the
    fewest tokens, with `launch_tokens` added for each batch; a dynamic programme over the cuts.

    Args:
        sizes: how many tokens of each row are read.
        max_rows: how many rows a batch holds.
        launch_tokens: how many tokens could be read in the time that a forward pass costs beside
            its operations.

    Returns:
        The rows' indices in batches.
    """
    blocks = _blocks_of_equal_size(sizes, max_rows)
    # The least cost of the first blocks, and how many of them stand before their last batch
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(blocks) + 1):
        num_rows, longest = 0, sizes[blocks[stop - 1][0]]
        choices: list[tuple[float, int]] = []
        for start in reversed(range(stop)):
            num_rows += len(blocks[start])
            if num_rows > max_rows:
                break
            choices.append((best[start][0] + num_rows * longest + launch_tokens, start))
        best.append(min(choices))
    found: list[list[int]] = []
    stop = len(blocks)
    while stop:
        start = best[stop][1]
        found.append(list(chain.from_iterable(blocks[start:stop])))
        stop = start
    return found[::-1]


def _blocks_of_equal_size(sizes: Sequence[int], max_rows: int) -> list[list[int]]:
    """Return the rows' indices, sorted by size, in blocks of equal size with at most `max_rows`."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    blocks: list[list[int]] = []
    for _, equal in groupby(order, key=lambda i: sizes[i]):
        rows = list(equal)
        blocks += [rows[i : i + max_rows] for i in range(0, len(rows), max_rows)]
    return blocks
