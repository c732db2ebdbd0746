"""Options of a part, described once: by the annotations of a dataclass's fields.

An option is a field annotated with what it means, `Annotated[TYPE, Doc("help line")]`; the type
says what is allowed. From it come the check of values (by pydantic), what an error says was
expected, and the comments of the configuration files. A field without `Doc` is no option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import core_schema
from typing_extensions import Doc

from fuse.errors import FuseError, did_you_mean, one_line

MAX_COUNT = 1_000_000
"""The most candidates, rows or tokens that a run may ask for at once: above, memory runs out."""
Count = Annotated[int, Ge(1), Le(MAX_COUNT)]
CountOrNone = Annotated[int, Ge(0), Le(MAX_COUNT)]
"""A count that may be 0."""
Whole = Annotated[int, Ge(0), Le(10**18)]
AtLeastOne = Annotated[int, Ge(1), Le(10**18)]
LARGE = 1e9
"""No weight, rate or time is larger: beyond, float32 would lose what it is added to."""
Number = Annotated[float, Ge(-LARGE), Le(LARGE)]
Positive = Annotated[float, Gt(0), Le(LARGE)]
NotNegative = Annotated[float, Ge(0), Le(LARGE)]
Share = Annotated[float, Ge(0), Le(1)]


def _once_each(values: Sequence[Any]) -> Sequence[Any]:
    if not values or len(set(values)) < len(values):
        raise ValueError("nothing, or the same twice")
    return values


OnceEach = AfterValidator(_once_each)
"""Of a list: it holds something, and nothing twice."""

MAX_SHOWN = 60
"""Characters of a value that a message shows."""
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)


@dataclasses.dataclass(frozen=True)
class Words:
    """Say in words what is expected, where the type alone does not."""

    words: str


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Allow the names of a registry, in the annotation of a text."""

    names: tuple[str, ...]

    @property
    def words(self) -> str:
        """What is expected."""
        return f"one of {', '.join(self.names)}"

    def _check(self, value: str) -> str:
        if value not in self.names:
            raise ValueError(self.words)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Tell pydantic to call `_check`."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: its type, its default and its help line."""

    name: str
    hint: Any
    default: Any
    help: str

    @property
    def expected(self) -> str:
        """What a value has to be, in words."""
        return _in_words(self.hint)

    @property
    def choices(self) -> list[str]:
        """The names that a value may be, or hold; empty where it is no name."""
        return _choices(self.hint)

    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed."""
        try:
            _adapter(self.hint).validate_python(value)
        except ValidationError:
            return False
        return True

    def mistake(self, value: Any, key: str) -> str:
        """Return one line about a value that is not allowed."""
        known = self.choices
        given = value if isinstance(value, list | tuple) else [value]
        wrong = [one for one in given if isinstance(one, str) and one not in known]
        near = did_you_mean(wrong[0], known) if wrong else ""
        return f"{key}={shown(value)}: {near}expected {self.expected}"


def options_of(kind: Any) -> dict[str, Option]:
    """Return the options of a dataclass, by name, in their order."""
    return dict(_options_of(kind))


@cache
def _options_of(kind: Any) -> dict[str, Option]:
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        parts = get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else ()
        docs = [part.documentation for part in parts if isinstance(part, Doc)]
        if docs:
            found[field.name] = Option(field.name, hints[field.name], field.default, docs[0])
    return found


def check_options(part: Any) -> None:
    """Check the options of a dataclass's object; to be called by `__post_init__`.

    Raises:
        FuseError: one is not what its annotation says.
    """
    kind: Any = type(part)
    for name, option in options_of(kind).items():
        value = getattr(part, name)
        if not option.accepts(value):
            raise FuseError(option.mistake(value, name))


def mistakes_in(
    values: Mapping[str, Any],
    options: Mapping[str, Option],
    key: str = "",
    nullable: bool = False,
    known: Iterable[str] = (),
) -> list[str]:
    """Return one line for each value that is not allowed, is not known or is missing.

    Args:
        key: of the section that holds the values; it begins the name of each.
        nullable: whether null stands for an option's default.
        known: full names that an unknown one may have meant, beside those of the options.
    """
    before = f"{key}." if key else ""
    lines = []
    for name, value in values.items():
        if name not in options:
            own = [f"{before}{one}" for one in options]
            elsewhere = [full for full in known if full.rpartition(".")[2] == name]
            near = did_you_mean(f"{before}{name}", [*elsewhere, *own, *known], cutoff=0.5)
            near = f"did you mean {elsewhere[0]}? " if elsewhere else near
            names = "" if near else f"expected one of {', '.join(options)}; "
            lines.append(
                f"{before}{name}={shown(value)}: no such option; {near}{names}"
                "see python find_prompt.py --help"
            )
        elif not (nullable and value is None) and not options[name].accepts(value):
            lines.append(options[name].mistake(value, f"{before}{name}"))
    for name, option in options.items():
        if name not in values and option.default is dataclasses.MISSING:
            lines.append(f"{before}{name}: missing; expected {option.expected}")
    return lines


def shown(value: Any) -> str:
    """Return a value as a message shows it: in one line, as YAML has it, cut short."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else one_line(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=_CONFIG)


def _in_words(hint: Any) -> str:
    """Return in words what a type allows."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        words = [part.words for part in limits if isinstance(part, Words | OneOf)]
        return words[0] if words else _in_words(base) + _range(limits)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_in_words(part) for part in get_args(hint))
    if get_origin(hint) in (tuple, list, Sequence):
        known = _choices(hint)
        if known:
            return f"a list of different ones of {', '.join(known)}"
        return f"a list, each {_in_words(get_args(hint)[0])}"
    plain = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        NoneType: "null",
    }
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


def _range(limits: Sequence[Any]) -> str:
    """Return in words what the limits of a number say."""
    low = next((part.ge for part in limits if isinstance(part, Ge)), None)
    above = next((part.gt for part in limits if isinstance(part, Gt)), None)
    high = next((part.le for part in limits if isinstance(part, Le)), None)
    below = next((part.lt for part in limits if isinstance(part, Lt)), None)
    is_large = isinstance(high, int | float) and high > MAX_COUNT
    end = "" if high is None else f"{high:g}" if is_large else f"{high}"
    if below is not None:
        end = f"below {below}"
    if low is not None:
        return f" from {low:g} to {end}" if end else f", {low} or more"
    if above is not None:
        return f" above {above}, up to {end}" if end else f" above {above}"
    return f" up to {end}" if end else ""


def _choices(hint: Any) -> list[str]:
    """Return the names that a type allows."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    found: list[str] = []
    for part in get_args(hint):
        if isinstance(part, OneOf):
            found += part.names
        elif get_args(part):
            found += _choices(part)
    return found
