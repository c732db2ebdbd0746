"""The read-only view of an objective that methods have: gradients and likelihoods over the primary's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models import CausalLM
from fuse.objective import Objective, Term
from fuse.types import Ids


class Guide:
    """What a method may see of an objective: gradients and likelihoods over the primary's tokens, and which are allowed."""

    def __init__(self, objective: Objective) -> None:
        for name, term in objective.secondaries.items():
            if term.adapter is None and term.vocabulary is not objective.vocabulary:
                raise FuseError(f"secondary.{name}.adapter=None: its tokens are not the primary's; give one, such as LexicalAdapter")
        self._objective = objective
        self._carried: dict[Ids, Float[Tensor, "s d"]] = {}
        """What the adapters brought back for the latest rows: a step asks twice for them, and the next one for most again."""
        self.vocabulary = objective.vocabulary
        self.allowed = objective.allowed
        self.longest = objective.primary.room
        self.valid = objective.valid
        self.spelled = objective.spelled
        self.constraints = objective.constraints
        read = objective.primary.encode(["a"])[0]
        self.label_ids = read.ids[slice(*read.label)]
        self.says_label = objective.says_label
        self.check_length = objective.check_length

    @property
    def end_of_text(self) -> list[int]:
        """The primary's tokens that end a text; empty if there is none."""
        end = self.vocabulary.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    @cached_property
    def begins_word(self) -> Bool[Tensor, " v"]:
        """The allowed tokens that begin a word of their own after another one; all, where none is so marked."""
        begins = torch.tensor([text[:1].isspace() for text in self.vocabulary.token_texts], device=self.allowed.device)
        return self.allowed & begins if (self.allowed & begins).any() else self.allowed

    @cached_property
    def filler(self) -> int:
        """A token that stands for no word in particular: of those that begin a word, the nearest to the mean embedding."""
        return int(self.vocabulary.nearest(self.vocabulary.mean_embedding, self.begins_word))

    def token_gradient(
        self, rows: Sequence[Ids], positions: Sequence[int], linearise: Sequence[str] = ("current",)
    ) -> Float[Tensor, "b v"]:
        """Gradient of the objective by the one-hot token at `positions[i]` of `rows[i]`, up to a constant a row.

        `linearise` names what the models read at the place, as in `fuse.vocabulary.POINTS`; of several such points the
        gradients are standardised over the allowed tokens, and summed.
        """
        total = self.vocabulary.embedding.new_zeros(len(rows), len(self.vocabulary), dtype=torch.float32)
        for point in linearise:
            found = torch.zeros_like(total)
            for term in self._objective.terms.values():
                if term.weight and term.adapter is not None:
                    kept = self._readable(rows, term)
                    if kept:
                        scores = term.adapter.token_scores([rows[i] for i in kept], [positions[i] for i in kept], term, point)
                        found[kept] += term.weight * scores.to(total)
                elif term.weight:
                    found += term.weight * term.token_gradient(rows, positions, point)
            total += found if len(linearise) == 1 else standardised(found, self.allowed)
        return total

    def proposals(
        self, rows: Sequence[Ids], positions: Sequence[int], top_k: int, linearise: Sequence[str] = ("current",)
    ) -> list[list[list[Ids]]]:
        """What each secondary proposes that does not rank the primary's tokens: for every row some others, of valid text.

        They have a word of the secondary's own in the place of that at the row's position, at least one of its `top_k`
        best by its gradient at any of the points `linearise`.
        """
        pools = []
        for term in self._objective.secondaries.values():
            if term.adapter is None or term.adapter.ranks or not term.weight:
                continue
            pool: list[list[Ids]] = [[] for _ in rows]
            kept = self._readable(rows, term)
            for point in linearise if kept else ():
                texts = term.adapter.proposals([rows[i] for i in kept], [positions[i] for i in kept], term, top_k, point)
                for i, proposed in zip(kept, texts, strict=True):
                    pool[i] += [row for row in self.spelled(proposed) if row]
            pools.append(pool)
        return pools

    @cached_property
    def radius(self) -> float:
        """The mean norm of the allowed embeddings: the radius of the token sphere."""
        return float(self.vocabulary.embedding[self.allowed].float().norm(dim=-1).mean())

    def nearest_rows(self, points: Float[Tensor, "b s d"]) -> list[Ids]:
        """The allowed tokens that are the closest to each continuous prompt."""
        return [tuple(row) for row in self.vocabulary.nearest(points, self.allowed).tolist()]

    def embedding_gradient(self, embeddings: Float[Tensor, "b s d"], rows: Sequence[Ids]) -> Float[Tensor, "b s d"]:
        """Gradient of the objective by continuous prompts; models with other tokens read the text of `rows`, the nearest tokens."""
        new = [row for row in dict.fromkeys(rows) if row not in self._carried]
        known = {**self._carried, **dict(zip(new, self._carry(new), strict=True))}
        self._carried = {row: known[row] for row in rows}
        total = torch.stack([self._carried[row] for row in rows]).to(embeddings.device)
        for term in self._objective.terms.values():
            if term.weight and term.adapter is None:
                total += term.weight * term.embedding_gradient(rows, embeddings)
        return total

    def _carry(self, rows: Sequence[Ids]) -> Float[Tensor, "b s d"]:
        """What the adapters bring back of the models that read the text of rows, all of one length."""
        length = len(rows[0]) if rows else 0
        total = self.vocabulary.embedding.new_zeros(len(rows), length, self.vocabulary.embedding.shape[1], dtype=torch.float32)
        for term in self._objective.secondaries.values():
            kept = self._readable(rows, term) if term.weight and term.adapter is not None else []
            if kept and term.adapter is not None:
                places = [(rows[i], position) for i in kept for position in range(len(rows[i]))]
                found = term.adapter.embedding_gradient([row for row, _ in places], [position for _, position in places], term)
                total[kept] += term.weight * found.reshape(total[kept].shape).to(total)
        return total

    def _readable(self, rows: Sequence[Ids], term: Term) -> list[int]:
        """Which rows have room in a secondary's context; the others, whose candidates are refused anyway, get no say of it."""
        encoded = term.encode(self.vocabulary.decode(rows))
        return [i for i, e in enumerate(encoded) if len(e.ids) <= term.vocabulary.max_length]

    def next_token_log_probs(self, rows: Sequence[Ids]) -> Float[Tensor, "b v"]:
        """The primary's log p(next token) after each row.

        Raises:
            FuseError: the primary is no causal LM.
        """
        model = self._objective.primary.model
        if not isinstance(model, CausalLM):
            raise FuseError(f"primary={type(model).__name__}: this method reads next-token probabilities; use a causal LM")
        primary = self._objective.primary
        return primary.scorer.next_token_log_probs([encoded.up_to_prompt().ids for encoded in primary.around(rows)])


def standardised(scores: Float[Tensor, "b v"], allowed: Bool[Tensor, " v"]) -> Float[Tensor, "b v"]:
    """Each row with mean 0 and spread 1 over the allowed tokens; 0 where all are equal."""
    kept = scores[:, allowed]
    spread = kept.std(-1, keepdim=True)
    return torch.where(spread > 0, (scores - kept.mean(-1, keepdim=True)) / spread, 0.0)
