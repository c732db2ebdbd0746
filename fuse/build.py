"""From a plain configuration (nested dictionaries, as `conf/` gives them) to the objects of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from fuse.adapter import ADAPTERS
from fuse.adapter.cache import load_or_fit
from fuse.constraints import Constraints
from fuse.errors import FuseError
from fuse.loop import check_combination, check_objective
from fuse.losses import LM_LOSSES, NLL, ClassNLL, CosineDistance, Loss
from fuse.methods import METHODS, Method
from fuse.methods.base import random_prompt
from fuse.models import CLIP, Captioner, CausalLM, Classifier, MaskedLM, Model, OpenCLIP, SentenceEncoder, open_image
from fuse.objective import PRIMARY, Guide, Objective, Term
from fuse.strategies import STRATEGIES, Beam, Strategy

if TYPE_CHECKING:
    from PIL.Image import Image

RANDOM_LENGTH = 8
"""Free tokens of init=random where the method begins with none."""

Config = Mapping[str, Any]
Models = dict[tuple[Any, ...], "Model | Captioner"]
"""What was loaded, by its kind, its name and its place."""
T = TypeVar("T")
M = TypeVar("M", bound="Model | Captioner")


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that `fuse.search` takes."""

    objective: Objective
    method: Method
    strategy: Strategy
    options: dict[str, Any]
    """What it takes by name."""

    @property
    def steps(self) -> int:
        """The most steps that the run can take."""
        refine = self.options["refine"]
        return self.options["steps"] if self.options["steps"] is not None else self.method.steps + (refine.steps if refine else 0)


def build(config: Config, progress: Callable[[list[str]], Iterable[str]] = iter, models: Models | None = None) -> Run:
    """The run that a composed configuration describes; adapters are fitted last, when all else is known to be right.

    Models that are in `models` are not loaded again; those that are loaded join it.

    Raises:
        FuseError: a value that cannot be used; its message names the key.
    """
    models = {} if models is None else models
    method = _method(config, models)
    refine = _refine(config["refine"]) if config.get("refine") else None
    strategy = _strategy(config["strategy"], method)
    check_combination(method, strategy)
    steps = None if config["steps"] is None else _whole_number(config["steps"], "steps")
    stop_loss = None if config["stop_loss"] is None else _number(config["stop_loss"], "stop_loss")
    generator = torch.Generator().manual_seed(_whole_number(config["seed"], "seed"))
    objective = Objective(
        _term(config[PRIMARY], PRIMARY, models),
        {name: _term(entry, f"secondary.{name}", models) for name, entry in config["secondary"].items()},
        _constraints(config["constraints"]),
    )
    stop_at_label = _truth(config["stop_at_label"], "stop_at_label")
    check_objective(objective, method, stop_at_label)
    objective.check_length(method.prompt_length)
    init = _written(config, models)
    if init:
        objective.spell(init)
    for name, term in objective.secondaries.items():
        model_ids = config[PRIMARY]["model_id"], config["secondary"][name]["model_id"]
        settings = dict(config["adapter"])
        kind = _pick(ADAPTERS, settings.pop("name"), "adapter")
        folder, corpus = Path(settings.pop("cache_dir")).expanduser(), settings.pop("corpus", None)
        term.adapter = load_or_fit(
            kind,
            objective.vocabulary,
            term.vocabulary,
            folder=folder,
            name="--".join([_slug(i) for i in model_ids] + [config["adapter"]["name"]]),
            corpus=corpus,
            settings={k: _setting(v, f"adapter.{k}", kind.defaults.get(k)) for k, v in settings.items()},
            progress=progress,
        )
    if config["init"] == "random":
        length = method.prompt_length or RANDOM_LENGTH
        init = objective.vocabulary.decode([random_prompt(Guide(objective), length, generator)])[0]
    options = {
        "refine": refine,
        "steps": steps,
        "init": init,
        "stop_loss": stop_loss,
        "stop_at_label": stop_at_label,
        "generator": generator,
    }
    return Run(objective, method, strategy, options)


