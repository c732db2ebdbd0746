"""Pictures of the drawn world with what is right and wrong to say of them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from runs import ROOT, Models, Row, find, mean

from fuse import Result

Found = list[tuple[Result, dict]]
"""Results, each with the scene that was searched."""


def draw(seed: int, folder: Path, seen: bool = False) -> dict:
    """One picture, FOLDER/SEED.png, by the script that users have; of a combination that no
    training saw, unless `seen`.
    """
    command = [
        sys.executable,
        str(ROOT / "scripts/draw_scene.py"),
        "--seed",
        str(seed),
        "--out",
        str(folder),
    ]
    subprocess.run(
        command if seen else [*command, "--heldout"], check=True, stdout=subprocess.DEVNULL
    )
    return {
        "image": str(folder / f"{seed}.png"),
        **json.loads((folder / f"{seed}.json").read_text()),
    }


def search_all(
    name: str, scenes: Sequence[dict], overrides: Sequence[str], models: Models, verbose: bool
) -> Found:
    """The search of every scene; what is found is shown, after the run's name, if `verbose`."""
    results = []
    for scene in scenes:
        result = find(f"image={scene['image']}", *overrides, models=models)
        results.append((result, scene))
        if verbose:
            recall, exact = found(result.prompt, scene)
            print(
                f"{name} {recall:.2f} {exact:.2f} {result.seconds:.1f}s | "
                f"{result.prompt} | {scene['caption']}",
                flush=True,
            )
    return results


def words(results: Found) -> float:
    """The mean share of right words found."""
    return mean([found(result.prompt, scene)[0] for result, scene in results])


def cost(results: Found) -> Row:
    """The perplexity of the prompts under the primary, and the median time of the searches."""
    return {
        "perplexity": math.exp(mean([result.terms["primary"].loss for result, _ in results])),
        "seconds": median(result.seconds for result, _ in results),
    }


def found(prompt: str, scene: dict) -> tuple[float, float]:
    """The share of right words found, and the share of right ones among all that were found (0 if
    none was).
    """
    words_found = set(re.findall(r"[a-z]+", prompt.lower()))
    right, wrong = len(words_found & set(scene["words"])), len(words_found & set(scene["wrong"]))
    return right / len(scene["words"]), right / (right + wrong) if right + wrong else 0.0
