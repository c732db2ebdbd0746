"""From a name to a model, or to its tokenizer alone: an entry of `conf/`, a hub id, a folder or a
GGUF file.
"""

from __future__ import annotations

from typing import Any

from fuse.app import console
from fuse.app.config import compose
from fuse.app.hints import Config
from fuse.app.overrides import groups
from fuse.app.terms import load
from fuse.errors import FuseError
from fuse.models.loading import load_pretrained
from fuse.registry import MODELS
from fuse.text.vocabulary import Vocabulary

WITH_A_TOKENIZER = ("causal_lm", "clip", "sentence", "classifier", "masked_lm", "image_text")
"""Kinds whose tokenizer transformers loads alone."""


def entry_of(name: str, kind: str = "causal_lm") -> Config:
    """Return the entry that a name stands for.

    Args:
        name: of an entry of `conf/primary` or `conf/secondary`; anything else is a model of `kind`.

    Raises:
        FuseError: such an entry needs more than a name.
    """
    known = groups()
    base = ["image=null", "secondary=[]"]
    if name in known["primary"]:
        return compose([*base, f"primary={name}"])["primary"]
    if name in known["secondary"]:
        return compose(["image=null", f"secondary=[{name}]"])["secondary"][name]
    if kind in known["primary"]:
        return compose([*base, f"primary={kind}", f"primary.model_id={name}"])["primary"]
    overrides = ["image=null", f"secondary=[{kind}]", f"secondary.{kind}.model_id={name}"]
    return compose(overrides)["secondary"][kind]


def load_entry(entry: Config, key: str = "model") -> Any:
    """Return the model of an entry."""
    console.quiet_libraries()
    return load(MODELS[entry["kind"]], entry, key, {})


def load_model(name: str, kind: str, expected: type[Any]) -> tuple[Any, Config]:
    """Return a model and its entry.

    Args:
        kind: what it is where its name is no entry's.
        expected: what it has to be.

    Raises:
        FuseError: it cannot be loaded, or is something else.
    """
    entry = entry_of(name, kind)
    if not issubclass(MODELS[entry["kind"]], expected):
        fitting = [kind for kind in MODELS if issubclass(MODELS[kind], expected)]
        raise FuseError(
            f"--model={name}: it is of kind {entry['kind']}; expected one of {', '.join(fitting)}"
        )
    return load_entry(entry), entry


def load_vocabulary(name: str) -> Vocabulary:
    """Return what a model's tokenizer spells; its weights are loaded only where they bring it."""
    console.quiet_libraries()
    entry = entry_of(name)
    if entry["kind"] not in WITH_A_TOKENIZER:
        return load_entry(entry).vocabulary
    from transformers import AutoTokenizer

    options = {} if entry["revision"] is None else {"revision": entry["revision"]}
    tokenizer = load_pretrained(AutoTokenizer, entry["model_id"], **options)
    return Vocabulary(tokenizer, max_length=tokenizer.model_max_length)
