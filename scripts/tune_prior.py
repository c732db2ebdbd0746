r"""Fit a language model to texts of your own: a low-rank adapter (LoRA, arXiv 2106.09685).

Takes the overrides of find_prompt.py that say which model is meant (`primary...`, `device`, `seed`)
and the corpus (`corpus`, one text a line, or a .jsonl file), and options of its own, below. Each
text is read as a run reads a prompt, within `primary.prefix` or `primary.messages`, and the end of
text behind it. A part of the texts is held out; their perplexity is printed before and after.

    python scripts/tune_prior.py primary.model_id=gpt2 corpus=captions.txt out=prior
    python find_prompt.py primary=causal_lm primary.model_id=prior
    python scripts/tune_prior.py primary=smollm2 corpus=questions.jsonl \
        template="Question: {question}\nAnswer: {answer}"

Needs pip install -e '.[tune]'. The loop is a plain one: a library for training would bring more
than it saves.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from rich.progress import track  # noqa: E402
from torch import Tensor  # noqa: E402
from training import rate_at, take_step  # noqa: E402
from typing_extensions import Doc  # noqa: E402

from fuse.app import console  # noqa: E402
from fuse.app.config import compose  # noqa: E402
from fuse.app.reach import reaching  # noqa: E402
from fuse.app.terms import HELD, device_and_dtype, text_around  # noqa: E402
from fuse.errors import FuseError  # noqa: E402
from fuse.models.base import context_length  # noqa: E402
from fuse.models.loading import load_network, load_pretrained  # noqa: E402
from fuse.options import Count, Positive, check_options, options_of  # noqa: E402
from fuse.text.corpus import records  # noqa: E402
from fuse.text.template import Template  # noqa: E402
from fuse.text.vocabulary import Vocabulary  # noqa: E402

Row = tuple[list[int], list[int]]
"""The tokens of a text, and those that are predicted: -100 in the place of the others."""
WARM_STEPS = 10


@dataclass(frozen=True)
class TuneOptions:
    """What this script takes beside the overrides of find_prompt.py."""

    template: Annotated[
        str, Doc(r"makes a text of a record: {KEY} stands for its value, \n for a new line")
    ] = "{text}"
    out: Annotated[str, Doc("the folder that the adapter is written to")] = "outputs/prior"
    max_steps: Annotated[Count, Doc("how many batches are learned from")] = 200
    batch_texts: Annotated[Count, Doc("texts in a batch")] = 16
    max_tokens: Annotated[Count, Doc("of a text; the rest is cut off")] = 128
    held_out: Annotated[Count, Doc("texts that are held out, a tenth of all at most")] = 200
    rank: Annotated[Count, Doc("of the changes of the weights")] = 8
    rate: Annotated[Positive, Doc("learning rate, which rises first and falls to 0")] = 1e-3

    def __post_init__(self) -> None:
        check_options(self)


def main() -> None:
    """Fit, and write the adapter; a mistake ends with exit code 2."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        for option in options_of(TuneOptions).values():
            print(f"  {option.name:<12} {option.help} (default {option.default})")
        return
    console.quiet_libraries()
    warnings.filterwarnings("ignore")  # what PEFT says of layouts that it sets right itself
    try:
        print("\n".join(tune(sys.argv[1:])))
    except FuseError as error:
        for line in str(error).splitlines():
            console.fail(line)
        sys.exit(2)


