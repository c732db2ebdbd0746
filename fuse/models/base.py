"""What every model offers: a vocabulary, and forward passes over `Inputs`. No losses, no targets.

A new kind of model is one file: load the network, hand its tokenizer and embedding layer to
`Model.__init__`, and write the forward pass through `self.reading(embeddings)`, which makes the
network read `inputs.embeddings` where they are given. The network's own forward code is run as it
is, so results are its own.
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from operator import itemgetter
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.nn.batch import CachedPrefixes, Inputs, pad
from fuse.nn.embedding_table import EmbeddedVocabulary, in_double
from fuse.nn.fixed_layers import Acceleration
from fuse.nn.network_state import network_state, num_packed_weights
from fuse.nn.network_view import network_view
from fuse.nn.operations import OperationCounter
from fuse.nn.token_lookups import TokenLookups
from fuse.text.template import Template
from fuse.text.vocabulary import require_text
from fuse.types import Ids

SAMPLED_NUMBERS = 64
"""About how many numbers of a weight its fingerprint holds."""


class Model(ABC):
    """A frozen network in evaluation mode with its vocabulary, for one thread at a time.

    `network` is a view: it shares the weights of the network given, which is not changed.

    Args:
        network: a torch module.
        tokenizer: a fast tokenizer of transformers.
        embedding_layer: the part of the network that looks token ids up.
        max_length: how many tokens the network reads at most, special tokens included.
        head: the special tokens before a text; None for the tokenizer's own.
        tail: those after it.
    """

    goal: ClassVar[str] = "fluency"
    """What is sought with such a model, by its name in `fuse.app.goals.GOALS`."""
    load_options: ClassVar[type | None] = None
    """A dataclass of what `load` takes from the configuration beside id, dtype and device."""
    keeps_proof: ClassVar[bool] = False
    """Whether `load` takes a `proof_dir`, in which it keeps what it proves of a network."""

    supports_prefix_cache = False
    """Whether the model goes on from the `CachedPrefixes` that `prefill` returns."""

    supports_packing = False
    """Whether rows that go on from cached prefixes are read as one, without padding.

    Such a model can also estimate losses, from `CacheHits` that are `approximate`.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        embedding_layer: Any,
        max_length: int,
        head: Ids | None = None,
        tail: Ids | None = None,
    ) -> None:
        view, by_id = network_view(network)
        self.network = view
        self.operations = OperationCounter(view)
        self.acceleration = Acceleration(view)
        self.embedding_layer = by_id.get(id(embedding_layer), embedding_layer)
        self.lookups = TokenLookups(view, self.embedding_layer)
        table = _embedding_table(view, self.embedding_layer)
        self.vocabulary = EmbeddedVocabulary(tokenizer, table, max_length, head, tail)
        check_tokens(self.vocabulary)
        self.replicas: list[Model] = []
        """Copies for further threads, as far as they were asked for."""
        layer = _quantised_layer(view)
        self.no_gradient = None if layer is None else f"its layer {layer} is quantised"
        """Why there is no gradient by embeddings; None if there is one."""

    @classmethod
    @abstractmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> Model:
        """Load a model from a hub id or a local folder; `options` go to `from_pretrained`.

        Raises:
            FuseError: the model cannot be found or read.
        """

    @cached_property
    def size(self) -> int:
        """How many weights the network has before its output layer, without the token table."""
        vocabulary_size = len(self.vocabulary)
        total = num_packed_weights(self.network, vocabulary_size)
        for weight in self.network.parameters():
            total += weight.numel() * (weight.shape[:1] != (vocabulary_size,))
        return max(1, total)

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return self.vocabulary.embedding.device

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and of a sample of every weight."""
        return self.compute_fingerprint()

    def compute_fingerprint(self) -> str:
        """Return `fingerprint` as it is now."""
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for name, weight in sorted(network_state(self.network), key=itemgetter(0)):
            sample = in_double(weight.flatten()[:: max(1, weight.numel() // SAMPLED_NUMBERS)])
            digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.cpu().numpy().tobytes())
        return digest.hexdigest()

    def prefill(self, inputs: Inputs, positions: Sequence[int]) -> CachedPrefixes:
        """Read rows from which others can go on.

        Args:
            inputs: the rows; with `hits` they go on from older ones themselves.
            positions: the consecutive positions after which a language model predicts the next
                token.
        """
        raise NotImplementedError

    def adopted(self, prefixes: CachedPrefixes) -> CachedPrefixes:
        """Return what another model of the same weights has read, for this one to go on from."""
        pairs = [
            (keys.to(self.device), values.to(self.device)) for keys, values in prefixes.keys_values
        ]
        return replace(prefixes, keys_values=pairs)

    def fit_vocabulary(self, num_predicted: int, max_length: int) -> None:
        """Leave out tokens that the network never predicts, and positions that it does not know.

        Raises:
            FuseError: a special token is among them.
        """
        old = self.vocabulary
        table, length = old.embedding[:num_predicted], min(old.max_length, max_length)
        old.max_length = length
        if len(table) < len(old):
            self.vocabulary = EmbeddedVocabulary(old.tokenizer, table, length, old.head, old.tail)
            check_tokens(self.vocabulary)

    @contextmanager
    def reading(self, embeddings: Float[Tensor, "b t d"] | None) -> Iterator[None]:
        """Let the embedding layer return these embeddings, if there are any, within a context.

        Raises:
            FuseError: a gradient by the embeddings is wanted, and there is none.
        """
        if embeddings is None:
            yield
            return
        if self.no_gradient and embeddings.requires_grad and torch.is_grad_enabled():
            raise FuseError(
                f"network={type(self.network).__name__}: {self.no_gradient}, so that it has no "
                "gradient; choose a method that needs none, such as random, or other weights"
            )
        with self.lookups.returning(embeddings):
            yield


class VectorModel(Model):
    """A model that maps a text to one vector, of which its losses are functions."""

    @abstractmethod
    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Return one vector a row, which depends on no other row."""


