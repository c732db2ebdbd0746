"""How rows of unlike lengths are read together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby

PACK = {"cpu": 1 << 10, "cuda": 1 << 14}
"""How many tokens of packed rows are read at once; on a CPU so few that what is made of them stays in its caches."""


def packs(sizes: Sequence[int], count: int, tokens: int) -> list[list[int]]:
    """As few batches as hold at most `count` rows and about `tokens` tokens, one as large as another, of rows sorted by `sizes`."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    total = max(sum(sizes), 1)
    number = -(-total // tokens)
    found = []
    for _, part in groupby(zip(order, accumulate(sizes[i] for i in order), strict=True), key=lambda pair: -(-pair[1] * number // total)):
        rows = [i for i, _ in part]
        found += [rows[i : i + count] for i in range(0, len(rows), count)]
    return found


def batches(sizes: Sequence[int], count: int, spare: float) -> list[list[int]]:
    """At most `count` rows at a time that have about as many tokens to read, since shorter ones are filled up.

    Of all ways to cut the rows, sorted by these `sizes`, between unlike ones, that which reads the least, with `spare` tokens
    added for each batch.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    blocks: list[list[int]] = []
    for _, alike in groupby(order, key=lambda i: sizes[i]):
        rows = list(alike)
        blocks += [rows[i : i + count] for i in range(0, len(rows), count)]
    # The least that the first blocks cost, and how many of them stand before their last batch
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(blocks) + 1):
        together, longest = 0, sizes[blocks[stop - 1][0]]
        choices: list[tuple[float, int]] = []
        for begin in reversed(range(stop)):
            together += len(blocks[begin])
            if together > count:
                break
            choices.append((best[begin][0] + together * longest + spare, begin))
        best.append(min(choices))
    found: list[list[int]] = []
    stop = len(blocks)
    while stop:
        begin = best[stop][1]
        found.append([i for block in blocks[begin:stop] for i in block])
        stop = begin
    return found[::-1]
