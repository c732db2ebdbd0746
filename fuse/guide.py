"""The read-only view of an objective that methods have."""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fuse.errors import FuseError
from fuse.models import chat
from fuse.objective import Objective
from fuse.statistics import standardised
from fuse.text.messages import Message
from fuse.types import Ids


class Guide:
    """What a method may see of an objective: gradients and likelihoods of the primary's tokens, and
    which are allowed.

    Args:
        texts: whose words are offered wherever a method puts in tokens.

    Raises:
        FuseError: a secondary with other tokens has no adapter.
    """

    def __init__(self, objective: Objective, texts: Sequence[str] = ()) -> None:
        for name, term in objective.secondaries.items():
            if term.adapter is None and term.vocabulary is not objective.vocabulary:
                raise FuseError(
                    f"secondary.{name}.adapter=None: its tokens are not the primary's; "
                    "give one, such as LexicalAdapter"
                )
        self._objective = objective
        self._words = objective.words_of(texts)
        self.vocabulary = objective.vocabulary
        self.allowed = objective.allowed
        """The tokens that a prompt may hold."""
        self.max_length = objective.primary.max_free_tokens
        """How many free tokens a prompt has at most."""
        self.scored: Container[Ids] = ()
        """What the search has scored lately; the search says so before each proposal."""
        self.constraints = objective.constraints
        self.valid = objective.valid
        self.finished = objective.finished
        self.spelled = objective.spelled
        self.says_label = objective.says_label
        self.check_length = objective.check_length
        self.token_gradient = objective.token_gradient
        self.proposals = objective.proposals
        self.long_words = objective.long_words
        """The listed words of several tokens."""
        self.match = objective.match
        self.has_secondaries = bool(objective.secondaries)
        self._length_penalty = getattr(objective.primary.loss, "length_penalty", 1.0)
        self.embedding_gradient = objective.embedding_gradient
        self.position_log_probs = objective.position_log_probs
        self.next_token_log_probs = objective.next_token_log_probs
        self.log_probs_after = objective.primary.engine.next_token_log_probs
        """Log p(next token) after rows of any ids, with nothing else around them."""
        self._around: dict[str, tuple[str, str]] = {}

    def word_proposals(
        self, rows: Sequence[Ids], positions: Sequence[int]
    ) -> list[list[list[Ids]]]:
        """Do `Objective.word_proposals`, with one more pool for the words of `texts`."""
        return self._objective.word_proposals(rows, positions, self._words)

    def primary_loss(self, total: float, length: float) -> float:
        """Return the primary's weighted loss of a text of this length and -log p, in nats."""
        return self._objective.primary.weight * total / length**self._length_penalty

    def pull(self, rows: Sequence[Ids], positions: Sequence[int]) -> Float[Tensor, "b v"]:
        """Return how much the secondaries want each token at one position of each row, read there
        as the mean of all: -z(gradient).
        """
        return self.wanted(self._objective.secondary_gradient(rows, positions, "mean"))

    def wanted(self, gradient: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Return how much each token is wanted where a loss has this gradient: -z(gradient)."""
        return -standardised(gradient.nan_to_num(), self.allowed)

    @cached_property
    def label_ids(self) -> Ids:
        """The tokens of the label; empty without one."""
        encoded = self._objective.primary.encode(["a"])[0]
        return encoded.ids[slice(*encoded.label)]

    @property
    def opening(self) -> Ids:
        """The tokens that stand before every text that the primary reads."""
        return self._objective.primary.template.head(self.vocabulary) or self.vocabulary.start

    @property
    def chats(self) -> bool:
        """Whether the primary was trained to chat."""
        return bool(self.vocabulary.tokenizer.chat_template)

    def around_message(self, content: str) -> tuple[str, str]:
        """Return what the primary reads before and after `PROMPT` in a user's message.

        Raises:
            FuseError: it has no chat template.
        """
        if content not in self._around:
            messages: list[Message] = [{"role": "user", "content": content}]
            self._around[content] = chat.text_around(self.vocabulary.tokenizer, messages)
        return self._around[content]

    @cached_property
    def line_ends(self) -> list[int]:
        """The primary's tokens that end a line."""
        return [i for i, text in enumerate(self.vocabulary.token_texts) if "\n" in text]

    @property
    def end_of_text(self) -> list[int]:
        """The primary's tokens that end a text; empty if there is none."""
        end = self.vocabulary.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    @cached_property
    def may_begin(self) -> Bool[Tensor, " v"]:
        """The allowed tokens with which a prompt may begin."""
        return self.allowed & self.constraints.may_begin(self.vocabulary).to(self.allowed.device)

    @cached_property
    def ending_tokens(self) -> list[int]:
        """The allowed tokens that end a prompt by themselves; empty where every prompt is whole."""
        endings = self.constraints.ending_tokens(self.vocabulary)
        return (self.allowed & endings.to(self.allowed.device)).nonzero().flatten().tolist()

    @cached_property
    def allowed_tokens(self) -> Int[Tensor, " a"]:
        """The tokens that a prompt may hold, one after another."""
        return self.allowed.nonzero().flatten()

    @cached_property
    def allowed_embeddings(self) -> Float[Tensor, "a d"]:
        """Their embeddings, in float32."""
        return self.vocabulary.embedding[self.allowed_tokens].float()

    @cached_property
    def begins_word(self) -> Bool[Tensor, " v"]:
        """The allowed tokens that begin a word of their own after another one; all, where none is
        so marked.
        """
        begins = self.allowed & self.vocabulary.begins_word.to(self.allowed.device)
        return begins if begins.any() else self.allowed

    @cached_property
    def filler(self) -> int:
        """A token that stands for no word in particular.

        Of those that begin a word, the nearest to the mean embedding.
        """
        return int(self.vocabulary.nearest(self.vocabulary.mean_embedding, self.begins_word))

    @cached_property
    def radius(self) -> float:
        """The mean norm of the allowed embeddings: the radius of the token sphere."""
        return float(self.vocabulary.embedding[self.allowed].float().norm(dim=-1).mean())

    def nearest_rows(self, points: Float[Tensor, "b s d"]) -> list[Ids]:
        """Return the allowed tokens that are the closest to each continuous prompt."""
        return [tuple(row) for row in self.vocabulary.nearest(points, self.allowed).tolist()]

    def embeddings(self, rows: Sequence[Ids]) -> Float[Tensor, "b s d"]:
        """Return the embeddings of rows of one length, in float32."""
        table = self.vocabulary.embedding
        return table[torch.tensor([list(row) for row in rows], device=table.device)].float()
