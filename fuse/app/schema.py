"""The configuration: every key described once.

Options of methods, strategies, adapters and goals are described where these are; here is what a
run has beside them. Nothing of this file imports a network library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Le, MinLen
from pydantic import StringConstraints
from typing_extensions import Doc

from fuse.app.goals import GOALS, LengthPenalty
from fuse.app.hints import ModelId, Path, Pictures, Text, Vector, Verbatim
from fuse.images import ReadingOptions
from fuse.options import (
    AtLeastOne,
    Count,
    Number,
    OneOf,
    Option,
    Positive,
    Whole,
    Words,
    options_of,
)
from fuse.registry import FORMATS, MODELS
from fuse.text.messages import Message

Device = Annotated[
    str, StringConstraints(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,3})?)$"),
    Words("auto, cpu, cuda, cuda:1, mps, xpu"),
]  # fmt: skip
DType = Literal["float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
Interval = Annotated[
    AtLeastOne | Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?s$")] | None,
    Words("a number of steps such as 10, seconds such as 30s, or null"),
]

Project = Annotated[
    str, StringConstraints(pattern=r"^[\w.-]{1,128}$"), Words("a project's name")
]  # fmt: skip
Revision = Annotated[
    str, MinLen(1), Verbatim(or_null=True), Words("a branch, a tag or a commit of the hub")
]  # fmt: skip

Name = Annotated[str, MinLen(1), Words("a name")]

Messages = Annotated[
    list[Message], MinLen(1), Words("messages such as [{role:user,content:'{prompt}'}]")
]  # fmt: skip
DEVICE = Doc("where it runs")
DTYPE = Doc(
    "float32, float16, bfloat16; mixed_float16, mixed_bfloat16: "
    "the best few are scored again in float32"
)


@dataclass(frozen=True)
class RunOptions:
    """What a run has beside its parts and models."""

    image: Annotated[
        Pictures,
        Doc("the picture to caption, its address, a folder, a pattern or a list of them; or null"),
    ]
    nested: Annotated[bool, Doc("whether pictures in folders of a folder count")]
    batch_images: Annotated[
        Count, Doc("pictures of a folder that are searched at once, in shared forward passes")
    ]
    data: Annotated[
        Path | None,
        Doc(
            "a data set to go through: a `datasets` id (ID:CONFIGURATION), or local pictures, "
            ".tar (webdataset), .parquet, .jsonl, .csv, .txt: a folder, a file, a pattern"
        ),
    ]
    split: Annotated[Name | None, Doc("of `data`; null: train, or the only one")]
    column: Annotated[
        Name | None,
        Doc("of `data`, `targets`, `target_vector`; null: of pictures, else texts, else vectors"),
    ]
    targets: Annotated[
        Path | None,
        Doc("texts to go through as `target`: a file with one a line, or .jsonl, .csv, .parquet"),
    ]
    target_vector: Annotated[
        Vector,
        Doc(
            "a known embedding in the place of a picture or a text; a file of many: each of them, "
            "a .npy or .safetensors table, or a column of a .parquet file"
        ),
    ]
    formats: Annotated[
        list[Annotated[str, OneOf(tuple(FORMATS))]],
        Doc(
            "of the results of several: jsonl: metadata.jsonl; csv: results.csv; coco: "
            "coco_results.json; imagefolder: dataset/, pictures and texts for `datasets`"
        ),
    ]
    sidecar: Annotated[
        bool | Literal["overwrite"],
        Words("true, false or overwrite"),
        Doc(
            "whether each text is also written beside its picture, as NAME.txt; overwrite: also "
            "over a file that this run has not written"
        ),
    ]
    metric: Annotated[
        str, Doc("what a sweep compares, and minimises: loss, the sum, or the name of a term")
    ]
    target: Annotated[Text | None, Doc("a text whose meaning is sought")]
    label: Annotated[Text | None, Doc("a text that the LM shall say")]
    length_penalty: LengthPenalty
    init: Annotated[
        Text | None,
        Doc(
            "a text to start from; random: random tokens; caption: the captioner's sentence; "
            "retrieve: the nearest texts of `corpus`"
        ),
    ]
    corpus: Annotated[
        Path,
        Doc("of init=retrieve: a file of one text a line, or a .jsonl file with a text in each"),
    ]
    steps: Annotated[Whole | None, Doc("null: the method's own number, and that of `refine`")]
    stop_loss: Annotated[Number | None, Doc("end at this loss")]
    time_limit: Annotated[Positive | None, Doc("end after so many seconds")]
    max_evaluations: Annotated[AtLeastOne | None, Doc("end after so many candidates")]
    stop_at_label: Annotated[bool, Doc("end when the LM greedily says the label")]
    prompt_length: Annotated[Whole | None, Doc("null: the method's own length of its first prompt")]
    seed: Annotated[Annotated[int, Ge(0), Le(2**63 - 1)], Doc("the same seed gives the same run")]
    resume: Annotated[Path | None, Doc("the folder of a run that goes on where it was stopped")]
    checkpoint_every: Annotated[
        Interval, Doc("steps, or seconds such as 30s; null: no checkpoints")
    ]
    weights: Annotated[
        Literal["auto"] | None,
        Doc(
            "auto: each secondary's loss, times its weight, spreads as much as the primary's over "
            "the first candidates; of the weight given the sign counts. null: as given"
        ),
    ]
    threads: Annotated[
        Count | Literal["auto"] | None,
        Words("a number such as 4, auto, or null"),
        Doc("of torch; auto: the quickest in a short trial; null: torch's own number"),
    ]
    dry_run: Annotated[
        bool, Doc("show what a run would load, need and do; nothing is loaded or fetched")
    ]
    quiet: Annotated[bool, Doc("show no progress: the result, warnings and errors alone")]
    report: Annotated[bool, Doc("write report.html into the run folder")]
    tensorboard: Annotated[bool, Doc("log every step for TensorBoard, into the run folder")]
    wandb: Annotated[Project | None, Doc("log to this project of Weights & Biases, offline")]
    trackio: Annotated[Project | None, Doc("log to this project of Trackio")]
    device: Annotated[Device, DEVICE]
    dtype: Annotated[DType, DTYPE]


@dataclass(frozen=True)
class LoadOptions:
    """Which version of a model is loaded, and how its weights are held."""

    revision: Annotated[Revision | None, Doc("of a hub id; null: the newest")]
    device: Annotated[Device, DEVICE]
    dtype: Annotated[DType, DTYPE]
    device_map: Annotated[
        Literal["auto", "balanced", "sequential"] | None,
        Doc("how accelerate spreads the layers over all devices; null: all on one"),
    ]
    attn_implementation: Annotated[
        Literal["eager", "sdpa", "flash_attention_2"] | None,
        Doc("how the network attends; null: as transformers chooses"),
    ]
    quantization: Annotated[
        Literal["none", "int8", "nf4", "torchao_int8"],
        Doc("int8, nf4: weights of 8 or 4 bits by bitsandbytes; torchao_int8: by torchao"),
    ]


@dataclass(frozen=True)
class CaptionerOptions(LoadOptions):
    """Who writes for method=caption and init=caption."""

    model_id: Annotated[
        ModelId, Doc("BLIP, Florence-2, ViT-GPT2, LLaVA, any image-text-to-text model")
    ]
    question: Annotated[Text, Doc("for models that are talked to")]
    prompt: Annotated[
        Text | None,
        Doc("the whole text that it goes on from; null: the question, or what its family is told"),
    ]
    max_new_tokens: Annotated[Count, Doc("tokens of a caption, at most")]


@dataclass(frozen=True)
class ModelOptions(LoadOptions):
    """What the entry of every model holds, in `primary` and in `secondary`."""

    kind: Annotated[Annotated[str, OneOf(tuple(MODELS))], Doc("what kind of model it is")]
    model_id: Annotated[
        ModelId, Doc("a hub id or a local folder, of an adapter of PEFT, too; or a FILE.gguf there")
    ]
    weight: Annotated[Number, Doc("of its loss in the sum")]
    prefix: Annotated[Text, Doc("fixed text before the prompt")]
    suffix: Annotated[Text, Doc("fixed text after it")]
    start: Annotated[
        Text,
        Doc(
            "special tokens before all: auto, the tokenizer's own, once where the prefix brings "
            "them; none; or a text that spells them"
        ),
    ]
    join: Annotated[
        Literal["space", "none"],
        Doc("space: single spaces around the prompt where words would touch; none: nothing"),
    ]
    template: Annotated[
        Literal["plain", "chat"],
        Doc(
            "plain: prefix, prompt, suffix; chat: `messages`, as the model's chat template has "
            "them; a label is the assistant's turn"
        ),
    ]
    messages: Annotated[
        Messages, Doc("of template=chat: roles and contents, one of which holds {prompt}")
    ]
    batch_size: Annotated[Count, Doc("rows in one forward pass")]
    prefix_cache: Annotated[bool, Doc("false: every row is read whole; changes no result")]
    packing: Annotated[bool, Doc("false: the rows of a batch are padded; changes no result")]
    corpus: Annotated[Path | None, Doc("what adapters are fitted on")] = None


@dataclass(frozen=True)
class AdapterFiles:
    """Where fitted adapters are, and what they are fitted on."""

    cache_dir: Annotated[Path, Doc("where fitted adapters are kept")]
    shared: Annotated[
        Path | None, Doc("a folder or a hub repository to look for them in before fitting")
    ]
    corpus: Annotated[
        Path | None,
        Doc(
            "a text file, or a `datasets` id with its configuration after a colon; "
            "null: the words of both vocabularies"
        ),
    ] = None


@dataclass(frozen=True)
class AutoStrategy:
    """Beam search as wide as suits the method: 16 for autodan, 1 (greedy) for all others."""

    beam_width: Annotated[Count | None, Doc("null: the method's own")] = None


@dataclass(frozen=True)
class Exact:
    """Every candidate is scored."""

    workers: Annotated[
        int,
        Ge(1),
        Le(256),
        Doc(
            "threads that share the candidates of a search, each with a copy of every network; on "
            "several GPUs one each"
        ),
    ] = 1


@dataclass(frozen=True)
class DraftOptions(LoadOptions):
    """Who guesses: what differs from the primary's entry; it may have other tokens."""

    model_id: Annotated[
        ModelId | None,
        Doc(
            "null: the primary, reading little more than what changed; or a smaller model of its "
            "kind, distilgpt2 for gpt2-xl"
        ),
    ]
    batch_size: Annotated[Count, Doc("rows in one forward pass")]


def options_of_kind(kind: str) -> dict[str, Option]:
    """Return what the entry of a kind of model holds beside `ModelOptions`."""
    model = MODELS[kind]
    own = options_of(model.load_options) if model.load_options else {}
    return options_of(GOALS[model.goal]) | own


def run_options() -> dict[str, Option]:
    """Return the options at the top of the configuration, those of pictures among them."""
    return options_of(RunOptions) | options_of(ReadingOptions)


@cache
def verbatim_keys() -> dict[str, Verbatim]:
    """Return the last part of every key whose values are texts as they are typed."""
    found: dict[str, Verbatim] = {"pretrained": Verbatim(or_null=True)}
    described = (RunOptions, CaptionerOptions, ModelOptions, AdapterFiles, DraftOptions)
    for kind in (*described, *GOALS.values()):
        for name, option in options_of(kind).items():
            marks = list(_marks(option.hint))
            if marks:
                found[name] = Verbatim(all(mark.or_null for mark in marks))
    return found


def _marks(hint: Any) -> Iterable[Verbatim]:
    """Return every mark of verbatim text within a type."""
    for part in get_args(hint):
        if isinstance(part, Verbatim):
            yield part
        else:
            yield from _marks(part)
