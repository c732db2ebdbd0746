"""From a plain configuration (nested dictionaries, as `conf/` gives them) to the objects of a run."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch

from fuse.adapter import ADAPTERS, Adapter, Progress, SemanticAdapter
from fuse.adapter.cache import load_or_fit
from fuse.adapter.fidelity import Fidelity
from fuse.constraints import Constraints
from fuse.errors import FuseError
from fuse.guide import Guide
from fuse.loop import Task, check_combination, check_objective
from fuse.methods import METHODS, Method
from fuse.methods.base import random_prompt
from fuse.models import Captioner
from fuse.objective import PRIMARY, Objective, Term
from fuse.probe import Probe
from fuse.strategies import STRATEGIES, Beam, Strategy
from fuse.terms import Models, image_of, load, term_of
from fuse.values import Config, list_of, naming, number, options_of, pick, setting, truth, whole_number

log = logging.getLogger(__name__)

TRIALS = 8
"""On how many sentences a new adapter is tried."""
USEFUL = 0.1
"""The rank correlation below which an adapter is warned of."""
RANDOM_LENGTH = 8
"""Free tokens of init=random where the method begins with none."""


def build(config: Config, progress: Progress = iter, models: Models | None = None) -> Task:
    """The search that a composed configuration describes; adapters are fitted last, when all else is known to be right.

    Models that are in `models` are not loaded again; those that are loaded join it.

    Raises:
        FuseError: a value that cannot be used; its message names the key.
    """
    models = {} if models is None else models
    method = _method(config, models)
    refine = _refine(config["refine"]) if config.get("refine") else None
    strategy = _strategy(config["strategy"], method)
    check_combination(method, strategy)
    steps = None if config["steps"] is None else whole_number(config["steps"], "steps")
    stop_loss = None if config["stop_loss"] is None else number(config["stop_loss"], "stop_loss")
    generator = torch.Generator().manual_seed(whole_number(config["seed"], "seed"))
    objective = Objective(
        term_of(config[PRIMARY], PRIMARY, models),
        {name: term_of(entry, f"secondary.{name}", models) for name, entry in config["secondary"].items()},
        _constraints(config["constraints"]),
    )
    stop_at_label = truth(config["stop_at_label"], "stop_at_label")
    probe = _probe(config, models)
    check_objective(objective, method, stop_at_label, probe)
    objective.check_length(method.prompt_length)
    init = _written(config, models)
    if init:
        objective.spell(init)
    for name, term in objective.secondaries.items():
        model_ids = config[PRIMARY]["model_id"], config["secondary"][name]["model_id"]
        settings = dict(config["adapter"])
        kind = pick(ADAPTERS, settings.pop("name"), "adapter")
        folder, corpus = Path(settings.pop("cache_dir")).expanduser(), settings.pop("corpus", None)
        shared = settings.pop("shared", None)
        term.adapter = load_or_fit(
            kind,
            objective.vocabulary,
            term.model,
            folder=folder,
            name="--".join([_slug(i) for i in model_ids] + [config["adapter"]["name"]]),
            corpus=corpus,
            settings={k: setting(v, f"adapter.{k}", kind.defaults.get(k)) for k, v in settings.items()},
            progress=progress,
            shared=shared,
            measure=partial(_measured, term),
            description={"primary": _slug(model_ids[0]), "secondary": _slug(model_ids[1]), "about": str(corpus or "")},
        )
        fidelity = term.adapter.fidelity
        if fidelity is not None and fidelity.spearman < USEFUL:
            advice = "pooled" if kind is SemanticAdapter else "semantic"
            log.warning(
                "adapter=%s: its ranking for secondary.%s is near chance (Spearman %.2f); use adapter=%s",
                config["adapter"]["name"], name, fidelity.spearman, advice,
            )  # fmt: skip
    if config["init"] == "random":
        length = method.prompt_length or RANDOM_LENGTH
        init = objective.vocabulary.decode([random_prompt(Guide(objective), length, generator)])[0]
    return Task(objective, method, strategy, refine, steps, init, stop_loss, stop_at_label, probe, generator)


def _measured(term: Term, adapter: Adapter) -> Fidelity | None:
    """A new adapter's fidelity on English sentences that are part of the package."""
    texts = (Path(__file__).parent / "demo/corpus.txt").read_text().splitlines()[:TRIALS]
    return adapter.measure(term, texts, torch.Generator().manual_seed(0))


def _method(config: Config, models: Models) -> Method:
    """The method; that of name caption is given what the captioner says."""
    options = dict(config["method"])
    if options["name"] == "caption":
        count = whole_number(options.pop("search_width"), "method.search_width", at_least=1)
        options["texts"] = _captions(config, count, models)
    return options_of(METHODS, options, "method")


def _refine(config: Config) -> Method:
    """The method that goes on from the first one's best prompt, so that it needs no length of its own."""
    try:
        return options_of(METHODS, {**config, "prompt_length": None}, "refine")
    except FuseError as error:
        raise FuseError(str(error).replace("method.", "refine.", 1)) from error


def _strategy(config: Config, method: Method) -> Strategy:
    """The strategy; that of name auto is the beam search that suits the method."""
    if config["name"] == "auto":
        width = method.beam_width if config["beam_width"] is None else whole_number(config["beam_width"], "strategy.beam_width")
        return Beam(width)
    return options_of(STRATEGIES, config, "strategy")


def _probe(config: Config, models: Models) -> Probe | None:
    """Probe sampling, whose draft, if any, is the primary with another model; None where all candidates are scored."""
    options = dict(config["scoring"])
    if options["name"] == "exact":
        return None
    draft = options.pop("draft")
    if draft["model_id"] is not None:
        options["draft"] = term_of({**config[PRIMARY], **draft}, "scoring.draft", models)
    return options_of({"probe": Probe}, options, "scoring")


def _captions(config: Config, count: int, models: Models) -> list[str]:
    """What the captioner says of the picture, the best first."""
    entry = config["captioner"]
    image = image_of(config, "captioner")
    captioner = load(Captioner, entry, "captioner", models)
    with naming("captioner"):
        length = whole_number(entry["max_new_tokens"], "max_new_tokens", at_least=1)
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
        truth(options[name], f"constraints.{name}")
    for name in ("block", "allow"):
        options[name] = tuple(str(text) for text in list_of(options[name], f"constraints.{name}"))
    return Constraints(**options)


def _slug(model_id: str) -> str:
    """The last two parts of a hub id or path, as part of a file's name."""
    return "-".join(Path(model_id).parts[-2:])
