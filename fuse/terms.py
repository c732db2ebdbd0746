"""From the entry of a model in the configuration to its term in the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from fuse.errors import FuseError
from fuse.losses import LM_LOSSES, NLL, ClassNLL, CosineDistance, Loss
from fuse.models import CLIP, Captioner, CausalLM, Classifier, MaskedLM, Model, OpenCLIP, SentenceEncoder, open_image
from fuse.objective import Term
from fuse.values import Config, naming, number, pick, whole_number

if TYPE_CHECKING:
    from PIL.Image import Image

MIXED = "mixed_"
"""Begins a dtype in which candidates are scored, the best few of them again in float32."""
Models = dict[tuple[Any, ...], "Model | Captioner"]
"""What was loaded, by its kind, its name and its place."""
M = TypeVar("M", bound="Model | Captioner")


# A kind of model: from its entry to the model, and from both to the loss. The target is looked at before weights are
# loaded, so that a wrong one is told at once.
def _load_causal_lm(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    name = config["loss"] or ("cross_entropy" if config["label"] else "nll")
    kind = pick(LM_LOSSES, name, f"{key}.loss")
    checks = {"label": lambda value, _: str(value or ""), "tau": number, "perplexity_weight": number}
    with naming(key):
        loss = kind(**{field.name: checks[field.name](config[field.name], field.name) for field in dataclasses.fields(kind)})
    return load(CausalLM, config, key, models), loss


def _load_clip(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    image = image_of(config, key)
    model = load(CLIP, config, key, models)
    return model, CosineDistance(model.embed_images([image])[0])


def _load_open_clip(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    image = image_of(config, key)
    model = load(OpenCLIP, config, key, models, pretrained=config["pretrained"])
    return model, CosineDistance(model.embed_images([image])[0])


def _load_sentence(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    if not config["target"]:
        raise FuseError(f'target=null: {key} needs a text whose meaning is sought; give target="TEXT"')
    model = load(SentenceEncoder, config, key, models)
    return model, CosineDistance(model.embed_texts([str(config["target"])])[0])


def _load_classifier(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    model = load(Classifier, config, key, models)
    with naming(key):
        return model, ClassNLL(model.class_index(config["target"]))


def _load_masked_lm(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    return load(MaskedLM, config, key, models), NLL()


KINDS: dict[str, Callable[[Config, str, Models], tuple[Model, Loss[Any]]]] = {
    "causal_lm": _load_causal_lm,
    "clip": _load_clip,
    "open_clip": _load_open_clip,
    "sentence": _load_sentence,
    "classifier": _load_classifier,
    "masked_lm": _load_masked_lm,
}
"""Every kind of model by its name in the entries of `conf/primary` and `conf/secondary`."""


def term_of(config: Config, key: str, models: Models) -> Term:
    """The term of one entry of the configuration."""
    if not isinstance(config, Mapping):
        raise FuseError(f"{key}={config}: expected an entry with model_id and weight; to leave it out, choose others in secondary=[...]")
    kind, precise = pick(KINDS, config["kind"], f"{key}.kind"), None
    model, loss = kind(config, key, models)
    if str(config["dtype"]).startswith(MIXED):
        precise, loss = kind({**config, "dtype": "float32"}, key, models)
    with naming(key):
        return Term(
            model,
            loss,
            weight=number(config["weight"], "weight"),
            prefix=str(config["prefix"] or ""),
            suffix=str(config["suffix"] or ""),
            batch_size=whole_number(config["batch_size"], "batch_size", at_least=1),
            precise=precise,
        )


def load(kind: type[M], config: Config, key: str, models: Models, **options: Any) -> M:
    """The model of an entry."""
    place = place_of(config, key)
    known = (kind, str(config["model_id"]), *place.values(), *options.values())
    if known not in models:
        with naming(key):
            models[known] = kind.load(str(config["model_id"]), **place, **options)
    return cast(M, models[known])


def image_of(config: Config, key: str) -> Image:
    """The picture that an entry looks at."""
    if not config["image"]:
        raise FuseError(f"image=null: {key} looks at a picture; give image=PATH, or choose models without one")
    return open_image(str(config["image"]))


def place_of(config: Config, key: str) -> dict[str, Any]:
    """The `dtype` and `device` of an entry."""
    dtypes = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    dtypes |= {MIXED + name: dtypes[name] for name in ("float16", "bfloat16")}
    device = config["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FuseError(f"{key}.device={device}: not to be had here ({reason}); give device=auto or device=cpu") from None
    return {"dtype": pick(dtypes, config["dtype"], f"{key}.dtype"), "device": device}