class EmbeddingModel(VectorModel):
    """A model whose vectors are of unit length, so that their angles compare meanings."""

    goal = "text"

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "b e"]:
        """Return the unit vectors of whole texts.

        Raises:
            FuseError: a text is no Unicode, or has more tokens than the model can read.
        """
        for text in texts:
            require_text(text, "target")
        rows = Template().encode(self.vocabulary, texts)
        for text, row in zip(texts, rows, strict=True):
            if len(row.ids) > self.vocabulary.max_length:
                raise FuseError(
                    f"target={text[:40]!r}...: {len(row.ids)} tokens, "
                    f"expected at most {self.vocabulary.max_length}; shorten it"
                )
        return self.vector(pad(rows, self.device))


LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configs call the number of positions that a network reads."""


def context_length(config: Any, tokenizer: Any) -> int:
    """Return how many tokens both a network and its tokenizer take, as far as they say so."""
    config = config.get_text_config()
    said = [getattr(config, name, None) for name in LENGTHS]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        # Longer rows turn all positions by other angles, those of a batch's shorter rows, too
        said.append(rope.get("original_max_position_embeddings"))
        said.append(getattr(config, "original_max_position_embeddings", None))
    limits = [sys.maxsize]
    for limit in (*said, tokenizer.model_max_length):
        if isinstance(limit, int | float) and limit > 0:
            limits.append(int(limit))
    return min(limits)


def check_tokens(vocabulary: EmbeddedVocabulary) -> None:
    """Check that a tokenizer knows words, and that the network knows its special tokens.

    Raises:
        FuseError: it lacks its file, or belongs to another network.
    """
    tokenizer = vocabulary.tokenizer
    special = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    words = {token: id for token, id in tokenizer.get_vocab().items() if token not in special}
    if words and max(words.values()) >= len(vocabulary):
        raise FuseError(
            f"tokenizer={tokenizer.name_or_path}: it has {1 + max(words.values())} tokens, and the "
            f"network knows {len(vocabulary)}; choose the tokenizer that belongs to it"
        )
    if not words:
        raise FuseError(
            f"tokenizer={tokenizer.name_or_path}: knows no words; "
            "add its tokenizer.json or choose another model"
        )
    for token in (*vocabulary.head, *vocabulary.tail):
        if not 0 <= token < len(vocabulary):
            raise FuseError(
                f"tokenizer={tokenizer.name_or_path}: its special token {token} is not among the "
                f"{len(vocabulary)} tokens of the network; repair it or choose another model"
            )


def _embedding_table(network: Any, layer: Any) -> Float[Tensor, "v d"]:
    """Return what an embedding layer returns for each id: its weight itself where that is equal.

    Raises:
        FuseError: it is no such layer.
    """
    weight: Any = getattr(layer, "weight", None)
    plain = type(weight) in (Tensor, torch.nn.Parameter) and not weight.is_meta
    try:
        size = len(weight) if isinstance(weight, Tensor) else layer.num_embeddings
        # Hooks of accelerate bring ids to where a layer runs
        table = layer(torch.arange(size, device=weight.device if plain else "cpu"))
    except (AttributeError, TypeError):
        table = None
    if not isinstance(table, Tensor) or table.ndim != 2:
        raise FuseError(
            f"network={type(network).__name__}: its embedding layer ({type(layer).__name__}) does "
            "not return one vector for each token; choose another"
        )
    if plain and table.dtype == weight.dtype and torch.equal(table, weight):
        return weight.detach()  # takes no memory
    return table


def _quantised_layer(network: Any) -> str | None:
    """Return the name of a layer of torch.ao that has packed weights, if there is one."""
    for name, module in network.named_modules():
        if callable(getattr(module, "weight", None)):
            return name
    return None
