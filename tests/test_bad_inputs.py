"""Whatever a configuration holds: it is right, or each mistake is one line that names its key."""

from __future__ import annotations

import logging
import random
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sampling import sampled

import fuse
from fuse.app.check import keys_of, mistakes
from fuse.app.config import compose
from fuse.app.main import main
from fuse.app.overrides import groups
from fuse.app.schema import verbatim_keys
from fuse.app.session import Session

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
    lines = mistakes(config)
    assert not [line for line in lines if "\n" in line]
    return lines


class Command:
    """The command line in this process; a bad input ends it before anything is searched for."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._patch, self._captured = folder, patch, captured

    def refused(self, *arguments: str) -> list[str]:
        """Return the lines about a command line that has to be refused."""

        def search(*_: object) -> None:
            raise AssertionError("a search began")

        folders = [f"hydra.run.dir={self.folder}", f"hydra.sweep.dir={self.folder}"]
        handlers, hook = list(logging.root.handlers), sys.excepthook
        with self._patch.context() as patch:
            patch.setattr(Session, "_find_together", search)
            patch.setattr(sys, "argv", ["find_prompt.py", *arguments, *folders])
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                logging.root.handlers[:], sys.excepthook = handlers, hook
        lines = self._captured.readouterr().err.splitlines()
        assert ended.value.code == 2, (arguments, lines)
        assert lines and all(line.startswith("error: ") for line in lines), lines
        assert all(line.isprintable() and len(line) < 600 for line in lines)
        files = [path.name for path in self.folder.rglob("*.json*")]
        assert set(files) <= {"job.json"}, files  # how a job of a sweep has ended
        return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


TYPED = {
    "[[1],[2]]": [[1], [2]],
    "[null]": [None],
    "nan": float("nan"),
    "-1e30": -1e30,
    "'\x1b[2J'": "\x1b[2J",
    "''": "",
    "-7": -7,
    "{a:{b:1}}": {"a": {"b": 1}},
}
"""Values as they are typed, and as they are read."""
UNREADABLE = ["[", "{a", "1,2", "${", "]", "[" * 5000, "9" * 5000, "x" * 99_999, "a\nb", "\udcff"]


def is_typed(key: str) -> bool:
    """Whether a key is one of a value, and not the name that a group's choice brings with it."""
    return key.rpartition(".")[2] not in ("name", "kind", *groups())


def all_at_once(command: Command, number: int, turn: int) -> int:
    """Give every key a wrong value in one command line, and return how many there were.

    Args:
        turn: which value the first key is given; the next key is given the next value.
    """
    config, given = composed(number), {}
    for i, key in enumerate(sorted(filter(is_typed, leaves(config)), key=depth)):
        text, value = list(TYPED.items())[(i + turn) % len(TYPED)]
        is_text = key.rpartition(".")[2] in verbatim_keys()
        is_list = isinstance(value, dict) and isinstance(at(config, key), list)
        handed_on = given.get(key.rpartition(".")[2]) == text  # as ${device} is: told once
        if is_text or is_list or handed_on:
            continue
        if lines_of(with_value(config, key, value)):
            given[key] = text
    lines = command.refused(*COMMANDS[number], *(f"{k}={v}" for k, v in given.items()))
    for key in given:
        assert len([line for line in lines if line.startswith(f"{key}=")]) == 1, (key, lines)
    assert len(lines) == len(given)
    return len(given)


def depth(key: str) -> int:
    """Return how many sections a key is in."""
    return key.count(".")


def at(config: Any, key: str) -> Any:
    """Return the value of a key."""
    for part in key.split("."):
        config = config[part]
    return config


def test_every_wrong_value_of_a_command_line_is_told(command: Command) -> None:
    counts = [all_at_once(command, number, 0) for number in range(len(COMMANDS))]
    assert sum(counts) > 150


@pytest.mark.full
def test_every_key_is_refused_each_wrong_value(command: Command) -> None:
    count = 0
    for number in range(len(COMMANDS)):
        for turn in range(len(TYPED)):
            count += all_at_once(command, number, turn)
    assert count > 1000


@pytest.mark.parametrize("turn", range(3))
def test_every_value_that_cannot_be_read_is_told(command: Command, turn: int) -> None:
    given: dict[str, str] = {}
    for number in range(len(COMMANDS)):
        given |= dict.fromkeys(keys(number), "")
    for i, key in enumerate(given):
        is_text = key.rpartition(".")[2] in verbatim_keys()
        given[key] = "\udcff" if is_text else UNREADABLE[(i + turn) % len(UNREADABLE)]
    for group in groups():
        given[group] = UNREADABLE[(turn + len(group)) % len(UNREADABLE)]
    lines = command.refused(*(f"{key}={value}" for key, value in given.items()))
    assert len(lines) == len(given) > 90
    for key, line in zip(given, lines, strict=True):
        assert line.startswith(f"{key}=")


def keys(number: int) -> list[str]:
    """Return the keys of one of the commands that hold a value."""
    return list(leaves(composed(number)))


def test_unknown_keys_of_every_section_are_told_at_once(command: Command) -> None:
    for number in range(len(COMMANDS)):
        sections = {key.rpartition(".")[0] for key in keys(number)}
        given = [f"{section}.nonsense".lstrip(".") for section in sorted(sections)]
        lines = command.refused(*COMMANDS[number], *(f"+{key}=1" for key in given))
        assert sorted(line.partition("=")[0] for line in lines) == sorted(given)


