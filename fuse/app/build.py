"""From a plain configuration, nested dictionaries as `conf/` gives them, to a search."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from fuse.adapters import Adapter, Progress
from fuse.adapters.fidelity import Fidelity
from fuse.adapters.store import load_or_fit
from fuse.app.goals import required_image
from fuse.app.hints import Config
from fuse.app.run_folder import LIMITS
from fuse.app.terms import Models, load, term_of, with_pictures
from fuse.app.values import make, naming
from fuse.guide import Guide
from fuse.models import Captioner
from fuse.models.quantization import stored_as
from fuse.objective import PRIMARY, Objective
from fuse.registry import ADAPTERS, METHODS, STRATEGIES
from fuse.retrieval import retrieve
from fuse.search.balance import balanced_weights
from fuse.search.checks import check_combination, check_objective
from fuse.search.methods.base import Method, random_prompt
from fuse.search.screening import Probe
from fuse.search.search import Search, own_strategy
from fuse.search.strategies.base import Strategy
from fuse.term import Term
from fuse.text.constraints import Constraints

log = logging.getLogger(__name__)

NUM_TRIALS = 8
"""On how many sentences a new adapter is tried."""
MIN_SPEARMAN = 0.1
"""The rank correlation below which a warning says that an adapter is of little use."""
RANDOM_LENGTH = 8
"""Free tokens of init=random where the method begins with none."""
SENTENCES = Path(__file__).parent.parent / "demo/corpus.txt"


def build(
    config: Config,
    progress: Progress = iter,
    models: Models | None = None,
    reading: Progress = iter,
    weights: Mapping[str, float] | None = None,
) -> Search:
    """Return the search that a checked configuration describes.

    Adapters are fitted last, when all else is known to be right.

    Args:
        progress: shows how far the fit of an adapter is.
        models: what is in it is not loaded again; what is loaded joins it.
        reading: shows how far the reading of the corpus of init=retrieve is.
        weights: what weights=auto has chosen before for this run; None to choose them.

    Raises:
        FuseError: values that do not go together, or with the models; its message names the key.
    """
    models = {} if models is None else models
    config = with_pictures(config)
    method = _method(config, models)
    strategy = _strategy(config["strategy"], method)
    check_combination(method, strategy)
    options = {name: config[name] for name in LIMITS}
    generator = torch.Generator().manual_seed(config["seed"])
    secondaries = {}
    refine = _refine(config["refine"]) if (config.get("refine") or {}).get("name") else None
    workers = config["scoring"]["workers"]
    primary = term_of(config[PRIMARY], PRIMARY, models, workers)
    for name, entry in config["secondary"].items():
        secondaries[name] = term_of(entry, f"secondary.{name}", models, workers)
    constraints = make({"": Constraints}, {"name": "", **config["constraints"]}, "constraints")
    objective = Objective(primary, secondaries, constraints)
    probe = _probe(config, models)
    for one in (method, refine):
        if one is not None:
            check_objective(objective, one, options["stop_at_label"], probe)
    objective.check_length(method.prompt_length)
    init = _written(config, objective, models, reading)
    if isinstance(init, str) and init:
        objective.spell(init)
    points: list[str] = []
    for one in (method, refine):
        points += getattr(one, "linearise", ())
    points = list(dict.fromkeys(points)) or ["current"]
    for name, term in objective.secondaries.items():
        if term.vocabulary is objective.vocabulary:
            continue  # its gradient is exact
        term.adapter = _adapter(config, name, term, objective, points, progress, models)
    if config["init"] == "random":
        length = method.prompt_length or RANDOM_LENGTH
        row = random_prompt(Guide(objective), length, generator)
        init = objective.vocabulary.decode([row])[0]
    search = Search(
        objective,
        method,
        strategy,
        refine,
        init=init,
        probe=probe,
        generator=generator,
        **options,
    )
    if config["weights"] == "auto":
        for name, weight in (weights or balanced_weights(search)).items():
            objective.terms[name].weight = weight
    return search


def _adapter(
    config: Config,
    name: str,
    term: Term,
    objective: Objective,
    points: Sequence[str],
    progress: Progress,
    models: Models,
) -> Adapter:
    """Return the adapter of a secondary, known, fitted or found on disk, with a warning if it is of
    little use.
    """
    model_ids = [config[PRIMARY]["model_id"], config["secondary"][name]["model_id"]]
    settings = dict(config["adapter"])
    kind_name = settings.pop("name")
    kind = ADAPTERS[kind_name]
    del settings["cache_dir"]
    corpus, shared = settings.pop("corpus", None), settings.pop("shared", None)
    primary, secondary = (slug(model_id) for model_id in model_ids)
    # Its models stay in `models`, so that no other one gets their numbers
    pair = id(objective.vocabulary), id(term.model)
    where = _adapter_folder(config), shared
    known = (kind, *pair, corpus, *where, tuple(points), *settings.items())
    if known not in models:
        models[known] = load_or_fit(
            kind,
            objective.vocabulary,
            term.model,
            folder=where[0],
            name=adapter_name(config, name),
            corpus=corpus,
            settings=settings,
            progress=progress,
            shared=shared,
            measure=partial(_measured, term),
            points=points,
            description={"primary": primary, "secondary": secondary, "about": str(corpus or "")},
        )
    adapter = cast(Adapter, models[known])
    _warn_of_chance(adapter, kind_name, name)
    return adapter


def _warn_of_chance(adapter: Adapter, kind: str, secondary: str) -> None:
    """Warn where the ranking of an adapter is near chance."""
    fidelity = adapter.fidelity
    if fidelity is not None and fidelity.spearman < MIN_SPEARMAN:
        advice = "pooled" if kind == "semantic" else "semantic"
        log.warning(
            "adapter=%s: its ranking for secondary.%s is near chance (Spearman %.2f); "
            "use adapter=%s",
            kind,
            secondary,
            fidelity.spearman,
            advice,
        )


def _measured(term: Term, adapter: Adapter, point: str) -> Fidelity | None:
    """Return an adapter's fidelity on English sentences that are part of the package."""
    texts = SENTENCES.read_text().splitlines()[:NUM_TRIALS]
    return adapter.measure(term, texts, torch.Generator().manual_seed(0), point=point)


