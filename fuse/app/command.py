"""One call of the command line: compose, search, and put every mistake into a line."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fuse.app.config import COMPLAINTS, checked, explain, is_complaint, register_resolvers
from fuse.app.overrides import MULTIRUN, encoded, prepared, unquoted
from fuse.app.places import CONF
from fuse.app.run_folder import CONFIG, LIMITS, OUTPUT, VIEWS, differences, saved_config
from fuse.app.session import Session
from fuse.app.shard import new_folder
from fuse.app.sweep import FOLDER, named_folder, readable
from fuse.errors import FuseError

log = logging.getLogger(__name__)


def run(session: Session) -> None:
    """Make the runs that the command line asks for, one or those of a sweep."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its complaints, as we want them
    register_resolvers()
    decorate = hydra.main(version_base=None, config_path=str(CONF), config_name="config")
    compose_and_search = decorate(partial(_job, session))
    try:
        sys.argv[1:] = [*prepared(sys.argv[1:]), *into_same_folder(sys.argv[1:])]
        sys.argv[1:] += into_sweep_folder(sys.argv[1:])
        try:
            compose_and_search()
        except OSError as error:
            if session.began or is_complaint(error) or isinstance(error, BrokenPipeError):
                raise
            sys.argv += into_another_folder(error, session.problems)
            compose_and_search()
    except FuseError as error:
        session.fail(str(error))
    except (*COMPLAINTS, ValueError) as error:
        if "configure handler" in str(error):
            session.fail(f"the run's log cannot be written ({error.__context__})", 1)
        elif session.began and not is_complaint(error):
            raise
        else:  # nothing of ours was at work yet: Hydra complains of the command line
            session.fail(explain(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or "the run folder"
        session.fail(f"{where}: {error.strerror}; choose another folder")
    except Exception as error:
        if not set(MULTIRUN) & set(sys.argv):
            raise
        log.info("a sweep has broken off", exc_info=error)  # a launcher's worker was lost, say
        session.fail(f"the sweep has broken off ({type(error).__name__}: {error})", 1)
    finally:
        if set(MULTIRUN) & set(sys.argv):
            session.show_sweep(named_folder(sys.argv[1:]))


def _job(session: Session, config: DictConfig) -> float:
    """Make one run; a mistake in it lets the others of a sweep go on.

    Returns:
        Of a job of a sweep: what the sweep compares; inf where nothing was found.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode != RunMode.MULTIRUN:
        _run(session, config, folder)
        return 0.0
    overrides = readable(_overrides())
    with session.job(hydra_config.job.num, overrides, folder, str(config.metric)) as job:
        _run(session, config, folder)
    return math.inf if job.value is None else job.value


def _run(session: Session, config: DictConfig, folder: Path) -> None:
    """Make one run; show what is wrong with it."""
    session.began = True
    try:
        overrides = _overrides()
        plain = checked(config)
        if plain["resume"] is not None:
            plain = resumed(plain, folder, overrides)
            overrides = [
                *first_overrides(folder),
                *(one for one in overrides if _changes_a_run(one)),
            ]
        session.find(plain, folder, overrides)
    except FuseError as error:
        session.fail(str(error))
    except COMPLAINTS as error:
        session.fail(explain(error))
    except Exception as error:
        session.crash(error, folder)
    if session.stop.signal:
        raise SystemExit(session.exit_code)


def _overrides() -> list[str]:
    """Return the overrides of the job at work, as they were given: nothing in them is resolved."""
    given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(given)


def resumed(config: dict[str, Any], folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Return the config that a folder remembers, with the limits that the command line gives.

    Raises:
        FuseError: the command line asks for something else.
    """
    saved = saved_config(folder)
    if saved is None or not set(config) <= {*saved, *VIEWS}:
        raise FuseError(f"resume={config['resume']}: holds no {CONFIG}; give the folder of a run")
    given = [override.partition("=")[0].lstrip("+~") for override in overrides]
    wrong = [name for name in given if "@" in name or name == "experiment"]
    for text in differences(saved, config):
        if any(is_part(text.partition("=")[0], name) for name in given):
            wrong.append(text)
    if wrong:
        raise FuseError(
            f"resume={config['resume']}: the run has other options: {', '.join(wrong)}; "
            "leave them out"
        )
    free = {name: config[name] for name in (*LIMITS, *OUTPUT, *VIEWS) if name in given}
    new = {name: config[name] for name in VIEWS if name not in saved}
    scoring = {"workers": 1, **saved["scoring"]}  # how it is computed, not what
    if "scoring.workers" in given:
        scoring["workers"] = config["scoring"]["workers"]
    more = {"scoring": scoring, "resume": None, "dry_run": config["dry_run"]}
    return {**saved, **new, **free, **more}


def first_overrides(folder: Path) -> list[str]:
    """Return the overrides of a run as Hydra has kept them in its folder; none where it has not."""
    try:
        found = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        return []
    return [str(override) for override in found] if isinstance(found, list) else []


def _changes_a_run(override: str) -> bool:
    """Whether an override of a resume says when the run ends, or what is told of it."""
    return override.removeprefix("++").partition("=")[0] in (*LIMITS, *OUTPUT)


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
    if not named or named[-1] in ("null", "") or set(MULTIRUN) & set(arguments):
        return []
    folder = Path(unquoted(named[-1])).expanduser()
    if not (folder / CONFIG).is_file():
        raise FuseError(f"resume={named[-1]}: holds no {CONFIG}; give the folder of a run")
    return [f"hydra.run.dir={encoded(str(folder))}", "hydra.output_subdir=null"]


def into_sweep_folder(arguments: list[str]) -> list[str]:
    """Return the command line of a sweep into a new folder, where it names none."""
    if not set(MULTIRUN) & set(arguments) or named_folder(arguments) is not None:
        return []
    folder = new_folder(datetime.now().strftime("multirun/%Y-%m-%d/%H-%M-%S"))
    return [f"{FOLDER}{encoded(folder)}"]


def into_another_folder(error: OSError, problems: list[str]) -> list[str]:
    """Return the command line of a run whose folder cannot be written: a temporary one."""
    other = tempfile.mkdtemp(prefix="fuse-")
    reason = error.strerror or type(error).__name__
    problems.append(
        f"{error.filename or 'the run folder'}: could not be written ({reason}); "
        f"the results are in {other}"
    )
    value = encoded(other)
    return [f"hydra.run.dir={value}", f"hydra.sweep.dir={value}", "hydra.output_subdir=null"]
