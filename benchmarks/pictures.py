"""Pictures of the drawn world with what is right and wrong to say of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from runs import ROOT


def draw(seed: int, folder: Path, seen: bool = False) -> dict:
    """One picture, FOLDER/SEED.png, by the script that users have; of a combination that no training saw, unless `seen`."""
    command = [sys.executable, str(ROOT / "scripts/draw_scene.py"), "--seed", str(seed), "--out", str(folder)]
    subprocess.run(command if seen else [*command, "--heldout"], check=True, stdout=subprocess.DEVNULL)
    return {"image": str(folder / f"{seed}.png"), **json.loads((folder / f"{seed}.json").read_text())}


def found(prompt: str, scene: dict) -> tuple[float, float]:
    """The share of right words found, and the share of right ones among all that were found (0 if none was)."""
    told = set(re.findall(r"[a-z]+", prompt.lower()))
    right, wrong = len(told & set(scene["words"])), len(told & set(scene["wrong"]))
    return right / len(scene["words"]), right / (right + wrong) if right + wrong else 0.0