def tune(arguments: Sequence[str]) -> list[str]:
    """Fit an adapter as a command line says; return what there is to tell.

    Raises:
        FuseError: an option, the model or the corpus cannot be used.
    """
    options, others = own_options(arguments)
    config = compose(others)
    texts = filled(config["corpus"], options.template)
    torch.manual_seed(config["seed"])
    rng = random.Random(config["seed"])
    rng.shuffle(texts)
    count = min(options.held_out, len(texts) // 10)
    if not count:
        raise FuseError(f"corpus={config['corpus']}: {len(texts)} texts, expected ten or more")
    texts = texts[: count + options.max_steps * options.batch_texts]
    with reaching({**config, "secondary": {}}):
        network, rows = load(config["primary"], texts, options.max_tokens)
    held_out, seen = rows[:count], rows[count:]
    before = perplexity(network, held_out, options.batch_texts)
    model = with_adapter(network, config["primary"], options.rank)
    fit(model, seen, options, rng)
    after = perplexity(model, held_out, options.batch_texts)
    model.save_pretrained(options.out, save_embedding_layers=False)
    return [
        f"perplexity of {count} texts that were held out: {before:.2f} before, {after:.2f} after",
        f"{options.out}: written; give primary.model_id={options.out}",
    ]


def own_options(arguments: Sequence[str]) -> tuple[TuneOptions, list[str]]:
    """Return the options of this script, and the other arguments."""
    known = {field.name: field.default for field in dataclasses.fields(TuneOptions)}
    given: dict[str, Any] = {}
    others = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in known:
            others.append(argument)
            continue
        given[key] = value
        with suppress(ValueError):  # whoever checks it says what was expected
            given[key] = type(known[key])(value)
    return TuneOptions(**given), others


def filled(corpus: str, template: str) -> list[str]:
    """Return the different texts that a template makes of the records of a corpus.

    Raises:
        FuseError: a record lacks a key; the corpus cannot be read.
    """
    found = {}
    for record in records(corpus):

        def value_of(match: re.Match[str], record: dict[str, Any] = record) -> str:
            if match[1] not in record:
                raise FuseError(
                    f"template={template}: a record of {corpus} has no {match[1]}, it has "
                    f"{', '.join(record)}; name one of these"
                )
            return str(record[match[1]]).strip()

        found[re.sub(r"\{(\w+)\}", value_of, template.replace(r"\n", "\n"))] = None
    return list(found)


def load(entry: dict[str, Any], texts: Sequence[str], max_tokens: int) -> tuple[Any, list[Row]]:
    """Return the network of an entry, and what it reads of each text and the end of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {name: entry[name] for name in HELD if entry[name] not in (None, "none")}
    tokenizer = load_pretrained(AutoTokenizer, entry["model_id"], **options)
    where = device_and_dtype(entry, "primary")
    network = load_network(AutoModelForCausalLM, entry["model_id"], **where, **options)
    limit = min(max_tokens, context_length(network.config, tokenizer))
    vocabulary = Vocabulary(tokenizer, limit, tail=())
    template = Template(**text_around(entry, tokenizer), predicts_first=True)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows = []
    for encoded in template.encode(vocabulary, texts):
        ids = [*encoded.up_to_prompt().ids, *end][:limit]
        first = encoded.free[0]
        if first < len(ids):
            rows.append((ids, [-100] * first + ids[first:]))
    return network, rows


def with_adapter(network: Any, entry: dict[str, Any], rank: int) -> Any:
    """Return a network with low-rank changes of its linear layers, which alone can be trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise FuseError("tune_prior: needs the package peft; pip install -e '.[tune]'") from error
    source = entry["model_id"]
    if Path(source).expanduser().exists():
        source = str(Path(source).expanduser().absolute())
    layout = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(network, layout)
    # PEFT itself would name the folder of a GGUF file
    saved = model.peft_config["default"]
    saved.base_model_name_or_path, saved.revision = source, entry["revision"]
    return model


def fit(model: Any, rows: Sequence[Row], options: TuneOptions, rng: random.Random) -> None:
    """Learn from batches of rows, each row once before any comes again."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=options.rate, weight_decay=0.0)
    waiting: list[Row] = []
    model.train()
    for step in track(range(options.max_steps), "fitting", console=console.errors):
        if len(waiting) < options.batch_texts:
            waiting += rng.sample(rows, len(rows))
        batch, waiting = waiting[: options.batch_texts], waiting[options.batch_texts :]
        rate = rate_at(options.rate, step, step / options.max_steps, WARM_STEPS)
        take_step(model, optimiser, loss_of(model, batch), rate)
    model.eval()


def loss_of(model: Any, rows: Sequence[Row], reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of what is predicted; padding is at the end, where none sees it."""
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([own + [-100] * (width - len(own)) for _, own in rows])
    logits = model(input_ids=inputs.to(model.device), use_cache=False).logits[:, :-1].float()
    wanted = labels[:, 1:].flatten().to(logits.device)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted, reduction=reduction)


@torch.no_grad()
def perplexity(model: Any, rows: Sequence[Row], batch_texts: int) -> float:
    """Return exp of the mean of -log p over all predicted tokens."""
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_texts):
        part = rows[start : start + batch_texts]
        total += float(loss_of(model, part, "sum"))
        count += sum(label >= 0 for _, own in part for label in own[1:])
    return math.exp(total / count)


if __name__ == "__main__":
    main()
