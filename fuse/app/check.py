"""Check a whole configuration at once: one line for each mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fuse.app.hints import Config
from fuse.app.schema import (
    AdapterFiles,
    AutoStrategy,
    CaptionerOptions,
    DraftOptions,
    Exact,
    ModelOptions,
    options_of_kind,
    run_options,
)
from fuse.errors import FuseError, one_of
from fuse.options import Option, mistakes_in, options_of, shown
from fuse.registry import ADAPTERS, METHODS, STRATEGIES
from fuse.text.messages import check_messages


def mistakes(config: Config) -> list[str]:
    """Return one line for each mistake of a composed configuration."""
    return list(dict.fromkeys(Check(config).lines))


class Check:
    """All mistakes of one configuration; `lines` holds them in its order."""

    def __init__(self, config: Config) -> None:
        keys = list(keys_of(config))
        above = {key.rpartition(".")[0] for key in keys}
        self._keys = [key for key in keys if key not in above]
        sections: dict[str, Callable[[Any, str], None]] = {
            "method": self._method,
            "refine": self._refine,
            "strategy": self._strategy,
            "scoring": self._scoring,
            "adapter": self._adapter,
            "primary": self._model,
            "secondary": self._secondaries,
            "constraints": self._constraints,
            "captioner": self._captioner,
        }
        plain = {name: value for name, value in config.items() if name not in sections}
        self.lines: list[str] = []
        self._wrong: dict[str, Any] = {}
        self._section(plain, run_options(), "", also=sections)
        for name, option in run_options().items():
            if name in plain and not option.accepts(plain[name]):
                self._wrong[name] = plain[name]
        for name, section in sections.items():
            section(config.get(name), name)

    def _section(
        self,
        values: Any,
        options: Mapping[str, Option],
        key: str,
        nullable: bool = False,
        also: Iterable[str] = (),
    ) -> None:
        """Check the values of one section.

        Args:
            also: names of the section that are checked elsewhere.
        """
        if not isinstance(values, Mapping):
            choice = "; choose one by its name" if "." not in key else ""
            self.lines.append(f"{key}={shown(values)}: expected an entry with options{choice}")
            return
        told = set()  # what ${device} hands on is told once
        for name, value in values.items() if key else ():
            # As it is shown: nan is not equal to nan
            if name in self._wrong and shown(self._wrong[name]) == shown(value):
                told.add(options[name].mistake(value, f"{key}.{name}"))
        known = list(also)
        given = {f"{key}.{name}" if key else name for name in values if name not in options}
        for full in self._keys:
            if not any(full == name or full.startswith(f"{name}.") for name in given):
                known.append(full)
        lines = mistakes_in(values, options, key, nullable, known)
        self.lines += [line for line in lines if line not in told]

    def _part(self, values: Any, kinds: Mapping[str, Any], key: str) -> None:
        """Check a method, a strategy or another part with a name; null stands for its defaults."""
        kind = self._named(values, kinds, key)
        if kind is not None:
            own = {name: value for name, value in values.items() if name != "name"}
            self._section(own, options_of(kind), key, nullable=True)

    def _named(self, values: Any, kinds: Mapping[str, Any], key: str) -> Any:
        """Return the class that an entry names; None after a mistake."""
        name = values.get("name") if isinstance(values, Mapping) else values
        if isinstance(values, Mapping) and isinstance(name, str) and name in kinds:
            return kinds[name]
        what = f"{key}.name" if isinstance(values, Mapping) else key
        self.lines.append(f"{what}={shown(name)}: {one_of(name, kinds)}")
        return None

    def _method(self, values: Any, key: str) -> None:
        self._part(values, METHODS, key)

    def _refine(self, values: Any, key: str) -> None:
        # With refine=null an experiment's own options of its refining method stand beside no name
        chosen = not isinstance(values, Mapping) or values.get("name", "") is not None
        if values is not None and chosen:
            self._part(values, METHODS, key)

    def _strategy(self, values: Any, key: str) -> None:
        self._part(values, {"auto": AutoStrategy, **STRATEGIES}, key)

    def _scoring(self, values: Any, key: str) -> None:
        from fuse.search.screening import Probe

        if not isinstance(values, Mapping) or values.get("name") != "probe":
            self._part(values, {"exact": Exact, "probe": Probe}, key)
            return
        own = {name: value for name, value in values.items() if name not in ("name", "draft")}
        self._section(own, options_of(Probe) | options_of(Exact), key, nullable=True)
        self._section(values.get("draft"), options_of(DraftOptions), f"{key}.draft")

    def _adapter(self, values: Any, key: str) -> None:
        kinds = {name: kind.settings for name, kind in ADAPTERS.items()}
        settings = self._named(values, kinds, key)
        if settings is not None:
            own = {name: value for name, value in values.items() if name != "name"}
            self._section(own, options_of(AdapterFiles) | options_of(settings), key)

    def _model(self, values: Any, key: str) -> None:
        """Check the entry of a model, whose options depend on its kind."""
        options = options_of(ModelOptions)
        if not isinstance(values, Mapping):
            self.lines.append(
                f"{key}={shown(values)}: expected an entry with model_id and weight; to leave it "
                "out, choose others in secondary=[...]"
            )
        elif "kind" not in values:
            self.lines.append(
                f"{key}: no such entry; choose entries by name, such as secondary=[clip,sentence]"
            )
        elif not options["kind"].accepts(values["kind"]):
            self.lines.append(options["kind"].mistake(values["kind"], f"{key}.kind"))
        else:
            self._section(values, options | options_of_kind(values["kind"]), key)
            self.lines += mistakes_in_template(values, key)

    def _secondaries(self, values: Any, key: str) -> None:
        if not isinstance(values, Mapping):
            self.lines.append(f"{key}={shown(values)}: expected names such as [clip,sentence]")
            return
        for name, entry in values.items():
            self._model(entry, f"{key}.{name}")

    def _constraints(self, values: Any, key: str) -> None:
        from fuse.text.constraints import Constraints

        self._section(values, options_of(Constraints), key)

    def _captioner(self, values: Any, key: str) -> None:
        self._section(values, options_of(CaptionerOptions), key)


def mistakes_in_template(values: Mapping[str, Any], key: str) -> list[str]:
    """Return one line for each option of an entry that does not go with template=chat."""
    from fuse.text.template import AUTO, SPACE

    lines = []
    messages: Any = values.get("messages")
    if values.get("template") != "chat" or not options_of(ModelOptions)["messages"].accepts(
        messages
    ):
        return []
    for name, default in (("prefix", ""), ("suffix", ""), ("start", AUTO), ("join", SPACE)):
        if values.get(name) != default:
            lines.append(
                f"{key}.{name}={shown(values.get(name))}: with template=chat the messages say what "
                f"stands around the prompt; give {key}.{name}={shown(default)}"
            )
    try:
        check_messages(messages)
    except FuseError as error:
        lines.append(f"{key}.{error}")
    return lines


def keys_of(config: Any, key: str = "") -> Iterable[str]:
    """Return the full name of every key of a configuration."""
    for name, value in config.items() if isinstance(config, Mapping) else ():
        full = f"{key}.{name}" if key else str(name)
        yield full
        yield from keys_of(value, full)
