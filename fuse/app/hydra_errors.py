"""Hydra's complaints about a command line, put into one line with what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException

from fuse.errors import did_you_mean

COMPLAINTS = (HydraException, OmegaConfBaseException)
"""What Hydra and OmegaConf raise about a configuration."""

UNREADABLE = (
    r"(?i)sweep|mismatched input|no viable|extraneous|token recognition|parsing|LexerNoViable"
)
"""What Hydra says of a value that it cannot read."""

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def is_complaint(error: Exception) -> bool:
    """Whether an error is Hydra's or OmegaConf's about a configuration, and no fault of ours."""
    return isinstance(error, COMPLAINTS) or "Config group override" in str(error)


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Return one line about an error.

    Args:
        arguments: those of the command line.
    """
    text = str(error)
    if not is_complaint(error):
        return text
    if "Config group override" in text:
        key = next((a.partition("=")[0] for a in arguments if a.endswith("=null")), "a group")
        return f"{key}=null: expected one of {', '.join(_choices(key))}"
    unquoted = _unquoted(text, arguments)
    if unquoted is not None:
        key, _, value = unquoted.partition("=")
        return (
            f"{key}={value}: a text with a comma, "
            "an apostrophe or other signs needs quotes of its own; "
            f"write {_quoted(key, value)}"
        )
    unknown = re.search(r"Key '([^']+)' is not in struct", text) or re.search(
        r"Could not override '([^']+)'", text
    )
    if unknown or isinstance(error, ConfigAttributeError):
        return _unknown_key(unknown[1] if unknown else "", text, arguments)
    missing = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if missing:
        group, name = missing.groups()
        return f"{group}={name}: {near(name, _choices(group))}"
    return " ".join(text.split())


def _unquoted(complaint: str, arguments: Sequence[str]) -> str | None:
    """Return the override whose value Hydra could not read as one text."""
    if not re.search(UNREADABLE, complaint):
        return None
    plain = [a for a in arguments if re.match(r"[\w.@/+~]+=[^'\"\[{]", a)]
    texts = [a for a in plain if re.search(r"[,'\"(){}:\[\]]", a)]
    named = [a for a in texts if a.partition("=")[0] in complaint]
    return next(iter(named or texts), None)


def _quoted(key: str, value: str) -> str:
    """Return an argument that a POSIX shell and Hydra both read as this text."""
    argument = f"{key}={as_value(value)}"
    return "'" + argument.replace("'", "'\\''") + "'"


def as_argument(key: str, text: str) -> str:
    """Return an argument that a shell and Hydra read as this text, quoted where that is needed."""
    return f"{key}={text}" if re.fullmatch(r"[\w./+-]+", text) else _quoted(key, text)


def as_value(text: str) -> str:
    """Return a value that Hydra reads as this text, whatever is in it."""
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{inner}"'


def _unknown_key(key: str, complaint: str, arguments: Sequence[str]) -> str:
    full = re.search(r"full_key: (\S+)", complaint)
    key = full[1] if full else key
    value = next((a.partition("=")[2] for a in arguments if a.partition("=")[0] == key), "")
    hint = near(key, _keys())
    return f"{key}={value}: no such option; {hint}; see python find_prompt.py --help"


def near(name: str, known: Sequence[str]) -> str:
    """Return the nearest of the known names, or where none is near all of them."""
    nearest = did_you_mean(name, known, cutoff=0.5).strip()
    return nearest or f"expected one of {', '.join(known)}"


def _choices(group: str) -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in (CONF / group).glob("*.yaml"))


def _keys() -> list[str]:
    """Return every key that the configuration files hold, with its group before it."""
    keys = [path.name for path in sorted(CONF.iterdir()) if path.is_dir()]
    for path in sorted(CONF.rglob("*.yaml")):
        group = [*path.relative_to(CONF).parts[:-1]]
        if group == ["secondary"]:
            group.append(path.name.removesuffix(".yaml"))
        if group == ["experiment"]:
            continue
        keys += [".".join([*group, name]) for name in _names(path)]
    return list(dict.fromkeys(keys))


def _names(path: Path) -> list[str]:
    """Return the keys of a configuration file, and of those that it takes in."""
    text = path.read_text(encoding="utf-8")
    inner = [
        CONF / f"{name}.yaml"
        for name in re.findall(r"^  - /(\S+)@_here_", text, flags=re.MULTILINE)
    ]
    keys = re.findall(r"^(\w+):", text, flags=re.MULTILINE)
    names = [name for name in keys if name != "defaults"]
    for file in inner:
        names += _names(file)
    return names