@pytest.mark.parametrize("number", sampled(range(len(COMMANDS)), 3))
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
    "steps=${steps}": "steps: cannot be resolved",
    "steps=${oc.env:NO_SUCH_VARIABLE}": "steps: cannot be resolved",
    "seed=${here:}": "seed: cannot be resolved",
    "+new.key.deep=2": "new=",
    "steps.deep.er=1": "steps=",
    "~secondary.nope": "secondary.nope",
    "~secondary": "~secondary",
    "~": "~: ",
    "": "''",
    " ": "' '",
    "写=1": "写=1",
    "seed=写": "seed=写",
    "primary.weight=\u0661": "primary.weight=\u0661",
    "steps=\x1b[31m": "steps=\\x1b[31m",
    "st\neps=1": "st\\neps=1",
    "steps=\0": "steps=\\x00",
    "\udcff=1": "\\udcff=1",
    "hydra=5": "hydra=5",
    "hydra/launcher=slurm": "hydra/launcher",
    "hydra.nonsense=1": "hydra.nonsense",
    "hydra.run=5": "hydra.run=5",
    "hydra.job_logging.root.level=NONSENSE": "root logger",
    "captioner=[]": "captioner=[]",
    "captioner.nonsense=1": "did you mean captioner.",
    "secondary.demo_clip=[]": "secondary.demo_clip=[]",
    "constraints=null": "constraints=null",
    "constraints.block={a:1}": "constraints.block={a:1}",
    "constraints.block=['']": "constraints.block=['']",
    "constraints.block=[[a]]": "constraints.block=",
    "+secondary@=clip": "+secondary@=clip",
    "+secondary@_global_=clip": "+secondary@_global_",
    "+secondary@primary=clip": "+secondary@primary",
    "+secondary@secondary.x=nope": "secondary=nope",
    "+nonsense@secondary.x=y": "nonsense@secondary.x",
    "method@secondary.x=gcg": "method@secondary.x",
    "method=../method/gcg": "method=../method/gcg",
    "background=whitish": "background=whitish",
    "background=": "background=",
    "image=[]": "image=[]",
    "image=[a,,'']": "image=",
    "resume=/etc": "resume=/etc",
    "steps={" + "a:{" * 50 + "}" * 51: "steps=",
    "a." * 200 + "b=1": "expected KEY=VALUE",
}


@pytest.mark.parametrize("argument", sampled(BY_HAND, 6))
def test_bad_overrides_are_one_line_each(command: Command, argument: str) -> None:
    (line,) = command.refused(argument)
    assert BY_HAND[argument] in line


ODD = [
    (["-m", "steps=range(0,1000000000000)"], "-m"),
    (["-m", "steps=range(0,1000)", "seed=shuffle(range(0,1000))"], "-m"),
    (["-m", "steps=range(0,10,0)"], "steps=range"),
    (["-m", "steps=range(1,x)"], "steps=range"),
    (["-m", "steps=choice()"], "steps=choice()"),
    (["-m", "image=glob(*.nonsense)"], "image=glob"),
    (["-m", "method=gcg,nope"], "method=nope"),
    (["-m", "seed=-1,-2"], "seed=-1"),
    (["--resolve"], "--resolve"),
    (["--nonsense"], "--nonsense"),
    (["--experimental-rerun=some.pickle"], "--experimental-rerun"),
    (["--config-name=nope"], "nope"),
    (["-c"], "--cfg"),
    (["steps=1", "-"], "-: "),
    (["scoring=probe", "scoring.draft=5"], "scoring.draft=5"),
    (["scoring=probe", "scoring.draft.model_id=[a,b]"], "scoring.draft.model_id="),
    (["refine=gcg", "refine.steps=-3"], "refine.steps=-3"),
    (["primary=demo_clip", "primary.loss=nll"], "primary.loss=nll"),
]
"""Command lines of several arguments, and what the first line names."""


@pytest.mark.parametrize(("arguments", "named"), ODD)
def test_odd_command_lines_are_told(command: Command, arguments: list[str], named: str) -> None:
    lines = command.refused(*arguments)
    assert named in lines[0]
    assert len(lines) == (2 if "seed=-1,-2" in arguments else 1)


def test_what_cannot_be_resolved_is_told_beside_other_mistakes(command: Command) -> None:
    given = ["steps=${nonsense}", "seed=-1", "primary.weight=???", "device=${x}"]
    lines = command.refused(*given)
    for key in ("steps", "seed", "primary.weight", "device"):
        assert len([line for line in lines if re.match(rf"{key}\b", line)]) == 1
    assert len(lines) == len(given)


@pytest.mark.parametrize("choice", ["refine=null", "refine=none", "experiment=null", "steps=null"])
def test_null_leaves_out_what_may_be_left_out(choice: str) -> None:
    assert compose([choice]).get("refine") in (None, {"name": None})


def test_null_leaves_out_the_refining_method_of_an_experiment() -> None:
    config = compose(["experiment=sentence", "target=snow", "refine=null"])
    assert config["refine"]["name"] is None
    with pytest.raises(fuse.FuseError, match=r"refine\.search_width"):
        compose(["experiment=sentence", "target=snow", "refine.search_width=-1"])


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
