"""From the entry of a model in the configuration to its term in the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from fuse.app.schema import Config
from fuse.app.values import naming
from fuse.errors import FuseError
from fuse.images import ReadingOptions, open_image
from fuse.losses import NLL, ClassNLL, CosineDistance, Loss
from fuse.models import Captioner, Model, chat
from fuse.options import options_of
from fuse.registry import LM_LOSSES, MODELS
from fuse.term import Term
from fuse.text.template import NONE

if TYPE_CHECKING:
    from PIL.Image import Image

MIXED = "mixed_"
"""Begins a dtype in which candidates are scored, the best few of them again in float32."""
HELD = ("revision", "device_map", "attn_implementation", "quantization")
"""Options of `LoadOptions` that the loading function is given where they are set."""
Models = dict[tuple[Any, ...], "Model | Captioner"]
"""What was loaded, by its kind, its name, its device and its dtype."""
M = TypeVar("M", bound="Model | Captioner")
Loader = Callable[[], Any]
"""Loads the model of an entry."""


# From an entry to its model and its loss. What is sought is looked at before weights are loaded, so
# that a mistake is reported at once.
def _fluency_or_label(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    kind = LM_LOSSES[config["loss"] or ("cross_entropy" if config["label"] else "nll")]
    with naming(key):
        loss = kind(**{field.name: config[field.name] for field in dataclasses.fields(kind)})
    return load_model(), loss


def _likeness_to_image(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    image = required_image(config, key)
    model = load_model()
    return model, CosineDistance(model.embed_images([image])[0])


def _likeness_to_text(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    if not config["target"]:
        raise FuseError(
            f'target=null: {key} needs a text whose meaning is sought; give target="TEXT"'
        )
    model = load_model()
    return model, CosineDistance(model.embed_texts([config["target"]])[0])


def _class(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    model = load_model()
    with naming(key):
        return model, ClassNLL(model.class_index(config["target"]))


def _fluency(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    return load_model(), NLL()


GOALS: dict[str, Callable[[Config, str, Loader], tuple[Model, Loss[Any]]]] = {
    "fluency or label": _fluency_or_label,
    "fluency": _fluency,
    "image": _likeness_to_image,
    "text": _likeness_to_text,
    "class": _class,
}
"""What is sought with a model, by `Model.goal`."""


def term_of(config: Config, key: str, models: Models) -> Term:
    """Return the term of one entry of the configuration."""
    kind, precise = MODELS[config["kind"]], None
    goal = GOALS[kind.goal]
    model, loss = goal(config, key, lambda: load(kind, config, key, models))
    if config["dtype"].startswith(MIXED):
        finer = {**config, "dtype": "float32", "quantization": "none"}
        precise, loss = goal(finer, key, lambda: load(kind, finer, key, models))
    with naming(key):
        return Term(
            model,
            loss,
            weight=config["weight"],
            **text_around(config, model),
            batch_size=config["batch_size"],
            precise=precise,
            prefix_cache=config["prefix_cache"],
            packing=config["packing"],
        )


def text_around(config: Config, model: Model) -> dict[str, Any]:
    """Return the options of a `Template`: those of an entry, or what its messages make of them."""
    if config["template"] == "plain":
        return {name: config[name] for name in ("prefix", "suffix", "start", "join")}
    prefix, suffix = chat.text_around(model.vocabulary.tokenizer, config["messages"])
    return {"prefix": prefix, "suffix": suffix, "start": NONE, "join": NONE}


def load(kind: type[M], config: Config, key: str, models: Models) -> M:
    """Return the model of an entry."""
    where = device_and_dtype(config, key)
    own = getattr(kind, "load_options", None)
    options = {name: config[name] for name in options_of(own)} if own else {}
    for name in HELD:
        if config[name] not in (None, "none"):
            options[name] = config[name]
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

    def replaced(entry: Config) -> dict[str, Any]:
        path = entry.get("image")
        if isinstance(path, str) and path not in opened:
            opened[path] = open_image(path, options=reading)
        return {**entry, "image": opened[path]} if isinstance(path, str) else dict(entry)

    secondaries = {name: replaced(entry) for name, entry in config["secondary"].items()}
    captions = "caption" in (config["method"]["name"], config["init"])
    config = replaced(config) if captions else config
    return {**config, "primary": replaced(config["primary"]), "secondary": secondaries}


def required_image(config: Config, key: str) -> Image:
    """Return the opened picture of an entry that looks at one."""
    if config["image"] is None:
        raise FuseError(
            f"image=null: {key} looks at a picture; give image=PATH, or choose models without one"
        )
    return cast("Image", config["image"])


def device_and_dtype(config: Config, key: str) -> dict[str, Any]:
    """Return the `dtype` and `device` of an entry."""
    dtype = getattr(torch, config["dtype"].removeprefix(MIXED))
    device = config["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FuseError(
            f"{key}.device={device}: not to be had here ({reason}); give device=auto or device=cpu"
        ) from None
    return {"dtype": dtype, "device": device}
