"""Write the configuration files and the text of `--help` from the descriptions in the code.

The options of methods, strategies and adapters, with their defaults and help lines, stand in
`conf/` as the annotations of their dataclasses have them; so do the help lines of all other keys,
whose values are set in `conf/` alone. To be run after an option was added or changed.

    python scripts/write_conf.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fuse.app import schema  # noqa: E402
from fuse.app.overrides import groups  # noqa: E402
from fuse.options import Option, options_of, shown  # noqa: E402
from fuse.registry import ADAPTERS, METHODS, MODELS, STRATEGIES  # noqa: E402
from fuse.search.screening import Probe  # noqa: E402
from fuse.text.constraints import Constraints  # noqa: E402

CONF = ROOT / "conf"
KEY = re.compile(r"^( *)(\w+):( [^#\n]*)?(#.*)?$")


def main() -> None:
    """Write every file that differs."""
    for _ in range(2):  # the help lists what the first round wrote
        for path, text in files().items():
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                print(f"{path.relative_to(ROOT)}: written")


def files() -> dict[Path, str]:
    """Return the text of every configuration file."""
    found: dict[Path, str] = {}
    for group, kinds in (("method", METHODS), ("strategy", STRATEGIES)):
        for name in kinds:
            found[CONF / group / f"{name}.yaml"] = part_file(
                CONF / group / f"{name}.yaml", kinds[name], name
            )
    for name, kind in ADAPTERS.items():
        path = CONF / "adapter" / f"{name}.yaml"
        also = options_of(schema.AdapterFiles)
        found[path] = commented(part_file(path, kind.settings, name, also), also)
    sections = {
        "constraints": options_of(Constraints),
        "captioner": options_of(schema.CaptionerOptions),
        "draft": options_of(schema.DraftOptions),
    }
    for path in sorted(CONF.rglob("*.yaml")):
        if path not in found:
            found[path] = commented(path.read_text(), described(path), sections)
    found[CONF / "hydra/help/options.yaml"] = help_file()
    return found


def described(path: Path) -> dict[str, Option]:
    """Return the options whose help lines a file shows."""
    group = path.parent.name
    if path.name == "config.yaml":
        return schema.run_options()
    if path.name == "probe.yaml":
        return options_of(Probe) | options_of(schema.Exact)
    if path.name == "exact.yaml":
        return options_of(schema.Exact)
    if path.name == "auto.yaml":
        return options_of(schema.AutoStrategy)
    found: dict[str, Option] = {}
    if group in ("primary", "secondary") or path.name == "term.yaml":
        kind = re.search(r"^kind: (\w+)", path.read_text(), re.MULTILINE)
        found = options_of(schema.ModelOptions) if path.name == "term.yaml" else {}
        if kind:
            found |= schema.options_of_kind(kind[1])
    return found


def part_file(path: Path, kind: type, name: str, also: Mapping[str, Option] | None = None) -> str:
    """Return the file of a part: what it is, its name, and its options with their defaults.

    What an older file holds beside them stays: the first comment, a defaults list, the keys `also`.
    """
    older = path.read_text().splitlines() if path.exists() else []
    options = options_of(kind)
    summary = (kind.__doc__ or "").strip().splitlines()[0]
    head = [line for line in older if line.startswith("#")][:1] or [f"# {summary}"]
    kept, inside = [], False
    for line in older:
        match = KEY.match(line)
        inside = line.startswith("defaults:") or (inside and line.startswith(" "))
        if inside or (match and match[2] in (also or {})):
            kept.append(line)
    before = [line for line in kept if line.startswith(("defaults:", " "))]
    others = [line for line in kept if line not in before]
    lines = [*head, *before, *([""] if before else []), f"name: {name}", *others]
    for option in options.values():
        lines.append(option_line(option))
    return "\n".join(lines) + "\n"


def option_line(option: Option) -> str:
    """Return one option with its default and its help line."""
    default = option.default
    if option.name == "prompt_length":
        return f"prompt_length: ${{prompt_length}} # {option.help}; null: {default}"
    value = f"[{', '.join(default)}]" if isinstance(default, tuple) else shown(default)
    names = [name for name in option.choices if name not in option.help and name not in value]
    known = f": {', '.join(option.choices)}" if names else ""
    return f"{option.name}: {value} # {option.help}{known}"


def commented(
    text: str,
    options: Mapping[str, Option],
    sections: Mapping[str, Mapping[str, Option]] | None = None,
) -> str:
    """Return a file with the help line behind every key that is described."""
    lines, own = [], options
    for line in text.splitlines():
        match = KEY.match(line)
        if match and not match[1]:
            own = (sections or {}).get(match[2], {})
        known = (own if match[1] else options) if match else {}
        if match and match[2] in known:
            value = (match[3] or "").strip()
            comment = known[match[2]].help
            line = f"{match[1]}{match[2]}: {value} # {comment}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def help_file() -> str:
    """Return the configuration file that holds the text of `--help`."""
    lines = [
        "Find text by search. Everything is a Hydra override: KEY=VALUE, or GROUP=NAME.",
        "",
        "  python find_prompt.py image=images/boat.png method=gcg steps=50",
        "  python find_prompt.py -m image=images/boat.png,images/cat.png seed=1,2",
        "",
        "A text is taken as it is typed; null stands for none where a key says so.",
        "",
        "Groups and their names:",
    ]
    for group, names in groups().items():
        lines.append(f"  {group:<12} {', '.join(names)}")
    lines += ["", "Keys:", *_help_lines("", schema.run_options())]
    lines += _help_lines("constraints.", options_of(Constraints))
    lines += _help_lines("captioner.", options_of(schema.CaptionerOptions))
    lines += ["", "Of primary and of every entry of secondary (secondary.NAME.):"]
    lines += _help_lines("primary.", options_of(schema.ModelOptions))
    for kind in MODELS:
        lines += _help_lines(f"  ({kind}) .", schema.options_of_kind(kind))
    for group, kinds in (("method", METHODS), ("strategy", STRATEGIES)):
        for name, kind in kinds.items():
            lines += ["", f"{group}={name}:", *_help_lines(f"{group}.", options_of(kind))]
    for name, kind in ADAPTERS.items():
        own = options_of(schema.AdapterFiles) | options_of(kind.settings)
        lines += ["", f"adapter={name}:", *_help_lines("adapter.", own)]
    lines += ["", "scoring:", *_help_lines("scoring.", options_of(schema.Exact))]
    lines += ["", "scoring=probe:", *_help_lines("scoring.", options_of(Probe))]
    lines += _help_lines("scoring.draft.", options_of(schema.DraftOptions))
    body = "\n".join(f"  {line}".rstrip() for line in [*lines, "", "$FLAGS_HELP"])
    return f"# The text of --help; made by scripts/write_conf.py\ntemplate: |-\n{body}\n"


def _help_lines(before: str, options: Mapping[str, Option]) -> list[str]:
    """Return one line for each option: its name, its help line and what is allowed."""
    lines = []
    for name, option in options.items():
        lines.append(f"  {before + name:<32} {option.help} ({option.expected})")
    return lines


if __name__ == "__main__":
    main()
