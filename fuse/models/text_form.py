"""How a dual encoder wants its texts: alone, or padded to one length, with a mask or without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from fuse.errors import FuseError
from fuse.models.base import EmbeddingModel
from fuse.models.reuse_trial import is_coarse_type
from fuse.nn.batch import Inputs, pad
from fuse.nn.network_view import input_device, network_view
from fuse.text.template import Template
from fuse.text.vocabulary import Vocabulary

MAX_ERROR, MAX_COARSE_ERROR = 1e-4, 0.1
"""How far a unit vector may be from the network's own; the latter in coarse types."""
NUM_TEXT_TOKENS = (6, 1, 3)
"""About how many tokens of the vocabulary each text of a proof has."""
SENTENCE = "It's a RED house, isn't it?"
"""One more: tokenizers treat signs and capitals in their own ways."""


@dataclass(frozen=True)
class TextForm:
    """What the rows of a text tower look like.

    Args:
        width: how many tokens each has, padding included; None where padding changes nothing.
        pad_id: the token that fills a row up.
        left: whether padding stands before the text.
        masked: whether the tower is told what is padding.
    """

    width: int | None = None
    pad_id: int = 0
    left: bool = False
    masked: bool = True

    def options(self, ids: Int[Tensor, "b t"], mask: Tensor) -> dict[str, Tensor]:
        """Return what the network is given of ids and mask."""
        return {"input_ids": ids, "attention_mask": mask} if self.masked else {"input_ids": ids}

    def padded(self, inputs: Inputs, table: Float[Tensor, "v d"]) -> Inputs:
        """Return rows as wide as the tower wants them.

        Args:
            table: the embeddings of all tokens.
        """
        assert self.width is not None
        lengths = inputs.mask.sum(1, keepdim=True)
        begin = self.width - lengths if self.left else torch.zeros_like(lengths)
        # Where in its row each token of a padded one comes from  [b width]
        source = torch.arange(self.width, device=lengths.device) - begin
        real = (source >= 0) & (source < lengths)
        source = source.clamp(0, inputs.ids.shape[1] - 1)
        ids = torch.where(real, inputs.ids.gather(1, source), self.pad_id)
        free, label = (real & where.gather(1, source) for where in (inputs.free, inputs.label))
        embeddings = inputs.embeddings
        if embeddings is not None:
            row = torch.arange(len(ids), device=ids.device)[:, None]
            embeddings = torch.where(real[..., None], embeddings[row, source], table[self.pad_id])
        return Inputs(ids, real, free, label, embeddings)


class TextProof:
    """A few texts, and what the network itself, as it is given, makes of each one alone.

    Its eager attention is asked: some networks forget that they are causal with any other.

    Args:
        network: a dual encoder of transformers.
        tokenizer: its own, fast or not.
        vocabulary: that of its text tower.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, network: Any, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._network, _ = network_view(network)
        use_eager_attention(self._network)
        self._tokenizer = tokenizer
        self._device = input_device(self._network)
        self._max_error = MAX_COARSE_ERROR if is_coarse_type(self._network.dtype) else MAX_ERROR
        self._texts = _texts(vocabulary)
        self.form = self._find_form(vocabulary.max_length)
        self._expected = torch.cat([self._own(text, self.form.width) for text in self._texts])
        self.num_numbers = self._expected.shape[1]
        """How many numbers a vector has."""

    def _find_form(self, max_length: int) -> TextForm:
        """Find out how the network's texts are padded: not at all, where that changes nothing."""
        tokenizer, text = self._tokenizer, self._texts[0]
        plain = TextForm(masked="attention_mask" in tokenizer(text))
        if tokenizer.pad_token_id is None:
            return plain
        kind = PROCESSOR_MAPPING.get(type(self._network.config), None)
        width = min(max_length, getattr(kind, "text_kwargs", {}).get("max_length", max_length))
        if float((self._own(text) - self._own(text, width)).norm()) <= self._max_error:
            return replace(plain, masked=True)
        left = tokenizer.padding_side == "left"
        return replace(plain, width=width, pad_id=tokenizer.pad_token_id, left=left)

    def _own(self, text: str, width: int | None = None) -> Float[Tensor, "1 e"]:
        """Return the network's own unit vector of a text, padded to this width if there is one."""
        options = {} if width is None else {"padding": "max_length", "max_length": width}
        given = self._tokenizer([text], return_tensors="pt", **options).to(self._device)
        vector = getattr(self._network.get_text_features(**given), "pooler_output", None)
        if vector is None or vector.ndim != 2:
            raise FuseError(
                f"network={type(self._network).__name__}: it does not make one vector of a text; "
                "choose another dual encoder, such as CLIP or SigLIP"
            )
        return normalize(vector.float(), dim=-1)

    def passes(self, model: EmbeddingModel) -> bool:
        """Whether a model makes the network's own vectors."""
        return self._error(model) <= self._max_error

    def check(self, model: EmbeddingModel) -> None:
        """Check that a model makes the network's own vectors.

        Raises:
            FuseError: it does not.
        """
        if not self.passes(model):
            raise FuseError(
                f"network={type(self._network).__name__}: its own vector of a text is another "
                f"than ours of its tokens (by {self._error(model):.1e}); choose another model"
            )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _error(self, model: EmbeddingModel) -> float:
        """Return how far a model's vectors are from the network's own, at most."""
        rows = Template().encode(model.vocabulary, self._texts)
        inputs, alone = pad(rows, model.device), pad(rows[:1], model.device)
        embeddings = model.vocabulary.embedding[inputs.ids]
        # Where embeddings are given, ids must not matter: the free ones reversed
        turned = inputs.ids.clone()
        for row, free in enumerate(inputs.free):
            turned[row, free] = turned[row, free].flip(0)
        worst = 0.0
        for given in (alone, inputs, replace(inputs, ids=turned, embeddings=embeddings)):
            vectors = model.vector(given)
            errors = (vectors - self._expected[: len(vectors)]).norm(dim=1)
            worst = max(worst, float(errors.nan_to_num(inf).max()))
        return worst


def use_eager_attention(network: Any) -> None:
    """Let a network compute its attention in the plainest way."""
    for module in network.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "eager"


def _texts(vocabulary: Vocabulary) -> list[str]:
    """Make texts of English and of tokens from all over a vocabulary, short enough for a tower."""
    tokenizer = vocabulary.tokenizer
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = {*tokenizer.all_special_ids, *added, *vocabulary.head, *vocabulary.tail}
    size = min(len(vocabulary), len(tokenizer))
    spread = range(0, size, max(1, size // 64))
    ids = [token for token in spread if token not in special]
    texts, start = [SENTENCE], 0
    for count in NUM_TEXT_TOKENS:
        texts.append(tokenizer.decode(ids[start : start + count]))
        start += count
    pairs = zip(texts, vocabulary.encode(texts), strict=True)
    return [text for text, (row, _) in pairs if len(row) <= vocabulary.max_text_tokens]
