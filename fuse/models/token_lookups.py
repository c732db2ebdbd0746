"""Let a network read given embeddings wherever it looks token ids up.

A network may have several such layers: that which it names (`get_input_embeddings`) is sometimes
not the one it uses, and an encoder-decoder looks the same ids up twice, for its decoder moved by
one position. So the layers are told by what they are given and return.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import VectorModel
from fuse.nn.batch import pad
from fuse.text.template import Encoded

FARTHEST = 0.1
"""How far a vector by given embeddings may be from the right one, as a share of how far another
text's is.
"""


@contextmanager
def reading_tokens(
    model: VectorModel, ids: Int[Tensor, "b t"], embeddings: Float[Tensor, "b t d"] | None
) -> Iterator[None]:
    """Let every lookup of these ids return the embeddings, if there are any, within a context.

    Raises:
        FuseError: a gradient by the embeddings is wanted, and the network does not read them.
    """
    if embeddings is None:
        yield
        return
    if embeddings.requires_grad and torch.is_grad_enabled():
        _require_that_it_reads(model)
    table = model.vocabulary.embedding

    def replaced(layer: Any, given: tuple[Any, ...], out: Tensor) -> Tensor:
        asked = given[0]
        if asked.dtype != ids.dtype or asked.shape != ids.shape or out.shape != embeddings.shape:
            return out
        # Layers of positions may be given token ids, too
        if layer is not model.embedding_layer and not torch.equal(out, table[asked]):
            return out
        if torch.equal(asked, ids):
            return embeddings
        if torch.equal(asked[:, 1:], ids[:, :-1]):
            return torch.cat([table[asked[:, :1]], embeddings[:, :-1]], 1)
        return out

    with model.reading(embeddings), ExitStack() as hooks:
        for module in model.network.modules():
            if isinstance(module, torch.nn.Embedding):
                hooks.enter_context(module.register_forward_hook(replaced))
        yield


def _require_that_it_reads(model: VectorModel) -> None:
    """Try whether embeddings stand in for tokens: those of one text, under the ids of another.

    Raises:
        FuseError: the vector is not that of the first text.
    """
    if "reads_embeddings" not in vars(model):
        vars(model)["reads_embeddings"] = _reads_embeddings(model)
    if not vars(model)["reads_embeddings"]:
        raise FuseError(
            f"network={type(model.network).__name__}: it reads more of a token than one embedding, "
            "so that there is no gradient; choose a method that needs none, such as random"
        )


@torch.no_grad()
def _reads_embeddings(model: VectorModel) -> bool:
    vocabulary = model.vocabulary
    tokens = vocabulary.allowed.nonzero()[-4:, 0].tolist()
    rows = []
    for free in (tokens[:2], tokens[-2:]):
        ids = (*vocabulary.head, *free, *vocabulary.tail)
        rows.append(Encoded(ids, (), (0, 0), (0, 0)))
    one, other = (pad([row], model.device) for row in rows)
    given = replace(other, embeddings=vocabulary.embedding[one.ids])
    right, wrong, found = (model.vector(inputs) for inputs in (one, other, given))
    return bool((found - right).norm() <= FARTHEST * (wrong - right).norm())
