"""Whatever a configuration holds: it is right, or each mistake is one line that names its key."""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pytest

import fuse
from fuse.app.check import check, keys_of
from fuse.app.config import compose

COMMANDS = [
    [],
    ["method=gcg", "refine=pez", "strategy=beam", "scoring=probe"],
    ["method=random", "adapter=fuse", "strategy=uniform_cost", "secondary=[demo_mood,masked_lm]"],
    ["method=embedding", "label=the", "adapter=lexical", "strategy=greedy"],
    ["method=caption", "refine=random", "adapter=pooled", "secondary=[clip,open_clip,causal_lm]"],
    ["method=pez", "primary=demo_clip", "secondary=[sentence,classifier,demo_open_clip]"],
    ["experiment=sentence", "target=snow"],
]
"""Between them they hold every key."""
NOWHERE = object()
WRONG: list[Any] = [
    {"a": 1},
    [1, [2]],
    [None],
    3 + 4j,
    b"bytes",
    float("nan"),
    float("inf"),
    -(10**30),
    10**30,
]
"""Values that no key takes: those of Python, and those that YAML can give."""


@cache
def composed(number: int) -> dict[str, Any]:
    return compose(COMMANDS[number])


def with_value(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a configuration with another value, or without it."""
    changed = deepcopy(config)
    *path, name = key.split(".")
    section = changed
    for part in path:
        section = section[part]
    if value is NOWHERE:
        del section[name]
    else:
        section[name] = value
    return changed


def leaves(config: dict[str, Any]) -> Iterator[str]:
    """Return the full name of every key that holds a value and no section."""
    found = list(keys_of(config))
    for key in found:
        if not any(other.startswith(f"{key}.") for other in found):
            yield key


def lines_of(config: dict[str, Any]) -> list[str]:
    """Return what a check says; nothing where all is right."""
    try:
        check(config)
    except fuse.FuseError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_what_no_key_takes_is_refused_everywhere(number: int) -> None:
    count = 0
    for key in leaves(composed(number)):
        for value in WRONG:
            lines = lines_of(with_value(composed(number), key, value))
            assert lines, (key, value)
            assert all(key.rpartition(".")[2] in line for line in lines), (key, value, lines)
            assert all(line.isprintable() and len(line) < 400 for line in lines)
            count += 1
    assert count > 250


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_unknown_keys_are_refused_in_every_section(number: int) -> None:
    sections = {key.rpartition(".")[0] for key in leaves(composed(number))}
    for section in sections:
        key = f"{section}.nonsense" if section else "nonsense"
        (line,) = lines_of(with_value(composed(number), key, 1))
        assert line.startswith(f"{key}=1: ")


def test_sections_that_are_none_are_refused() -> None:
    for name in ("method", "strategy", "scoring", "adapter", "primary", "secondary", "constraints"):
        for value in (None, 5, "text", [], {}, NOWHERE):
            if value == {} and name in ("secondary", "constraints"):
                continue  # none; the defaults
            lines = lines_of(with_value(composed(0), name, value))
            assert lines and all(name in line for line in lines), (name, value)


BY_HAND = {
    "~method": "~method",
    "~refine": "~refine",
    "~seed": "~seed",
    "+secondary.new.weight=3": "secondary.new",
    "secondary.demo_clip=5": "secondary.demo_clip=5",
    "secondary=5": "secondary=5",
    "secondary=[[demo_clip]]": "secondary",
    "method=[gcg]": "method",
    "method={name:gcg}": "method",
    "method=null": "method=null",
    "method=": "method=",
    "method.lr=0.1": "method.lr",
    "+primary.nonsense=1": "primary.nonsense",
    "+adapter.nonsense=1": "adapter.nonsense",
    "primary.kind=clipp": "did you mean clip",
    "device=meta": "device=meta",
    "device=cuda:x": "device=cuda:x",
    "device=[cpu]": "device=['cpu']",
    "dtype=float64": "did you mean float",
    "seed=-1": "seed=-1",
    "seed=1.5": "seed=1.5",
    "seed=true": "seed=true",
    "steps=1e3": "steps=1000.0",
    "steps=ten": "steps=ten",
    "time_limit=0": "time_limit=0",
    "time_limit=1h": "time_limit=1h",
    "max_evaluations=0": "max_evaluations=0",
    "stop_loss=nan": "stop_loss=nan",
    "stop_loss=inf": "stop_loss=inf",
    "stop_at_label=1": "stop_at_label=1",
    "batch_images=0": "batch_images=0",
    "checkpoint_every=0": "checkpoint_every=0",
    "checkpoint_every=10m": "checkpoint_every=10m",
    "image=": "image=",
    "fit=squeeze": "fit=squeeze",
    "max_pixels=0": "max_pixels=0",
    "nested=maybe": "nested=maybe",
    "strategy.beam_width=0": "strategy.beam_width=0",
    "strategy.beam_width=1000000000": "strategy.beam_width",
    "method.search_width=10000000000": "method.search_width",
    "method.top_p=0": "method.top_p=0",
    "method.top_p=2": "method.top_p=2",
    "method.linearise=[]": "method.linearise=[]",
    "method.linearise=mean": "method.linearise=mean",
    "method.linearise=[mean,mean]": "method.linearise",
    "constraints.block=house": "constraints.block=house",
    "constraints.ascii=yes please": "constraints.ascii",
    "primary.weight=1e39": "primary.weight",
    "primary.weight=heavy": "primary.weight=heavy",
    "primary.tau=0": "primary.tau=0",
    "primary.loss=nlll": "did you mean nll",
    "primary.model_id=": "primary.model_id=",
    "primary.join=comma": "primary.join=comma",
    "adapter.max_words=0": "adapter.max_words=0",
    "adapter.cache_dir=null": "adapter.cache_dir=null",
    "captioner.max_new_tokens=0": "captioner.max_new_tokens=0",
    "search_width=5": "did you mean method.search_width",
    "weight=5": "did you mean",
    "STEPS=5": "did you mean steps",
    "steps": "steps",
    "=5": "=5",
    "steps==5": "steps",
    "steps=[": "steps=[",
    "steps=1,2": "-m",
    "method=gcg,pez": "-m",
    "steps={a: 1}": "steps=",
    "steps=${seed": "steps=",
}


@pytest.mark.parametrize("argument", BY_HAND)
def test_bad_overrides_are_one_line_each(argument: str) -> None:
    with pytest.raises(fuse.FuseError) as error:
        compose([argument])
    (line,) = str(error.value).splitlines()
    assert BY_HAND[argument] in line


def fuzzed(count: int) -> None:
    """Check random changes of configurations: each is right, or told in lines that name a key."""
    rng = random.Random(0)
    values = [
        *WRONG,
        None,
        True,
        0,
        1,
        -1,
        0.5,
        1e-300,
        "",
        "null",
        "auto",
        "é\n\x1b[2J",
        "x" * 9999,
    ]
    for _ in range(count):
        config = composed(rng.randrange(len(COMMANDS)))
        changed: list[str] = []
        for _ in range(rng.randrange(1, 4)):
            key = rng.choice(list(keys_of(config)))
            try:
                config = with_value(config, key, rng.choice([*values, NOWHERE]))
            except (KeyError, TypeError):  # its section is gone
                continue
            changed.append(key)
        for line in lines_of(config):
            assert line.isprintable() and len(line) < 400
            assert any(key.split(".")[0] in line for key in changed), (changed, line)


def test_random_configurations_are_right_or_told() -> None:
    fuzzed(500)


@pytest.mark.full
def test_many_random_configurations_are_right_or_told() -> None:
    fuzzed(10_000)
