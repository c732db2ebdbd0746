"""Proof, when a model is made, that its vectors are those of its network read plainly: one row at a
time, with neither padding nor mask; and that embeddings can stand in for a text's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.models.base import Model, VectorModel
from fuse.models.model_files import first_line
from fuse.models.proof import FastWay, Proof, agree
from fuse.models.reuse_trial import own_tokens
from fuse.nn.batch import Inputs, pad
from fuse.text.template import Encoded

FARTHEST = 0.1
"""How far a vector by given embeddings may be from the right one, as a share of how far another
text's is.
"""
NUM_TOKENS = 3
"""How many tokens each of two texts has: an odd number, since some networks pad by themselves."""
LENGTHS = (2, 9, 4, 12, 3)
"""How many tokens the texts have that are read as a batch, at most: in short texts alone, some
networks show nothing of what their neighbours are.
"""
Vectors = Callable[[Inputs], Float[Tensor, "b e"]]
"""Makes one vector of each row."""


@torch.inference_mode(False)
@torch.no_grad()
def settle(model: VectorModel, ways: Sequence[FastWay]) -> None:
    """Turn on those of a model's ways to read, all of them off, that change no vector.

    Raises:
        FuseError: a text's vector is another one from pass to pass.
    """
    tokens = own_tokens(model)
    room = max(1, model.vocabulary.max_text_tokens)
    rows = [_row(model, islice(tokens, min(length, room))) for length in LENGTHS]
    inputs = pad(rows, model.device)
    expected = model.vector(inputs)
    if not expected.isfinite().all():
        return  # a search tells of it
    proof = Proof(model.network, lambda: agree(model, model.vector(inputs), expected))
    if not proof.all_agree(ways):
        proof.settle(ways)


@torch.inference_mode(False)
def prove_gradient(model: Model, vector: Vectors) -> None:
    """Find out whether the vectors of a model's texts have the right gradient by embeddings.

    Where prepacked weights stand in its way they are turned off; where it is wrong all the same,
    `model.no_gradient` says why.
    """
    if model.no_gradient is not None:
        return
    fault = _fault(model, vector)
    if fault is not None:
        model.acceleration.turn(False)
        fault = _fault(model, vector)
    model.no_gradient = fault


def _fault(model: Model, vector: Vectors) -> str | None:
    """Return what is wrong with a model's gradient; None if nothing is."""
    try:
        reads = _reads_embeddings(model, vector)
        return None if reads else "it reads more of a token than one embedding"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a network without a gradient fails in its own way
        return f"no gradient goes through it ({type(error).__name__}: {first_line(error)})"


def _reads_embeddings(model: Model, vector: Vectors) -> bool:
    """Whether the embeddings of one text, under the ids of another, give the vector of the first,
    and the gradient reaches them.
    """
    one, other = _texts(model)
    with torch.no_grad():
        right, wrong = vector(one), vector(other)
    if not right.isfinite().all():
        return True  # a search tells of it
    with torch.enable_grad():
        embeddings = model.vocabulary.embedding[one.ids].requires_grad_()
        found = vector(replace(other, embeddings=embeddings))
        torch.autograd.grad(found.sum(), embeddings)
    return bool((found - right).norm() <= FARTHEST * (wrong - right).norm())


def _texts(model: Model) -> list[Inputs]:
    """Return two different texts of equal length."""
    tokens = own_tokens(model)
    return [pad([_row(model, islice(tokens, NUM_TOKENS))], model.device) for _ in range(2)]


def _row(model: Model, tokens: Iterable[int]) -> Encoded:
    """Return a text of these tokens."""
    ids = (*model.vocabulary.head, *tokens, *model.vocabulary.tail)
    return Encoded.of_ids(ids)
