"""The command line, put into what Hydra reads: texts stay as they are typed, and all that cannot be
read is told at once.

Every override of a value becomes `++key=value`, so that Hydra takes it and the schema judges it. A
text becomes `"${text:'...'}"`, its special signs percent-encoded, so that Hydra leaves it alone.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentError
from collections.abc import Sequence
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fuse.app.hints import Verbatim
from fuse.app.places import CONF
from fuse.app.schema import verbatim_keys
from fuse.errors import FuseError, one_line, one_of
from fuse.options import shown

FLAGS_WITH_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
                    "--package", "-p", "--cfg", "-c", "--experimental-rerun")  # fmt: skip
MULTIRUN = ("-m", "--multirun")
PLUGINS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler")
"""Who runs the jobs of a sweep, and who chooses them."""
SIGNS = re.compile(r"""[%'"\\${}\x00-\x1f\x7f]""")
"""What means something to Hydra or OmegaConf within quotes."""
TYPED = re.compile(r"""\"\$\{text:'([^']*)'\}\"""")
"""What `encoded` returns."""
MAX_KEY, MAX_VALUE, MAX_BRACKETS = 200, 20_000, 20
"""Characters of a key and of a value that is no text, and opening brackets in it: of more, Hydra's
parser takes minutes, or as many calls in each other as Python allows.
"""
MAX_JOBS = 10_000
"""Of a sweep; Hydra makes a list of all before the first one begins."""
FUNCTION = re.compile(r"(choice|range|glob|shuffle|sort|interval|tag)\(.*\)", re.DOTALL)
"""A sweep that Hydra has a function for."""


def decoded(text: str) -> str:
    """Return the text that `encoded` has put into an override; the resolver `text`."""
    return unquote(text, errors="strict")


def quoted(text: str) -> str:
    """Return a value that the command line reads as exactly this text, be it `null` or a list."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def encoded(text: str) -> str:
    """Return an interpolation that Hydra and OmegaConf read as this text, whatever is in it.

    Raises:
        UnicodeEncodeError: it cannot be written in UTF-8.
    """
    text.encode()
    return f"\"${{text:'{SIGNS.sub(lambda sign: quote(sign[0]), text)}'}}\""


def prepared(arguments: Sequence[str]) -> list[str]:
    """Return the command line for Hydra, the flags first.

    Raises:
        FuseError: with one line for each override or flag that cannot be read, and for each choice
            that does not exist.
    """
    reader = Reader(arguments)
    flags: list[str] = []
    found, is_value = [], False
    for argument in arguments:
        if is_value or (argument.startswith("-") and argument != "-"):
            flags.append(argument)
            is_value = not is_value and argument in FLAGS_WITH_VALUE
        else:
            found += reader.read(argument)
    reader.check_number_of_jobs()
    reader.mistakes += _wrong_flags(flags)
    if reader.mistakes:
        raise FuseError("\n".join(reader.mistakes))
    return [*flags, *found]


def _wrong_flags(flags: Sequence[str]) -> list[str]:
    """Return one line about flags that Hydra does not know."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    wrong: list[str] = []
    parser.exit_on_error = False
    parser.error = wrong.append  # type: ignore[method-assign, assignment]
    try:
        given = parser.parse_args(list(flags))
        if given.experimental_rerun is not None:
            wrong.append("--experimental-rerun: it would read a pickle, which can run code")
    except ArgumentError as error:
        wrong.append(str(error))
    return [f"{one_line(text)}; see python find_prompt.py --help" for text in wrong[:1]]


class Reader:
    """Reads overrides, and collects what is wrong with them.

    Args:
        arguments: the whole command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.mistakes: list[str] = []
        self._num_jobs = 1
        self._sweeps = bool(set(MULTIRUN) & set(arguments))
        self._own_configs = any(a.startswith(("--config", "-c")) for a in arguments)
        self._groups = groups()
        self._verbatim = verbatim_keys()

    def read(self, argument: str) -> list[str]:
        """Return one override as Hydra takes it."""
        match = re.fullmatch(r"(\+\+|\+|~|)([^=]*?)(?:=(.*))?", argument, re.DOTALL)
        assert match is not None
        sign, key, value = match.groups()
        group, at, package = key.partition("@")
        if len(key) > MAX_KEY or not re.fullmatch(r"[\w.@/:-]+", key, re.ASCII):
            given = argument if argument.strip() else repr(argument)
            return self._wrong(f"{shown(given)}: expected KEY=VALUE, such as steps=20")
        if at and not re.fullmatch(r"secondary\.[\w-]+", package):
            return self._wrong(f"{shown(argument)}: expected +{group}@secondary.NAME=CHOICE")
        if sign == "~":
            return self._deletion(argument, key)
        if value is None:
            return self._wrong(f"{shown(argument)}: expected KEY=VALUE, such as {key}=...")
        if group in self._groups:
            return self._choice(argument, group, value)
        if key.startswith("hydra.") or key in PLUGINS:
            return [argument]
        if key.partition("/")[0] == "hydra":
            return self._wrong(f"{shown(argument)}: expected hydra.KEY=VALUE")
        name = key.rpartition(".")[2]
        if name in self._verbatim:
            return [f"++{key}={self._text(key, value, self._verbatim[name])}"]
        return self._plain(key, value)

    def _wrong(self, line: str) -> list[str]:
        self.mistakes.append(line)
        return []

    def _deletion(self, argument: str, key: str) -> list[str]:
        """Let entries of `secondary` be left out, and nothing else."""
        if key.startswith("secondary.") and key.count(".") == 1:
            return [argument]
        return self._wrong(f"{shown(argument)}: it cannot be left out; give {key}=VALUE")

    def _choice(self, argument: str, group: str, value: str) -> list[str]:
        """Check the choice of a group."""
        if value == "null" and group in ("experiment", "refine"):
            return [] if group == "experiment" else [argument.replace("=null", "=none")]
        override = self._parsed(argument, group, value)
        if override is None:
            return []
        chosen: Any = [override.value()]
        if override.is_sweep_override():
            if not self._sweeps:
                return self._wrong(f"{group}={shown(value)}: several values; give -m for a sweep")
            chosen = [] if FUNCTION.fullmatch(value) else list(override.sweep_iterator())
        several = group == "secondary"
        for one in chosen if not self._own_configs else ():
            names = one if several and isinstance(one, list) else [one]
            for name in names:
                if not isinstance(name, str) or name not in self._groups[group]:
                    self._wrong(f"{group}={shown(name)}: {one_of(name, self._groups[group])}")
        return [argument]

    def _plain(self, key: str, value: str) -> list[str]:
        """Check that Hydra can read a value that is no text."""
        override = self._parsed(f"{key}={value}", key, value)
        if override is None:
            return []
        if override.is_sweep_override() and not self._sweeps:
            return self._wrong(f"{key}={shown(value)}: several values; give -m for a sweep")
        return [f"++{key}={value}"]

    def _parsed(self, argument: str, key: str, value: str) -> Any:
        """Return an override as Hydra parses it; None after a mistake."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        if len(value) > MAX_VALUE or sum(map(value.count, "[{(")) > MAX_BRACKETS:
            self._wrong(f"{key}={shown(value)}: too long, or nested too deep; give less")
            return None
        try:
            override = OverridesParser.create().parse_override(argument)
            if override.is_sweep_override():
                self._num_jobs *= _num_values(override)
            return override
        except (HydraException, ValueError, RecursionError):  # the second: of too many digits
            self._wrong(
                f"{key}={shown(value)}: not a value that can be read; expected a number, a word, "
                "true, false, null or a list such as [a,b]"
            )
            return None

    def check_number_of_jobs(self) -> None:
        """Note where a sweep has more jobs than anybody waits for."""
        if self._sweeps and self._num_jobs > MAX_JOBS:
            self._wrong(f"-m: a sweep of more than {MAX_JOBS} jobs; give fewer values")

    def _text(self, key: str, value: str, mark: Verbatim) -> str:
        """Return a text, or a sweep over several, as Hydra takes it."""
        if not self._sweeps:
            return self._one_text(key, value, mark)
        if FUNCTION.fullmatch(value) and not value.startswith("glob("):
            return value
        if value.startswith("glob("):
            return self._files(key, value)
        parts = split_outside(value)
        self._num_jobs *= len(parts)
        return ",".join(self._one_text(key, part, mark) for part in parts)

    def _files(self, key: str, value: str) -> str:
        """Return a sweep over the files that a pattern finds."""
        pattern = value.removeprefix("glob(").removesuffix(")").strip("'\"")
        found = sorted(glob(str(Path(pattern).expanduser())))  # noqa: PTH207  (absolute or not)
        if not found:
            self._wrong(f"{key}={shown(value)}: no file matches")
        self._num_jobs *= max(len(found), 1)
        return ",".join(encoded(path) for path in found)

    def _one_text(self, key: str, value: str, mark: Verbatim) -> str:
        """Return one text, a list of them or null as Hydra takes it."""
        if mark.or_null and value == "null":
            return value
        is_list = value.startswith("[") and value.endswith("]")
        # A long list is no name of a file, which Path.exists would complain of
        if mark.or_null and is_list and not os.path.exists(value):  # noqa: PTH110
            parts = [unquoted(part) for part in split_outside(value[1:-1]) if part]
            return f"[{','.join(self._encoded(key, part) for part in parts)}]"
        return self._encoded(key, unquoted(value))

    def _encoded(self, key: str, text: str) -> str:
        try:
            return encoded(text)
        except UnicodeEncodeError:
            self._wrong(f"{key}={shown(text)}: not a text in UTF-8; check the terminal's encoding")
            return "null"


def _num_values(override: Any) -> int:
    """Return how many values a sweep has over one key, or one more than a sweep may have."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        values: Any = sweep.range()
    else:
        values = sweep.list if isinstance(sweep, ChoiceSweep) else [sweep]
    return sum(1 for _ in islice(values, MAX_JOBS + 1))


def unquoted(value: str) -> str:
    """Return what stands within quotes, by Hydra's rules for them; other texts as they are."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return value
    inner, sign = value[1:-1], value[0]
    if re.search(rf"(?<!\\){sign}", inner):
        return value  # such as 'a' or 'b'
    return inner.replace(f"\\{sign}", sign).replace("\\\\", "\\")


def split_outside(value: str) -> list[str]:
    """Split at commas that stand outside of quotes and brackets."""
    parts, depth, quotes = [""], 0, ""
    for sign in value:
        if quotes:
            quotes = "" if sign == quotes else quotes
        elif sign in "'\"" and not parts[-1].strip():
            quotes = sign
        depth += (sign in "[{(" and not quotes) - (sign in "]})" and not quotes)
        if sign == "," and not quotes and depth <= 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def as_typed(override: str) -> str:
    """Return an override that `prepared` has made as a person types it into a POSIX shell."""
    key, _, value = override.removeprefix("++").partition("=")

    def text(match: re.Match[str]) -> str:
        own = decoded(match[1])
        bare = own and own != "null" and own[0] not in "\"'[" and "," not in own
        return own if bare else '"' + own.replace('"', '\\"') + '"'

    return as_argument(key, TYPED.sub(text, value))


def as_argument(key: str, text: str) -> str:
    """Return an argument that a POSIX shell and `prepared` read as this text."""
    if re.fullmatch(r"[\w./+-]+", text):
        return f"{key}={text}"
    return "'" + f"{key}={text}".replace("'", "'\\''") + "'"


def groups() -> dict[str, list[str]]:
    """Return the names in every folder of the configuration."""
    found = {}
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        if folder.name != "hydra":
            files = folder.glob("*.yaml")
            found[folder.name] = sorted(path.name.removesuffix(".yaml") for path in files)
    return found
