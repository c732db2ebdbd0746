"""What a configuration needs of the hub: told before anything is loaded where it cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import hub
from fuse.app.hints import Config
from fuse.errors import FuseError

GGUF = ".gguf"


class NotToBeHadError(FuseError):
    """What every search of a run needs cannot be had, so that none need be tried."""


@dataclass(frozen=True)
class Wanted:
    """A model that the configuration asks for.

    Args:
        key: of its entry.
        entry: its options.
        repository: of the hub; None where the model is a folder, or comes from elsewhere.
        files: names that the file of its weights may have; empty for those that are usual.
    """

    key: str
    entry: Config
    repository: str | None
    files: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether nothing has to be fetched."""
        if self.repository is None:
            return True
        return hub.is_here(self.repository, *self.files, revision=self.entry["revision"])

    def not_here(self, reason: str) -> str:
        """Return one line about it where it cannot be fetched."""
        assert self.repository is not None
        file = self.files[0] if self.files else ""
        line = hub.not_here(self.repository, reason, file, self.entry["revision"])
        return f"{self.key}.{line}"


def entries(config: Config) -> dict[str, Config]:
    """Return the entry of every model that a run loads, by its key."""
    found = {"primary": config["primary"]}
    for name, entry in config["secondary"].items():
        found[f"secondary.{name}"] = entry
    if "caption" in (config["method"]["name"], config["init"]):
        found["captioner"] = config["captioner"]
    draft = config["scoring"].get("draft") or {}
    if draft.get("model_id") is not None:
        found["scoring.draft"] = {**config["primary"], **draft}
    return found


def wanted(config: Config) -> list[Wanted]:
    """Return every model that a run loads, and where it is."""
    found = []
    for key, entry in entries(config).items():
        model_id = entry["model_id"]
        if entry.get("kind") == "open_clip" and "/" not in model_id:
            found.append(_architecture(key, entry))
        elif not hub.is_hub_id(model_id):
            found.append(Wanted(key, entry, None))
        elif model_id.endswith(GGUF):
            repository, _, file = model_id.rpartition("/")
            found.append(Wanted(key, entry, repository, (file,)))
        else:
            found.append(Wanted(key, entry, model_id.removeprefix("hf-hub:")))
    return found


@contextmanager
def reaching(config: Config) -> Iterator[None]:
    """Load what a configuration asks for, within a context: from the caches where the hub is
    silent.

    Raises:
        NotToBeHadError: with one line for each model that is not here and cannot be fetched, and
            for each `revision` of a folder.
    """
    models = wanted(config)
    check_revisions(models)
    asks = any(model.repository for model in models) or _other_repositories(config)
    reason = hub.why_unreachable() if asks else ""
    if not reason:
        yield
        return
    lines = [model.not_here(reason) for model in models if not model.is_here]
    if lines:
        raise NotToBeHadError("\n".join(lines))
    with hub.working_offline():
        yield


def check_revisions(models: list[Wanted]) -> None:
    """Raise NotToBeHadError, with a line each, where folders are asked for a revision."""
    lines = []
    for model in models:
        revision = model.entry["revision"]
        if revision is not None and not hub.is_hub_id(model.entry["model_id"]):
            lines.append(
                f"{model.key}.revision={revision}: {model.entry['model_id']} is no repository of "
                "the hub, and has no revisions; leave it out"
            )
    if lines:
        raise NotToBeHadError("\n".join(lines))


def _architecture(key: str, entry: Config) -> Wanted:
    """Return where the weights of an architecture of open_clip are."""
    try:
        import open_clip

        from fuse.models.open_clip_loading import repository_of, weights_of_tag
    except ImportError:
        return Wanted(key, entry, None)
    model_id, pretrained = entry["model_id"], entry["pretrained"]
    repository = repository_of(open_clip, model_id, pretrained)
    files = weights_of_tag(open_clip, model_id, pretrained)
    return Wanted(key, entry, repository, files)


def _other_repositories(config: Config) -> bool:
    """Whether fitted adapters, or the words to fit one on, may come from the hub."""
    for name in ("shared", "corpus"):
        value: Any = config["adapter"].get(name)
        if value is not None and not Path(value).expanduser().exists():
            return True
    return False
