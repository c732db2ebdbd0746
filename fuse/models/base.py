"""What every model offers: a vocabulary, and forward passes over `Inputs`. No losses, no targets.

A new kind of model is one file: load the network, hand its tokenizer and embedding layer to `Model.__init__`, and write
its forward pass through `self.reading(embeddings)`, which makes the network read `inputs.embeddings` where they are given.
The network's own forward code is run as it is, so results are its own.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.layers import quickened
from fuse.types import Ids, Inputs, Trunk
from fuse.vocabulary import Template, Vocabulary, pad

SAMPLED = 64
"""About how many numbers of a weight its fingerprint holds."""


class Model(ABC):
    """A frozen network in evaluation mode with its vocabulary, for one thread at a time."""

    branches = False
    """Whether the model goes on from the `Trunk` that `read` makes, reading no token before the branch again."""

    packs = False
    """Whether rows that go on from a trunk are read as one, so that unlike ones need no padding; `Branch.guessed` is understood."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        embedding_layer: Any,
        max_length: int,
        head: Ids | None = None,
        tail: Ids | None = None,
    ) -> None:
        self.network = quickened(network.eval().requires_grad_(False))
        self.embedding_layer = embedding_layer
        weight = embedding_layer.weight
        with torch.no_grad():
            table = embedding_layer(torch.arange(len(weight), device=weight.device))
        if table.dtype == weight.dtype and torch.equal(table, weight):
            table = weight.detach()  # which takes no memory
        self.vocabulary = Vocabulary(tokenizer, table, max_length, head, tail)

    @classmethod
    @abstractmethod
    def load(cls, model_id: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any) -> Model:
        """From a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read.
        """

    @cached_property
    def size(self) -> int:
        """How many weights stand before the output layer, those of the token table left out."""
        return max(1, sum(w.numel() for w in self.network.parameters() if w.shape[:1] != self.vocabulary.embedding.shape[:1]))

    @property
    def device(self) -> torch.device:
        return self.vocabulary.embedding.device

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and of a sample of every weight."""
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for name, weight in sorted(self.network.state_dict().items()):
            sample = weight.flatten()[:: max(1, weight.numel() // SAMPLED)].double().cpu()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    def read(self, inputs: Inputs, columns: Sequence[int]) -> Trunk:
        """What other rows can go on from; `columns` are the positions after which a language model foretells."""
        raise NotImplementedError

    @contextmanager
    def reading(self, embeddings: Float[Tensor, "b t d"] | None) -> Iterator[None]:
        """Within this context the network's embedding layer returns these embeddings, if there are any."""
        if embeddings is None:
            yield
            return
        with self.embedding_layer.register_forward_hook(lambda *_: embeddings):
            yield


class VectorModel(Model):
    """A model that maps a text to one vector, of which its losses are functions."""

    @abstractmethod
    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """One vector a row, each row's own."""


class EmbeddingModel(VectorModel):
    """A model whose vectors are of unit length and tell meanings by their angles."""

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "b e"]:
        """Unit vectors of whole texts.

        Raises:
            FuseError: a text has more tokens than the model can read.
        """
        rows = Template().encode(self.vocabulary, texts)
        for text, row in zip(texts, rows, strict=True):
            if len(row.ids) > self.vocabulary.max_length:
                limit = self.vocabulary.max_length
                raise FuseError(f"target={text[:40]!r}...: {len(row.ids)} tokens, expected at most {limit}; shorten it")
        return self.vector(pad(rows, self.device))


def load_pretrained(auto_class: Any, model_id: str, **options: Any) -> Any:
    """`auto_class.from_pretrained` on a hub id or a local folder.

    Raises:
        FuseError: there is no such model, or it could not be read.
    """
    path = Path(model_id).expanduser()
    if not path.is_dir() and (path.is_absolute() or model_id.startswith(".") or model_id.count("/") > 1):
        raise FuseError(f"model_id={model_id}: no such folder; give a hub id or a local model folder")
    try:
        return auto_class.from_pretrained(str(path) if path.is_dir() else model_id, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FuseError(f"model_id={model_id}: expected a hub id or a local model folder; could not load it ({reason})") from error


def load_network(auto_class: Any, model_id: str, **options: Any) -> Any:
    """A network by `load_pretrained`, with all of its weights.

    Raises:
        FuseError: it cannot be read, or the files lack weights (which transformers would fill with random numbers).
    """
    network, info = load_pretrained(auto_class, model_id, output_loading_info=True, **options)
    lacking = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]) if "pooler" not in str(key))
    if lacking:
        kind = auto_class.__name__
        raise FuseError(
            f"model_id={model_id}: not a model for {kind}, {len(lacking)} weights such as {lacking[0]} are missing; choose another"
        )
    return network