def _method(config: Config, models: Models) -> Method:
    """The method; that of name caption is given what the captioner says."""
    options = dict(config["method"])
    if options["name"] == "caption":
        count = _whole_number(options.pop("search_width"), "method.search_width", at_least=1)
        options["texts"] = _captions(config, count, models)
    return _options(METHODS, options, "method")


def _refine(config: Config) -> Method:
    """The method that goes on from the first one's best prompt, so that it needs no length of its own."""
    with _naming("refine"):
        return _options(METHODS, {**config, "prompt_length": None}, "refine")


def _strategy(config: Config, method: Method) -> Strategy:
    """The strategy; that of name auto is the beam search that suits the method."""
    if config["name"] == "auto":
        width = method.beam_width if config["beam_width"] is None else _whole_number(config["beam_width"], "strategy.beam_width")
        return Beam(width)
    return _options(STRATEGIES, config, "strategy")


def _captions(config: Config, count: int, models: Models) -> list[str]:
    """What the captioner says of the picture, the best first."""
    entry = config["captioner"]
    image = _image(config, "captioner")
    captioner = _load(Captioner, entry, "captioner", models)
    with _naming("captioner"):
        length = _whole_number(entry["max_new_tokens"], "max_new_tokens", at_least=1)
        return captioner.caption(image, count=count, max_new_tokens=length, question=str(entry["question"]))


def _written(config: Config, models: Models) -> str:
    """The text to start from, the user's or the captioner's; empty for none."""
    if config["init"] == "caption":
        return _captions(config, 1, models)[0]
    return "" if config["init"] in (None, "random") else str(config["init"])


def _constraints(config: Config) -> Constraints:
    """The constraints of every prompt."""
    options = dict(config)
    for name in ("ascii", "words"):
        _truth(options[name], f"constraints.{name}")
    for name in ("block", "allow"):
        options[name] = tuple(str(text) for text in _list(options[name], f"constraints.{name}"))
    return Constraints(**options)


