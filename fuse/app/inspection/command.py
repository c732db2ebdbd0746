"""The command line of `python -m fuse.inspect`: one subcommand a question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fuse.app import console
from fuse.app.inspection.continuing import Continuing, Shaping
from fuse.app.inspection.named import load_entry, load_model, load_vocabulary
from fuse.app.inspection.view import View, show, write_json, write_png
from fuse.app.run_folder import RunFolder, saved_config
from fuse.app.terms import text_around
from fuse.errors import FuseError
from fuse.models import CausalLM, EmbeddingModel, Model
from fuse.text.template import Template


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer one question; exit with code 2 on a mistake of the user's."""
    console.set_up()
    options = parser().parse_args(arguments)
    try:
        views = options.answer(options)
        show(views)
        if options.json:
            write_json(views, options.json)
        if options.png:
            write_png(views, options.png)
    except FuseError as error:
        for line in str(error).splitlines():
            console.fail(line)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(
        prog="python -m fuse.inspect",
        description="Look at tokenizers, embeddings, next tokens and adapters. A model is an entry "
        "of conf/ (demo, gpt2, smollm2), a hub id, a folder or a FILE.gguf.",
    )
    commands = whole.add_subparsers(required=True, metavar="QUESTION")

    def command(name: str, answer: Any, text: str, help: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=help, description=help)
        if text:
            own.add_argument("text", metavar=text.strip("?*+").upper(), nargs=_nargs(text))
        own.add_argument("--json", type=Path, help="write what is found to this file too")
        own.add_argument("--png", type=Path, help="draw it into this file; needs matplotlib")
        own.set_defaults(answer=answer)
        return own

    _add_commands(command)
    return whole


def _nargs(text: str) -> str | None:
    return text[-1] if text[-1] in "?*+" else None


def _add_commands(command: Any) -> None:
    """Add the questions and their options."""
    own = command("tokens", _tokens, "text", "one text through several tokenizers, side by side")
    own.add_argument("--model", nargs="+", default=["demo"], help="whose tokenizers")
    own = command("neighbours", _neighbours, "text?", "the tokens closest to a token or a text")
    own.add_argument("--model", default="demo")
    own.add_argument("--kind", default="causal_lm", help="of a model that is no entry of conf/")
    own.add_argument("--vector", help="an embedding in the text's place: .safetensors or .json")
    _count(own, "--top-k", 10, "how many")
    own = command("next", _next, "text", "the likeliest next tokens, step by step")
    own.add_argument("--model", default="demo")
    _count(own, "--top-k", 10, "how many")
    _count(own, "--steps", 5, "of greedy decoding")
    _shaping(own, temperature=0.7, top_p=0.9, frequency_penalty=1.0)
    own = command("generate", _generate, "text?", "how a language model goes on")
    own.add_argument("--model", default="demo")
    own.add_argument("--run", type=Path, help="a run folder: from its prompt, by its primary")
    _count(own, "--length", 20, "tokens of a continuation, at most")
    _count(own, "--samples", 3, "how many are drawn beside the greedy one", lowest=0)
    own.add_argument("--seed", type=int, default=0)
    _shaping(own, temperature=1.0, top_p=1.0, frequency_penalty=0.0)
    own = command("similar", _similar, "text*", "how similar sentences are in meaning")
    own.add_argument("--model", default="sentence", help="a sentence encoder or a CLIP")
    own.add_argument("--kind", default="sentence", help="of a model that is no entry of conf/")
    own.add_argument("--file", type=Path, help="sentences, one a line")
    own = command("adapter", _adapter, "text+", "which target tokens stand for words; fidelity")
    own.add_argument("--overrides", nargs="*", default=[], help="as find_prompt.py takes them")
    _count(own, "--top-k", 5, "how many near ones")


def _count(
    own: argparse.ArgumentParser, name: str, default: int, help: str, lowest: int = 1
) -> None:
    def number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= 10_000:
            raise argparse.ArgumentTypeError(f"{text}: expected a number from {lowest} to 10000")
        return int(text)

    own.add_argument(name, type=number, default=default, help=f"{help} (default {default})")


