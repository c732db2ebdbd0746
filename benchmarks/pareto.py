"""`strategy=pareto` beside runs with single weights of equal work, on pictures of held-out
combinations.

For each picture one search keeps a population over n weights of fluency and scores n times as many
candidates as each of n greedy searches, one for each weight. dominated: the share of the single
searches' results that the front holds, or beats in one term without being worse in the other.
beaten: the share of the front's prompts that a single search's result beats so. area: what front,
and single results, dominate of the rectangle between the best and the worst losses of either, mean.
candidates, operations: of all single searches and of the population's, mean.

    python benchmarks/pareto.py --pictures 10
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pictures import draw
from runs import Models, Row, arguments, compose, find, mean, show

from fuse import Pareto, Result

Point = tuple[float, float]
"""The loss of fluency and that of the picture."""
CLIP = "demo_clip"


def main() -> None:
    options = arguments(
        __doc__,
        pictures={"type": int, "default": 10},
        first={"type": int, "default": 2_000_000, "help": "seed of the first picture"},
        methods={"default": "gcg,gibbs"},
        population={"type": int, "default": 8},
        candidates={"type": int, "default": 500, "help": "of each single search"},
    )
    models: Models = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        scenes = [draw(options.first + i, Path(folder)) for i in range(options.pictures)]
        for method in options.methods.split(","):
            found = [compared(options, method, scene["image"], models) for scene in scenes]
            rows.append(
                {"method": method} | {key: mean([r[key] for r in found]) for key in found[0]}
            )
    show(f"Pareto fronts of {options.pictures} pictures", rows, options.json)


def compared(options, method: str, image: str, models: Models) -> Row:
    """The figures of one picture."""
    count = options.population
    given = [f"image={image}", f"method={method}", f"secondary=[{CLIP}]"]
    limit = count * options.candidates
    front = find(
        *given,
        "strategy=pareto",
        f"strategy.population={count}",
        f"max_evaluations={limit}",
        f"steps={limit}",
        models=models,
    )
    singles = [single(options, given, factor, models) for factor in Pareto(count).factors]
    held = [(one.terms["primary"], one.terms[CLIP]) for one in front.front]
    alone = [(one.terms["primary"].loss, one.terms[CLIP].loss) for one in singles]
    ranges = [(min(values), max(values)) for values in zip(*held, *alone, strict=True)]
    return {
        "dominated": mean([any(beats(a, b, equal=True) for a in held) for b in alone]),
        "beaten": mean([any(beats(b, a) for b in alone) for a in held]),
        "front_area": area(held, ranges),
        "single_area": area(alone, ranges),
        "front_size": len(held),
        "candidates": front.evaluations,
        "single_candidates": sum(one.evaluations for one in singles),
        "gflop": front.operations / 1e9,
        "single_gflop": sum(one.operations for one in singles) / 1e9,
    }


def single(options, given: list[str], factor: float, models: Models) -> Result:
    """A greedy search with one weight of fluency."""
    weight = factor * compose(given)["primary"]["weight"]
    limits = [f"max_evaluations={options.candidates}", f"steps={options.candidates}"]
    return find(*given, *limits, "strategy=greedy", f"primary.weight={weight}", models=models)


def beats(one: Point, other: Point, equal: bool = False) -> bool:
    """Whether one is worse in nothing, and better in something or, if need be, equal."""
    return one[0] <= other[0] and one[1] <= other[1] and (equal or one != other)


def area(points: list[Point], ranges: list[Point]) -> float:
    """The share of a rectangle of losses that some point is not worse than."""
    (left, right), (low, high) = ranges
    covered, top = 0.0, high
    for x, y in sorted(points):
        if y < top:
            covered += (right - x) * (top - y)
            top = y
    return covered / max((right - left) * (high - low), 1e-12)


if __name__ == "__main__":
    main()
