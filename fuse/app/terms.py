"""From the entry of a model in the configuration to its term in the objective."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from fuse.adapters import Adapter
from fuse.app.goals import GOALS
from fuse.app.hints import Config
from fuse.app.places import cache
from fuse.app.shard import Shard, own_gpu
from fuse.app.values import naming
from fuse.errors import FuseError
from fuse.images import ReadingOptions, open_image
from fuse.models import Captioner, Model, chat
from fuse.models.replica import replica
from fuse.options import options_of
from fuse.registry import MODELS
from fuse.term import Term
from fuse.text.template import NONE

if TYPE_CHECKING:
    from PIL.Image import Image

MIXED = "mixed_"
"""Begins a dtype in which candidates are scored, the best few of them again in float32."""
HELD = ("revision", "device_map", "attn_implementation", "quantization")
"""Options of `LoadOptions` that the loading function is given where they are set."""
Models = dict[tuple[Any, ...], "Model | Captioner | Adapter"]
"""What was loaded or fitted, by its kind and all that it depends on."""
M = TypeVar("M", bound="Model | Captioner")


def term_of(config: Config, key: str, models: Models, workers: int = 1) -> Term:
    """Return the term of one entry of the configuration.

    Args:
        workers: how many threads score its rows, each with a copy of the network.
    """
    kind, precise = MODELS[config["kind"]], None
    goal = GOALS[kind.goal].sought
    model, loss = goal(config, key, lambda: load(kind, config, key, models))
    if config["dtype"].startswith(MIXED):
        finer = {**config, "dtype": "float32", "quantization": "none"}
        precise, loss = goal(finer, key, lambda: load(kind, finer, key, models))
    with naming(key):
        return Term(
            model,
            loss,
            weight=config["weight"],
            **text_around(config, model.vocabulary.tokenizer),
            batch_size=config["batch_size"],
            precise=precise,
            prefix_cache=config["prefix_cache"],
            packing=config["packing"],
            replicas=_replicas(model, workers - 1),
        )


def _replicas(model: Model, count: int) -> list[Model]:
    """Return so many copies of a model, which are made once; on several GPUs that are all of this
    process one GPU after the other.
    """
    own, num_gpus = model.device, torch.cuda.device_count()
    for number in range(len(model.replicas) + 1, count + 1):
        device = own
        if own.type == "cuda" and num_gpus > 1 and Shard.of_process().num == 1:
            device = torch.device("cuda", ((own.index or 0) + number) % num_gpus)
        model.replicas.append(replica(model, device))
    return model.replicas[:count]


def text_around(config: Config, tokenizer: Any) -> dict[str, Any]:
    """Return the options of a `Template`: those of an entry, or what its messages make of them."""
    if config["template"] == "plain":
        return {name: config[name] for name in ("prefix", "suffix", "start", "join")}
    prefix, suffix = chat.text_around(tokenizer, config["messages"])
    return {"prefix": prefix, "suffix": suffix, "start": NONE, "join": NONE}


def load(kind: type[M], config: Config, key: str, models: Models) -> M:
    """Return the model of an entry."""
    where = device_and_dtype(config, key)
    own = getattr(kind, "load_options", None)
    options = {name: config[name] for name in options_of(own)} if own else {}
    for name in HELD:
        if config[name] not in (None, "none"):
            options[name] = config[name]
    if getattr(kind, "keeps_proof", False):
        options["proof_dir"] = Path(cache("gradients"))
    known = (kind, config["model_id"], *where.values(), *options.items())
    if known not in models:
        with naming(key):
            models[known] = kind.load(config["model_id"], **where, **options)
    return cast(M, models[known])


def with_pictures(config: Config) -> dict[str, Any]:
    """Return a configuration with pictures, opened once each, in the place of their paths.

    Raises:
        FuseError: one cannot be read.
    """
    options = {name: config[name] for name in options_of(ReadingOptions)}
    reading = ReadingOptions(**options)
    opened: dict[str, Image] = {}

    def picture(path: str) -> Image:
        if path not in opened:
            opened[path] = open_image(path, options=reading)
        return opened[path]

    def replaced(entry: Config) -> dict[str, Any]:
        path: Any = entry.get("image")
        if isinstance(path, list):
            path = [picture(one) for one in path]
        elif isinstance(path, str):
            path = picture(path)
        return {**entry, "image": path} if path is not None else dict(entry)

    secondaries = {}
    for name, entry in config["secondary"].items():
        secondaries[name] = replaced(entry)
    captions = "caption" in (config["method"]["name"], config["init"])
    primary = replaced(config["primary"])
    config = replaced(config) if captions else config
    return {**config, "primary": primary, "secondary": secondaries}


def device_and_dtype(config: Config, key: str) -> dict[str, Any]:
    """Return the `dtype` and `device` of an entry."""
    dtype = getattr(torch, config["dtype"].removeprefix(MIXED))
    device = config["device"]
    if device == "auto":
        device = own_gpu(torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FuseError(
            f"{key}.device={device}: not to be had here ({reason}); give device=auto or device=cpu"
        ) from None
    return {"dtype": dtype, "device": device}