def _shaping(own: argparse.ArgumentParser, **defaults: float) -> None:
    limits = {"temperature": (0.0, 100.0), "top_p": (1e-6, 1.0), "frequency_penalty": (-100, 100)}
    for name, default in defaults.items():
        low, high = limits[name]

        def number(text: str, low: float = low, high: float = high) -> float:
            try:
                value = float(text)
            except ValueError:
                value = float("nan")
            if not low <= value <= high:
                raise argparse.ArgumentTypeError(f"{text}: expected a number from {low} to {high}")
            return value

        own.add_argument(f"--{name.replace('_', '-')}", type=number, default=default)


# --- the answers ---------------------------------------------------------------------------------


def _tokens(options: argparse.Namespace) -> list[View]:
    from fuse.app.inspection.tokens import tokens

    short = {name: "/".join(Path(name).parts[-2:]) for name in options.model}
    if len(set(short.values())) < len(short):
        short = {name: name for name in options.model}
    return tokens({short[name]: load_vocabulary(name) for name in options.model}, options.text)


def _neighbours(options: argparse.Namespace) -> list[View]:
    from fuse.app.inspection.neighbours import neighbours

    model, _ = load_model(options.model, options.kind, Model)
    return neighbours(model.vocabulary, options.text, options.vector, options.top_k)


def _next(options: argparse.Namespace) -> list[View]:
    from fuse.app.inspection.next_tokens import next_tokens

    model, entry = load_model(options.model, "causal_lm", CausalLM)
    shapings = {
        f"temperature {options.temperature:g}": Shaping(temperature=options.temperature),
        f"top-p {options.top_p:g}": Shaping(top_p=options.top_p),
        f"penalty {options.frequency_penalty:g}": Shaping(1.0, 1.0, options.frequency_penalty),
    }
    reader = Continuing(model, entry["start"])
    return next_tokens(reader, options.text, options.top_k, options.steps, shapings)


def _generate(options: argparse.Namespace) -> list[View]:
    from fuse.app.inspection.generate import generate

    reader, text = _reader(options)
    shaping = Shaping(options.temperature, options.top_p, options.frequency_penalty)
    generator = torch.Generator().manual_seed(options.seed)
    return generate(reader, text, options.length, options.samples, shaping, generator)


def _reader(options: argparse.Namespace) -> tuple[Continuing, str]:
    """Return who goes on, and from which text: the one given, or that of a run."""
    if options.run is None:
        model, entry = load_model(options.model, "causal_lm", CausalLM)
        return Continuing(model, entry["start"]), options.text or ""
    config, result = saved_config(options.run), RunFolder(options.run, []).result()
    if not config or not result or "prompt" not in result:
        raise FuseError(f"--run={options.run}: holds no run; give the folder of one")
    entry = config["primary"]
    model = load_entry(entry, "primary")
    if not isinstance(model, CausalLM):
        raise FuseError(
            f"--run={options.run}: its primary is no causal LM; give --model and a text"
        )
    around = text_around(entry, model)
    text = Template(**around).render(str(result["prompt"]))[0]
    return Continuing(model, around["start"]), text


def _similar(options: argparse.Namespace) -> list[View]:
    from fuse.app.inspection.similar import similar

    texts = list(options.text)
    if options.file is not None:
        try:
            lines = options.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise FuseError(f"--file={options.file}: could not be read ({error})") from error
        texts += [line for line in lines if line.strip()]
    if len(texts) < 2:
        raise FuseError("TEXT: expected two sentences or more, or --file FILE")
    model, _ = load_model(options.model, options.kind, EmbeddingModel)
    return similar(model, texts)


def _adapter(options: argparse.Namespace) -> list[View]:
    from fuse.app.build import build
    from fuse.app.config import compose
    from fuse.app.inspection.adapter import adapters

    console.quiet_libraries()
    search = build(compose(options.overrides), console.fitting)
    return adapters(search, options.text, options.top_k)
