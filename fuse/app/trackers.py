"""Trackers of experiments: each is told of every step, and of the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fuse.app.hints import Config
from fuse.errors import FuseError
from fuse.types import Step

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Whoever wants to know of the steps of a search."""

    def log(self, step: Step, numbers: Mapping[str, float]) -> None:
        """Take note of one step.

        Args:
            numbers: its losses and its speed, by their names.
        """

    def close(self) -> None:
        """Take note of the end."""


class TensorBoard:
    """Writes to `tensorboard/` in the run folder."""

    def __init__(self, wanted: bool, folder: Path, name: str, config: Config) -> None:
        module = needed("tensorboard", wanted, "torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: Step, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step.step)
        self._writer.add_text("prompt", step.prompt, step.step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Writes a run of Weights & Biases into the run folder; WANDB_MODE=online sends it."""

    def __init__(self, project: str, folder: Path, name: str, config: Config) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._run = needed("wandb", project).init(
            project=project,
            name=name,
            dir=str(folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
        )

    def log(self, step: Step, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "prompt": step.prompt}, step=step.step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Writes a run of Trackio into its local store, for `trackio show`."""

    def __init__(self, project: str, folder: Path, name: str, config: Config) -> None:
        trackio = needed("trackio", project)
        self._run = trackio.init(project=project, name=name, config=dict(config))

    def log(self, step: Step, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "prompt": step.prompt}, step=step.step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Any, Path, str, Config], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""By the key that turns each on."""


def needed(key: str, value: object, module: str = "") -> Any:
    """Return the module of a tracker.

    Raises:
        FuseError: it is not installed.
    """
    try:
        return import_module(module or key)
    except ImportError as error:
        raise FuseError(
            f"{key}={value}: needs the package {key}; pip install 'fuse-prompt[{key}]'"
        ) from error


class Tracked:
    """A search's trackers: called after every step. One that fails is left out, with a warning.

    Raises:
        FuseError: the package of one is not installed.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._trackers: dict[str, Tracker] = {}
        name = "-".join(folder.parts[-2:])
        for key, kind in TRACKERS.items():
            if config[key]:
                made = self._attempt(key, kind, config[key], folder, name, config)
                if made is not None:
                    self._trackers[key] = made

    def __call__(self, step: Step) -> None:
        """Tell the trackers of one step."""
        numbers = {"loss": step.loss, "best_loss": step.best_loss}
        numbers |= {f"terms/{name}": loss for name, loss in step.terms.items()}
        if step.seconds > 0:
            numbers["candidates_per_second"] = step.evaluations / step.seconds
        for key, tracker in list(self._trackers.items()):
            self._attempt(key, tracker.log, step, numbers)

    def close(self) -> None:
        """Tell the trackers of the end."""
        for key, tracker in list(self._trackers.items()):
            self._attempt(key, tracker.close)

    def _attempt(self, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a tracker; what it raises costs the tracker, and not the run."""
        try:
            return function(*arguments)
        except FuseError:
            raise
        except Exception as error:
            log.debug("a tracker has failed", exc_info=True)
            log.warning("%s: it is left out (%s: %s)", key, type(error).__name__, error)
            self._trackers.pop(key, None)
            return None


def all_of(listeners: Sequence[Callable[[Step], object]]) -> Callable[[Step], None]:
    """Return one listener that tells several of every step."""

    def tell(step: Step) -> None:
        for listener in listeners:
            listener(step)

    return tell
