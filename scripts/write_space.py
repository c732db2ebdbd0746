"""Write a folder that is a Space of Hugging Face's: python scripts/write_space.py FOLDER

Needs pip install -e '.[app]', and Python 3.11. docs/howto/space.md says what to do with the folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("app.py", "find_prompt.py", "fuse", "conf", "images", "LICENSE")
"""What the page needs; the Space runs app.py beside them, and installs no package of ours."""
HEADER = """---
title: FUSE
emoji: 🔎
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
suggested_hardware: cpu-basic
license: apache-2.0
short_description: Find text by search, scored by several models
---

Find text by search, scored by several models that do not share a tokenizer: captions of a picture,
text behind an embedding, prompts that make a model say a text. The models are small and part of
this Space.
"""


def write_space(folder: Path) -> None:
    """Write the Space, with the versions of Gradio and Python that are at work here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder.mkdir(parents=True)
    for name in PARTS:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
        else:
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    header = HEADER.format(gradio=version("gradio"), python=python)
    (folder / "README.md").write_text(header, encoding="utf-8")
    lines = "".join(f"{one}\n" for one in project["dependencies"])
    (folder / "requirements.txt").write_text(lines, encoding="utf-8")


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new one")
    folder = parser.parse_args().folder
    if folder.exists():
        sys.exit(f"{folder}: it is there already; name a new folder, or remove it")
    write_space(folder)
    print(folder)


if __name__ == "__main__":
    main()
