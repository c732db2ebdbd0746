"""Sentence encoders: models of sentence-transformers, run by that library itself."""

from __future__ import annotations

import copy
import hashlib
import logging
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel, context_length
from fuse.models.loading import loading
from fuse.models.proof import FastWay
from fuse.models.sentence_files import load_encoder
from fuse.models.vector_proof import prove_gradient, settle
from fuse.nn.batch import Inputs, pad, unpadded
from fuse.text.template import Template
from fuse.text.vocabulary import require_text
from fuse.types import Ids

log = logging.getLogger(__name__)

LONGEST = 2**20
"""Limits of more tokens than that are none."""
TRIALS = ("a", "Two dogs play in the snow, fast!", "1 a")
"""Texts on which a new encoder is compared with the library."""
MAX_FAR, MAX_COARSE_FAR = 1e-4, 1e-2
"""How far a cosine may be from 1, in float32 and in coarser types."""


class SentenceEncoder(EmbeddingModel):
    """A sentence encoder, whose vectors are those of `SentenceTransformer.encode`.

    Args:
        encoder: a SentenceTransformer that begins with a Transformer.

    Raises:
        FuseError: it begins with something else, or reads texts in a way that is not known here.
    """

    def __init__(self, encoder: Any) -> None:
        layer = getattr(getattr(encoder, "transformers_model", None), "get_input_embeddings", None)
        if layer is None or not hasattr(encoder, "preprocess"):
            raise FuseError(
                f"network={type(encoder).__name__}: expected a SentenceTransformer that begins "
                "with a Transformer; give SentenceTransformer(FOLDER)"
            )
        tokenizer, head, tail = _own_tokenizer(encoder), None, None
        instruction = encoder.prompts.get(encoder.default_prompt_name) or ""
        read = encoder.preprocess(["a"], prompt=instruction)
        self._features = {key: read[key] for key in ("modality", "prompt_length") if key in read}
        self._instruction = instruction
        if read["modality"] == "message":
            # The instruction is part of what stands before: a system's message
            body = tokenizer("a", add_special_tokens=False).input_ids
            head, tail = _around(_ids(read)[0], tuple(body))
            instruction = ""
        super().__init__(encoder, tokenizer, layer(), _max_length(encoder), head, tail)
        self.vocabulary.instruction = instruction
        self.acceleration.turn(False)
        self.turn_padding(False)
        self._check_reading()
        packed = FastWay("prepacked weights", self.acceleration.turn)
        settle(self, [FastWay("padded rows", self.turn_padding), packed])
        prove_gradient(self, self.vector)

    def turn_padding(self, on: bool) -> None:
        """Read rows of unequal length as a batch, or one by one."""
        self._pads = on

    @classmethod
    def load(
        cls,
        model_id: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> SentenceEncoder:
        """Load a model from a hub id or a local folder; `options` go to `from_pretrained`.

        What is no model of sentence-transformers is read as that library reads it: by the mean of
        the tokens' last hidden states, and causal language models by the last token's.

        Raises:
            FuseError: the model cannot be found or read, or has parts that are not the library's.
        """
        encoder = load_encoder(model_id, device, dtype=dtype, **options)
        with loading(model_id):
            return cls(encoder)

    def vector(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Return unit sentence vectors."""
        if not self._pads:
            return torch.cat([self._vectors_of(row) for row in unpadded(inputs)])
        return self._vectors_of(inputs)

    def _vectors_of(self, inputs: Inputs) -> Float[Tensor, "b e"]:
        """Return unit sentence vectors of rows that are read as they are."""
        features = {"input_ids": inputs.ids, "attention_mask": inputs.mask.long()}
        with self.reading(inputs.embeddings):
            return self._vectors({**features, **self._features})

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "b e"]:
        """Return the unit vectors of whole texts; long ones are cut as the library cuts them."""
        for text in texts:
            require_text(text, "target")
        limit = self.vocabulary.max_length
        for text, row in zip(texts, Template().encode(self.vocabulary, texts), strict=True):
            if len(row.ids) > limit:
                log.warning(
                    "target=%r...: %d tokens, of which the model reads %d; the rest is cut off",
                    text[:40],
                    len(row.ids),
                    limit,
                )
        batches = [texts] if self._pads else [[text] for text in texts]
        found = [self._vectors(self._read(batch)) for batch in batches]
        return torch.cat(found) if texts else torch.zeros(0, 0)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary, of a sample of every weight, and of what makes the vector."""
        digest = hashlib.sha256(super().fingerprint.encode())
        parts = [repr(module) for module in self.network.children()]
        digest.update(repr((parts, self._instruction, self.network.truncate_dim)).encode())
        return digest.hexdigest()

    def _read(self, texts: list[str]) -> dict[str, Any]:
        """Return what the library makes of texts for the network."""
        read = self.network.preprocess(texts, prompt=self._instruction)
        return {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in read.items()
        }

    def _vectors(self, features: dict[str, Any]) -> Float[Tensor, "b e"]:
        found = self.network(features)["sentence_embedding"]
        return normalize(found[:, : self.network.truncate_dim].float(), dim=-1)

    @torch.no_grad()
    def _check_reading(self) -> None:
        """Check that ids and vectors of a few texts, each read alone, are the library's own."""
        rows = Template().encode(self.vocabulary, TRIALS)
        far = MAX_FAR if self.network.dtype == torch.float32 else MAX_COARSE_FAR
        for text, row in zip(TRIALS, rows, strict=True):
            if len(row.ids) > self.vocabulary.max_length:
                continue
            read = self._read([text])
            (own,), (alone,) = self._vectors(read), self.vector(pad([row], self.device))
            if _ids(read)[0] != row.ids or not 1 - own @ alone <= far:
                raise FuseError(
                    f"network={type(self.network.transformers_model).__name__}: its vector of "
                    f"{text!r} is not that of sentence-transformers, which reads "
                    "it in a way that is not known here; choose another model"
                )


def _own_tokenizer(encoder: Any) -> Any:
    """Return a copy of the tokenizer: what the library reads would set padding in its own."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    if getattr(tokenizer, "is_fast", False):
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def _ids(read: dict[str, Any]) -> list[Ids]:
    """Return the tokens of each text that the library has read, without padding."""
    pairs = zip(read["input_ids"], read["attention_mask"].bool(), strict=True)
    return [tuple(ids[mask].tolist()) for ids, mask in pairs]


def _around(ids: Ids, body: Ids) -> tuple[Ids, Ids]:
    """Return what stands before and after the last place of `body`."""
    starts = [i for i in range(len(ids)) if ids[i : i + len(body)] == body] or [0]
    return ids[: starts[-1]], ids[starts[-1] + len(body) :]


def _max_length(encoder: Any) -> int:
    """Return how many tokens the library leaves of a long text."""
    limit = context_length(encoder.config, encoder.tokenizer)
    if limit > LONGEST:
        return limit
    (ids,) = _ids(encoder.preprocess(["a " * limit]))
    return min(limit, len(ids))
