"""Every part that has a name in the configuration: one line enrols a part everywhere.

A line says where a class is. From these tables come the configuration's choices, the public names
of the package, and the parts that the contract tests and the README's tables go through. Nothing is
imported before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any


class Registry(Mapping[str, Any]):
    """Classes by their names in the configuration; each is imported when it is asked for."""

    def __init__(self, locations: Mapping[str, str]) -> None:
        self._locations = dict(locations)

    def __getitem__(self, name: str) -> Any:
        module, _, kind = self._locations[name].partition(":")
        return getattr(import_module(module), kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)

    def __contains__(self, name: object) -> bool:
        return name in self._locations

    def modules(self) -> dict[str, str]:
        """Return the module of each class, by the class's name."""
        found = {}
        for location in self._locations.values():
            module, _, kind = location.partition(":")
            found[kind] = module
        return found

    def name_of(self, part: object) -> str:
        """Return the name of an object's class; that of the class itself where it has no other."""
        for name, location in self._locations.items():
            if location == f"{type(part).__module__}:{type(part).__qualname__}":
                return name
        return type(part).__name__


METHODS = Registry({
    "autodan": "fuse.search.methods.autodan:AutoDAN",
    "sketch": "fuse.search.methods.sketch:Sketch",
    "gcg": "fuse.search.methods.gcg:GCG",
    "random": "fuse.search.methods.random:Random",
    "gibbs": "fuse.search.methods.gibbs:Gibbs",
    "relaxed": "fuse.search.methods.relaxed:Relaxed",
    "langevin": "fuse.search.methods.langevin:Langevin",
    "pez": "fuse.search.methods.pez:PEZ",
    "caption": "fuse.search.methods.caption:Caption",
    "paraphrase": "fuse.search.methods.paraphrase:Paraphrase",
    "embedding": "fuse.search.methods.embedding:Embedding",
})  # fmt: skip
"""By their names in `conf/method`."""

STRATEGIES = Registry({
    "beam": "fuse.search.strategies.beam:Beam",
    "uniform_cost": "fuse.search.strategies.uniform_cost:UniformCost",
    "anneal": "fuse.search.strategies.anneal:Anneal",
    "pareto": "fuse.search.strategies.pareto:Pareto",
})  # fmt: skip
"""By their names in `conf/strategy`."""

ADAPTERS = Registry({
    "fuse": "fuse.adapters.tproduct_map:FuseAdapter",
    "lexical": "fuse.adapters.lexical:LexicalAdapter",
    "semantic": "fuse.adapters.semantic:SemanticAdapter",
    "pooled": "fuse.adapters.pooled:PooledAdapter",
})  # fmt: skip
"""By their names in `conf/adapter`."""

LM_LOSSES = Registry({
    "nll": "fuse.losses:NLL",
    "log_prob": "fuse.losses:LogProb",
    "kl_div": "fuse.losses:KLDiv",
    "cross_entropy": "fuse.losses:CrossEntropy",
    "activation": "fuse.activation:Activation",
})  # fmt: skip
"""Losses of causal language models, by their names in `primary.loss`."""

VECTOR_LOSSES = Registry({
    "cosine_distance": "fuse.losses:CosineDistance",
    "class_nll": "fuse.losses:ClassNLL",
    "squared_distance": "fuse.losses:SquaredDistance",
})  # fmt: skip
"""Losses of models that map a text to one vector."""

MODELS = Registry({
    "causal_lm": "fuse.models.causal_lm:CausalLM",
    "clip": "fuse.models.clip:CLIP",
    "open_clip": "fuse.models.open_clip:OpenCLIP",
    "sentence": "fuse.models.sentence:SentenceEncoder",
    "classifier": "fuse.models.classifier:Classifier",
    "masked_lm": "fuse.models.masked_lm:MaskedLM",
    "image_text": "fuse.models.image_text:ImageText",
    "diffusion": "fuse.models.diffusion:Diffusion",
})  # fmt: skip
"""Kinds of models, by their names in `kind` of an entry in `conf/primary` and `conf/secondary`."""

FORMATS = Registry({
    "jsonl": "fuse.app.formats.jsonl:write",
    "csv": "fuse.app.formats.table:write",
    "coco": "fuse.app.formats.coco:write",
    "imagefolder": "fuse.app.formats.image_folder:write",
})  # fmt: skip
"""Files with the results of a run of several searches, by their names in `formats`."""