def _method(config: Config, models: Models) -> Method:
    """Return the method; that of name caption is given what the captioner says."""
    options = dict(config["method"])
    if options["name"] == "caption":
        options["texts"] = _captions(config, options["search_width"] or 1, models)
    return make(METHODS, options, "method")


def _refine(config: Config) -> Method:
    """Return the method that goes on from the first one's best prompt, so that it needs no length
    of its own.
    """
    return make(METHODS, {**config, "prompt_length": None}, "refine")


def _strategy(config: Config, method: Method) -> Strategy:
    """Return the strategy; that of name auto is the beam search that suits the method."""
    if config["name"] != "auto":
        return make(STRATEGIES, config, "strategy")
    own = own_strategy(method)
    return replace(own, beam_width=config["beam_width"] or own.beam_width)


def _probe(config: Config, models: Models) -> Probe | None:
    """Return probe sampling, whose draft, if any, is the primary with another model; None to score
    all candidates.
    """
    options = dict(config["scoring"])
    if options["name"] == "exact":
        return None
    draft, workers = options.pop("draft"), options.pop("workers")
    if draft["model_id"] is not None:
        entry = {**config[PRIMARY], **draft}
        options["draft"] = term_of(entry, "scoring.draft", models, workers)
    return make({"probe": Probe}, options, "scoring")


def _captions(config: Config, count: int, models: Models) -> list[str]:
    """Return what the captioner says of the picture, the best first."""
    entry = config["captioner"]
    image = required_image(config, "captioner")
    captioner = load(Captioner, entry, "captioner", models)
    with naming("captioner"):
        length, words = (
            entry["max_new_tokens"],
            {name: entry[name] for name in ("question", "prompt")},
        )
        return captioner.caption(image, count=count, max_new_tokens=length, **words)


def _written(
    config: Config, objective: Objective, models: Models, reading: Progress
) -> str | list[str]:
    """Return the text to start from, the user's or the captioner's, or those of the corpus; empty
    for none.
    """
    init = config["init"]
    if init == "caption":
        return _captions(config, 1, models)[0]
    if init == "retrieve":
        return retrieve(
            objective,
            config["corpus"],
            max_tokens=config["method"].get("prompt_length") or None,
            folder=_adapter_folder(config),
            progress=reading,
        )
    return "" if init in (None, "random") else init


def _adapter_folder(config: Config) -> Path:
    return Path(config["adapter"]["cache_dir"]).expanduser()


def weights_of(config: Config, objective: Objective) -> dict[str, dict[str, Any]]:
    """Return which weights each term has, and how they are held, for the report of a run."""
    found = {}
    for name, term in objective.terms.items():
        entry = config[PRIMARY] if name == PRIMARY else config["secondary"][name]
        held = {key: entry[key] for key in ("model_id", "revision", "dtype", "quantization")}
        held["quantization"] = stored_as(entry["model_id"], term.model.network) or "none"
        found[name] = held
    return found


def adapter_name(config: Config, secondary: str) -> str:
    """Return how the name of the file of a secondary's adapter begins."""
    entries = config[PRIMARY], config["secondary"][secondary]
    models = "--".join(slug(entry["model_id"]) for entry in entries)
    return f"{models}--{config['adapter']['name']}"


def slug(model_id: str) -> str:
    """Return the last two parts of a hub id or path, as part of a file's name."""
    return "-".join(Path(model_id).parts[-2:])
