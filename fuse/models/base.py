"""What every model offers: a vocabulary, and forward passes over `Inputs`. No losses, no targets.

A new kind of model is one file: load the network, hand its tokenizer and embedding layer to `Model.__init__`, and write
its forward pass through `self.reading(inputs)`, which makes the network read `inputs.embeddings` where they are given.
The network's own forward code is run as it is, so results are its own.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fuse.errors import FuseError
from fuse.types import Ids, Inputs
from fuse.vocabulary import Vocabulary


class Model(ABC):
    """A frozen network in evaluation mode with its vocabulary."""

    def __init__(
        self, network: nn.Module, tokenizer: Any, embedding_layer: nn.Module, max_length: int, head: Ids | None = None, tail: Ids | None = None
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.embedding_layer = embedding_layer
        rows = embedding_layer.weight.shape[0]
        with torch.no_grad():
            table = embedding_layer(torch.arange(rows, device=embedding_layer.weight.device))
        self.vocabulary = Vocabulary(tokenizer, table, max_length, head, tail)

    @property
    def device(self) -> torch.device:
        return self.vocabulary.embedding.device

    @contextmanager
    def reading(self, inputs: Inputs) -> Iterator[None]:
        """Within this context the network's embedding layer returns `inputs.embeddings`, if there are any."""
        if inputs.embeddings is None:
            yield
            return
        handle = self.embedding_layer.register_forward_hook(lambda *_: inputs.embeddings)
        try:
            yield
        finally:
            handle.remove()


class EmbeddingModel(Model):
    """A model that maps a text to one vector."""

    def embed(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Unit vectors, one a row."""
        raise NotImplementedError

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "b e"]:
        """Unit vectors of whole texts.

        Raises:
            FuseError: a text has more tokens than the model can read.
        """
        from fuse.vocabulary import Template, pad

        rows = Template().encode(self.vocabulary, texts)
        for text, row in zip(texts, rows, strict=True):
            if len(row.ids) > self.vocabulary.max_length:
                limit = self.vocabulary.max_length
                raise FuseError(f"target={text[:40]!r}...: {len(row.ids)} tokens, expected at most {limit}; shorten it")
        return self.embed(pad(rows, self.device))


def load_pretrained(auto_class: Any, model_id: str, key: str = "model_id", **options: Any) -> Any:
    """`auto_class.from_pretrained` on a hub id or a local folder.

    Raises:
        FuseError: there is no such model, or it could not be read.
    """
    path = Path(model_id).expanduser()
    try:
        return auto_class.from_pretrained(str(path) if path.is_dir() else model_id, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FuseError(f"{key}={model_id}: expected a hub id or a local model folder; could not load it ({reason})") from error
