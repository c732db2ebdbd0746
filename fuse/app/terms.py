"""From the entry of a model in the configuration to its term in the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from fuse.app.values import Config, naming, number, pick, truth, whole_number
from fuse.errors import FuseError
from fuse.losses import NLL, ClassNLL, CosineDistance, Loss
from fuse.models import Captioner, Model, open_image
from fuse.registry import LM_LOSSES, MODELS
from fuse.term import Term
from fuse.text.template import AUTO, SPACE

if TYPE_CHECKING:
    from PIL.Image import Image

MIXED = "mixed_"
"""Begins a dtype in which candidates are scored, the best few of them again in float32."""
Models = dict[tuple[Any, ...], "Model | Captioner"]
"""What was loaded, by its kind, its name, its device and its dtype."""
M = TypeVar("M", bound="Model | Captioner")
Loader = Callable[[], Any]
"""Loads the model of an entry."""


# From an entry to its model and its loss. What is sought is looked at before weights are loaded, so
# that a mistake is reported at once.
def _fluency_or_label(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    name = config["loss"] or ("cross_entropy" if config["label"] else "nll")
    kind = pick(LM_LOSSES, name, f"{key}.loss")
    checks = {
        "label": lambda value, _: str(value or ""),
        "tau": number,
        "perplexity_weight": number,
    }
    options = {}
    with naming(key):
        for field in dataclasses.fields(kind):
            options[field.name] = checks[field.name](config[field.name], field.name)
        loss = kind(**options)
    return load_model(), loss


def _likeness_to_image(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    image = image_of(config, key)
    model = load_model()
    return model, CosineDistance(model.embed_images([image])[0])


def _likeness_to_text(config: Config, key: str, load_model: Loader) -> tuple[Model, Loss[Any]]:
    if not config["target"]:
        raise FuseError(
            f'target=null: {key} needs a text whose meaning is sought; give target="TEXT"'
        )
    model = load_model()
    return model, CosineDistance(model.embed_texts([str(config["target"])])[0])


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
    if not isinstance(config, Mapping):
        raise FuseError(
            f"{key}={config}: expected an entry with model_id and weight; to leave it out, "
            "choose others in secondary=[...]"
        )
    kind, precise = pick(MODELS, config["kind"], f"{key}.kind"), None
    goal = GOALS[kind.goal]
    model, loss = goal(config, key, lambda: load(kind, config, key, models))
    if str(config["dtype"]).startswith(MIXED):
        finer = {**config, "dtype": "float32"}
        precise, loss = goal(finer, key, lambda: load(kind, finer, key, models))
    with naming(key):
        return Term(
            model,
            loss,
            weight=number(config["weight"], "weight"),
            prefix=str(config["prefix"] or ""),
            suffix=str(config["suffix"] or ""),
            start=str(config.get("start", AUTO)),
            join=str(config.get("join", SPACE)),
            batch_size=whole_number(config["batch_size"], "batch_size", at_least=1),
            precise=precise,
            prefix_cache=truth(config["prefix_cache"], "prefix_cache"),
            packing=truth(config["packing"], "packing"),
        )


def load(kind: type[M], config: Config, key: str, models: Models) -> M:
    """Return the model of an entry."""
    where = device_and_dtype(config, key)
    options = {name: config[name] for name in getattr(kind, "load_options", ())}
    known = (kind, str(config["model_id"]), *where.values(), *options.values())
    if known not in models:
        with naming(key):
            models[known] = kind.load(str(config["model_id"]), **where, **options)
    return cast(M, models[known])


def image_of(config: Config, key: str) -> Image:
    """Return the picture that an entry looks at."""
    if not config["image"]:
        raise FuseError(
            f"image=null: {key} looks at a picture; give image=PATH, or choose models without one"
        )
    return open_image(str(config["image"]))


def device_and_dtype(config: Config, key: str) -> dict[str, Any]:
    """Return the `dtype` and `device` of an entry."""
    dtypes = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    dtypes |= {MIXED + name: dtypes[name] for name in ("float16", "bfloat16")}
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
    return {"dtype": pick(dtypes, config["dtype"], f"{key}.dtype"), "device": device}
