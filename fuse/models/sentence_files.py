"""Load a model of sentence-transformers by that library, after a look at all of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fuse.errors import FuseError
from fuse.models.loading import load_network, loading
from fuse.models.model_files import HOW_TO_CONVERT, check_config, find_file, read_json, read_object

FIRST = "Transformer"
LATER = (
    "Pooling",
    "WeightedLayerPooling",
    "Dense",
    "Normalize",
    "LayerNorm",
    "Dropout",
    "CNN",
    "WordWeights",
)
"""Modules of the library that read what a Transformer makes of a text."""
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = "sentence_{}_config.json"
ARCHITECTURES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
ARGUMENTS = (
    "model_args", "tokenizer_args", "config_args",
    "model_kwargs", "processor_kwargs", "config_kwargs",
)  # fmt: skip
"""Entries of the transformer's settings that the library hands on to `from_pretrained`."""
HARMLESS = (
    "add_eos_token", "attn_implementation", "dtype", "is_causal", "model_max_length",
    "padding_side", "torch_dtype", "truncation_side", "trust_remote_code", "use_cache",
)  # fmt: skip
"""What may stand in them; the library itself leaves `trust_remote_code` out."""
HUB = ("revision", "token", "local_files_only")
"""What the library takes itself, beside the options of the network."""
INSTALL = (
    "kind=sentence: needs the package sentence-transformers; "
    "pip install 'fuse-prompt[sentence]', or choose another kind"
)


def load_encoder(model_id: str, device: Any, **options: Any) -> Any:
    """Return the SentenceTransformer of a hub id or a local folder.

    Args:
        options: as `from_pretrained` takes them.

    Raises:
        FuseError: it cannot be read, has parts that are not of the library, or lacks weights.
    """
    if not Path(model_id).expanduser().is_dir() and "/" not in model_id:
        raise FuseError(
            f"model_id={model_id}: no such folder; give a local model folder, or a whole hub id "
            f"such as sentence-transformers/{model_id}"
        )
    with loading(model_id):
        subfolder = _check_files(model_id, options)
        return load_network(SentenceTransformers, model_id, device, subfolder=subfolder, **options)


class SentenceTransformers:
    """Lets `load_network` load what sentence-transformers knows, as what transformers knows."""

    @staticmethod
    def from_pretrained(source: str, **options: Any) -> tuple[Any, dict[str, list[str]]]:
        """Return a SentenceTransformer, and the weights that its files lack."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise FuseError(INSTALL) from error
        own = {name: options.pop(name) for name in HUB if name in options}
        if Path(source).is_dir():
            own["local_files_only"] = True
        for name in ("subfolder", "trust_remote_code", "output_loading_info"):
            options.pop(name, None)
        with _noting_missing_weights() as missing:
            encoder = SentenceTransformer(
                source, device="cpu", trust_remote_code=False, model_kwargs=options, **own
            )
        return encoder, missing


@contextmanager
def _noting_missing_weights() -> Iterator[dict[str, list[str]]]:
    """Note what transformers fills with random numbers within a context: the library is not told.

    One thread at a time, as in `loading`.
    """
    from transformers import PreTrainedModel

    original = vars(PreTrainedModel)["from_pretrained"]
    missing: dict[str, list[str]] = {"missing_keys": [], "mismatched_keys": []}

    def noting(kind: Any, *values: Any, **options: Any) -> Any:
        options["output_loading_info"] = True
        network, info = original.__func__(kind, *values, **options)
        for name, keys in missing.items():
            keys += info[name]
        return network

    PreTrainedModel.from_pretrained = classmethod(noting)  # type: ignore[method-assign, assignment]
    try:
        yield missing
    finally:
        PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def _check_files(model_id: str, options: Mapping[str, Any]) -> str:
    """Check a model's files, and return the folder in it that holds the transformer.

    Raises:
        FuseError: a part is not of the library, has pickled weights, or asks for odd things.
    """
    settings = read_object(model_id, SETTINGS, **options)
    check_config(model_id, SETTINGS, settings)
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise FuseError(
            f"model_id={model_id}: its {SETTINGS} says model_type={kind}, "
            "expected SentenceTransformer; choose a model that makes one vector of a text"
        )
    if find_file(model_id, "modules.json", **options) is None:
        _check_transformer(model_id, "", options)
        return ""
    modules = read_json(model_id, "modules.json", **options)
    if not isinstance(modules, list) or not modules:
        raise FuseError(
            f"model_id={model_id}: its modules.json holds no list of modules; "
            "repair the folder or choose another model"
        )
    for position, module in enumerate(modules):
        _check_module(model_id, module, (FIRST,) if position == 0 else LATER)
    _check_transformer(model_id, modules[0]["path"], options)
    for module in modules[1:]:
        _check_later(model_id, module["path"], options)
    return str(modules[0]["path"])


def _check_module(model_id: str, module: Any, known: tuple[str, ...]) -> None:
    """Check that a module is one of the library's; it is never imported by the name given."""
    kind = module.get("type") if isinstance(module, dict) else module
    library, _, name = str(kind).rpartition(".")
    if library.partition(".")[0] != "sentence_transformers" or name not in known:
        raise FuseError(
            f"model_id={model_id}: its modules.json has the module {kind!r:.80}; "
            f"expected {' or '.join(known)} of sentence_transformers there"
        )
    path = module.get("path")
    if not isinstance(path, str) or "\\" in path or {"/", ".."} & set(PurePosixPath(path).parts):
        raise FuseError(
            f"model_id={model_id}: its modules.json has the path {path!r:.80}, "
            "expected a folder in the model's own; repair it or choose another model"
        )


def _check_transformer(model_id: str, folder: str, options: Mapping[str, Any]) -> None:
    """Check the library's settings of the transformer: they may lead nowhere else."""
    if find_file(model_id, _within(folder, "adapter_config.json"), **options) is not None:
        raise FuseError(
            f"model_id={model_id}: holds an adapter of PEFT, which leads to another model; "
            "merge both (merge_and_unload, save_pretrained) and give that folder"
        )
    for architecture in ARCHITECTURES:
        name = _within(folder, TRANSFORMER_SETTINGS.format(architecture))
        settings = read_object(model_id, name, **options)
        check_config(model_id, name, settings)
        odd = [key for key in ("tokenizer_name_or_path",) if settings.get(key) is not None]
        for key in ARGUMENTS:
            odd += [f"{key}.{one}" for one in settings.get(key) or {} if one not in HARMLESS]
        if odd:
            raise FuseError(
                f"model_id={model_id}: its {name} has {odd[0]}, which is not heeded here; "
                "take it out or choose another model"
            )


def _check_later(model_id: str, folder: str, options: Mapping[str, Any]) -> None:
    """Check the files of a module after the transformer."""
    name = _within(folder, "config.json")
    config = read_object(model_id, name, **options)
    check_config(model_id, name, config)
    activation = config.get("activation_function", "torch.nn.")
    if not str(activation).startswith("torch.nn."):
        raise FuseError(
            f"model_id={model_id}: its {name} says activation_function={activation!s:.60}, "
            "expected one of torch.nn; choose another model"
        )
    pickled = find_file(model_id, _within(folder, "pytorch_model.bin"), **options)
    weights = find_file(model_id, _within(folder, "model.safetensors"), **options)
    if pickled is not None and weights is None:
        raise FuseError(f"model_id={model_id}: {folder} has pickled weights; {HOW_TO_CONVERT}")


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