# A kind of model: from its entry to the model, and from both to the loss. The target is looked at before weights are
# loaded, so that a wrong one is told at once.
def _load_causal_lm(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    name = config["loss"] or ("cross_entropy" if config["label"] else "nll")
    kind = _pick(LM_LOSSES, name, f"{key}.loss")
    checks = {"label": lambda value, _: str(value or ""), "tau": _number, "perplexity_weight": _number}
    with _naming(key):
        loss = kind(**{field.name: checks[field.name](config[field.name], field.name) for field in dataclasses.fields(kind)})
    return _load(CausalLM, config, key, models), loss


def _load_clip(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    image = _image(config, key)
    model = _load(CLIP, config, key, models)
    return model, CosineDistance(model.embed_images([image])[0])


def _load_open_clip(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    image = _image(config, key)
    model = _load(OpenCLIP, config, key, models, pretrained=config["pretrained"])
    return model, CosineDistance(model.embed_images([image])[0])


def _load_sentence(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    if not config["target"]:
        raise FuseError(f'target=null: {key} needs a text whose meaning is sought; give target="TEXT"')
    model = _load(SentenceEncoder, config, key, models)
    return model, CosineDistance(model.embed_texts([str(config["target"])])[0])


def _load_classifier(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    model = _load(Classifier, config, key, models)
    with _naming(key):
        return model, ClassNLL(model.class_index(config["target"]))


def _load_masked_lm(config: Config, key: str, models: Models) -> tuple[Model, Loss[Any]]:
    return _load(MaskedLM, config, key, models), NLL()


KINDS: dict[str, Callable[[Config, str, Models], tuple[Model, Loss[Any]]]] = {
    "causal_lm": _load_causal_lm,
    "clip": _load_clip,
    "open_clip": _load_open_clip,
    "sentence": _load_sentence,
    "classifier": _load_classifier,
    "masked_lm": _load_masked_lm,
}
"""Every kind of model by its name in the entries of `conf/primary` and `conf/secondary`."""


def _term(config: Config, key: str, models: Models) -> Term:
    """The term of one entry of the configuration."""
    if not isinstance(config, Mapping):
        raise FuseError(f"{key}={config}: expected an entry with model_id and weight; to leave it out, choose others in secondary=[...]")
    model, loss = _pick(KINDS, config["kind"], f"{key}.kind")(config, key, models)
    with _naming(key):
        return Term(
            model,
            loss,
            weight=_number(config["weight"], "weight"),
            prefix=str(config["prefix"] or ""),
            suffix=str(config["suffix"] or ""),
            batch_size=_whole_number(config["batch_size"], "batch_size", at_least=1),
        )


def _load(kind: type[M], config: Config, key: str, models: Models, **options: Any) -> M:
    """The model of an entry."""
    place = _place(config, key)
    known = (kind, str(config["model_id"]), *place.values(), *options.values())
    if known not in models:
        with _naming(key):
            models[known] = kind.load(str(config["model_id"]), **place, **options)
    return cast(M, models[known])


def _image(config: Config, key: str) -> Image:
    """The picture that an entry looks at."""
    if not config["image"]:
        raise FuseError(f"image=null: {key} looks at a picture; give image=PATH, or choose models without one")
    return open_image(str(config["image"]))


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Errors within this context begin with the key of the entry."""
    try:
        yield
    except FuseError as error:
        raise FuseError(f"{key}.{error}") from error


def _place(config: Config, key: str) -> dict[str, Any]:
    """The `dtype` and `device` of an entry."""
    dtypes = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    device = config["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FuseError(f"{key}.device={device}: not to be had here ({reason}); give device=auto or device=cpu") from None
    return {"dtype": _pick(dtypes, config["dtype"], f"{key}.dtype"), "device": device}


def _options(kinds: Mapping[str, Callable[..., T]], config: Config, key: str) -> T:
    """The dataclass that `config["name"]` names, made from the other options; null leaves an option at its default."""
    options = dict(config)
    kind = _pick(kinds, options.pop("name"), key)
    types = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in options:
        if name not in types:
            raise FuseError(f"{key}.{name}={options[name]}: no such option; expected one of {', '.join(types)}")
    checks = {"int": _whole_number, "float": _number, "Sequence[str]": _list}
    checked = {
        name: checks.get(str(types.get(name)), _as_is)(value, f"{key}.{name}") for name, value in options.items() if value is not None
    }
    return kind(**checked)


def _pick(known: Mapping[str, T], name: Any, key: str) -> T:
    """`known[name]`, or an error that tells the near match and all choices."""
    if name in known:
        return known[name]
    near = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise FuseError(f"{key}={name}: {hint}expected one of {', '.join(known)}")


def _whole_number(value: Any, key: str, at_least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value < 2**63:
        raise FuseError(f"{key}={value}: expected a whole number from {at_least} to 2**63 - 1")
    return value


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise FuseError(f"{key}={value}: expected a number")
    return float(value)


def _truth(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise FuseError(f"{key}={value}: expected true or false")
    return value


def _list(value: Any, key: str) -> tuple[Any, ...]:
    """A list, or one value as a list of one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence):
        raise FuseError(f"{key}={value}: expected a list such as [a,b]")
    return tuple(value)


def _setting(value: Any, key: str, default: float | None) -> float:
    """A setting of an adapter, of the type of its default and above 0."""
    number = _whole_number(value, key, at_least=1) if isinstance(default, int) else _number(value, key)
    if number <= 0:
        raise FuseError(f"{key}={value}: expected a number above 0")
    return number


def _as_is(value: Any, key: str) -> Any:
    return value


def _slug(model_id: str) -> str:
    """The last two parts of a hub id or path, as part of a file's name."""
    return "-".join(Path(model_id).parts[-2:])
