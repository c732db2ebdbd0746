"""What a language model says after a text: the probabilities of its next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models import CausalLM
from fuse.models.proof import plain_logits
from fuse.search.methods.drawing import shares
from fuse.text.template import AUTO, Template
from fuse.types import Ids


@dataclass(frozen=True)
class Shaping:
    """How a distribution is changed before a token is drawn from it.

    Args:
        temperature: divides the logits; 0 leaves the likeliest token alone.
        top_p: keeps the likeliest tokens of this mass.
        frequency_penalty: taken from a token's logit for each time that the text holds it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0

    def apply(self, log_probs: Float[Tensor, " v"], row: Ids) -> Float[Tensor, " v"]:
        """Return the probabilities, in float64 on the CPU."""
        counts = torch.tensor(row, dtype=torch.long).bincount(minlength=len(log_probs))
        logits = log_probs.cpu().double() - self.frequency_penalty * counts[: len(log_probs)]
        if not self.temperature:
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
        return shares(logits[None], self.temperature, self.top_p)[0]


class Continuing:
    """Reads rows of tokens with a language model, and predicts the next one.

    The model is read plainly from now on: whole rows, one by one, by the network's own layers, so
    that the numbers are exactly its own.

    Args:
        start: the special tokens before all, as `Template` takes them.
    """

    def __init__(self, model: CausalLM, start: str = AUTO) -> None:
        self.vocabulary = model.vocabulary
        self._model = model
        self._head = Template(start=start).head(self.vocabulary)
        model.acceleration.turn(False)

    def ids(self, text: str) -> Ids:
        """Return the tokens of a text, without special ones before it.

        Raises:
            FuseError: it has more than the model reads.
        """
        ids = self.vocabulary.encode([text])[0][0]
        if len(ids) > self.room:
            raise FuseError(f"TEXT: {len(ids)} tokens, and the model reads {self.room}; shorten it")
        return ids

    @property
    def room(self) -> int:
        """How many tokens of a text the model reads."""
        return self.vocabulary.max_length - len(self._head)

    @torch.no_grad()
    def log_probs(self, row: Ids) -> Float[Tensor, " v"]:
        """Return log p(next token) after a row, the special tokens before it included.

        Raises:
            FuseError: there is nothing from which the first token is predicted.
        """
        # Where nothing stands before the first token, it is predicted from the start of a text
        read = (*self._head, *row) or self.vocabulary.start
        if not read:
            raise FuseError("TEXT='': this model has no start token; give a text that is not empty")
        logits = plain_logits(self._model.network, read, self._model.device)[-1]
        return logits.float().log_softmax(-1)[: len(self.vocabulary)]

    @property
    def ends(self) -> set[int]:
        """The tokens that end a text."""
        end = self.vocabulary.tokenizer.eos_token_id
        return set() if end is None else {int(end)}
