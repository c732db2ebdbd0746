"""The weighted sum that a search minimises, and its read-only view for methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fuse import scoring
from fuse.adapter import Adapter, Gradient
from fuse.errors import FuseError
from fuse.losses import Loss
from fuse.models import CausalLM, Model
from fuse.types import Evaluation, Ids, TermResult
from fuse.vocabulary import Encoded, Template, Vocabulary, pad

PRIMARY = "primary"


class Term:
    """One summand: a model, a loss on it, the fixed text around the prompt, and a weight.

    A secondary also has the `adapter` that carries its gradient to the primary's tokens. `batch_size` is the number of
    rows in one forward pass.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss[Any],
        *,
        weight: float = 1.0,
        prefix: str = "",
        suffix: str = "",
        adapter: Adapter | None = None,
        batch_size: int = 128,
    ) -> None:
        self.model = model
        self.loss = loss
        self.weight = float(weight)
        self.template = Template(prefix, suffix, loss.label)
        self.adapter = adapter
        self.batch_size = batch_size
        self.surroundings = self.encode(["a"])[0].with_free_ids(())
        fixed, limit = len(self.surroundings.ids), self.vocabulary.max_length
        if fixed >= limit:
            raise FuseError(f"prefix, suffix, label: they take {fixed} of the {limit} tokens that the model reads; shorten them")

    @property
    def room(self) -> int:
        """How many tokens of a prompt the model's context has room for."""
        return self.vocabulary.max_length - len(self.surroundings.ids)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """What this term's model reads for each prompt."""
        return self.template.encode(self.vocabulary, prompts)

    def around(self, rows: Sequence[Ids]) -> list[Encoded]:
        """What this term's model reads for rows of its own tokens, taken as they are, whatever text they spell."""
        return [self.surroundings.with_free_ids(tuple(row)) for row in rows]

    def score(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """The unweighted loss of every row."""
        return scoring.score(self.model, self.loss, rows, self.batch_size)

    def gradient(self, rows: Sequence[Encoded], neutral: Sequence[int] | None = None) -> Gradient:
        """Gradients of the rows' unweighted losses, as `fuse.scoring.gradient` has them."""
        return scoring.gradient(self.model, self.loss, rows, self.batch_size, neutral)


class Objective:
    """sum of weight x loss over a primary, which owns the free tokens, and any number of named secondaries.

    Example::

        Objective(Term(lm, NLL()), {"clip": Term(clip, CosineDistance(image), weight=20, adapter=adapter)})

    Raises:
        FuseError: a secondary under the primary's name.
    """

    def __init__(self, primary: Term, secondaries: Mapping[str, Term] | None = None) -> None:
        self.primary = primary
        self.secondaries = dict(secondaries or {})
        if PRIMARY in self.secondaries:
            raise FuseError(f"secondary.{PRIMARY}: this key is taken; give the secondary another one")
        self.terms: dict[str, Term] = {PRIMARY: primary, **self.secondaries}
        self.evaluations = 0
        """How many candidates have been scored."""

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the primary, in which all ids are told."""
        return self.primary.vocabulary

    def spell(self, text: str) -> Ids:
        """The free tokens of a text that a search may start from.

        Raises:
            FuseError: the primary's tokens do not spell it exactly, or it is too long for a model.
        """
        ids = self.primary.encode([text])[0].free_ids
        if not self.valid([ids])[0]:
            raise FuseError(f"init={text!r}: too long for a model, or not spelled exactly by the primary's tokens; change it")
        return ids

    def check_length(self, length: int) -> None:
        """Raises FuseError where prompts of so many free tokens do not fit the primary's context."""
        if length > self.primary.room:
            raise FuseError(f"prompt_length={length}: the primary's context has room for {self.primary.room} tokens; choose fewer")

    def evaluate(self, rows: Sequence[Ids]) -> Evaluation:
        """Losses of rows of free tokens: decode, re-tokenise for every model, score.

        A row is refused (loss inf) if its text does not tokenise to itself, or is too long for some model.
        """
        encoded, valid = self._encode(rows)
        kept = [i for i, ok in enumerate(valid) if ok]
        self.evaluations += len(kept)
        terms = {}
        for name, term in self.terms.items():
            losses = torch.full((len(rows),), torch.inf)
            losses[kept] = term.score([encoded[name][i] for i in kept])
            terms[name] = losses
        # Refused rows stay inf even where every weight is 0; what overflowed in a half type is refused too
        total = torch.full((len(rows),), torch.inf)
        total[kept] = sum((self.terms[name].weight * losses[kept] for name, losses in terms.items()), torch.zeros(len(kept)))
        return Evaluation(total.nan_to_num(nan=torch.inf, posinf=torch.inf), terms)

    def evaluate_text(self, prompt: str) -> tuple[float, dict[str, TermResult]]:
        """The total loss of exactly this text, each term's share, and what each model read."""
        results = {
            name: TermResult(float(term.score(term.encode([prompt]))[0]), term.weight, term.template.render(prompt)[0])
            for name, term in self.terms.items()
        }
        return sum(term.weight * term.loss for term in results.values()), results

    def valid(self, rows: Sequence[Ids]) -> list[bool]:
        """Whether each row's text, in its surroundings, tokenises to the row again and fits every model."""
        return self._encode(rows)[1]

    def _encode(self, rows: Sequence[Ids]) -> tuple[dict[str, list[Encoded]], list[bool]]:
        prompts = self.vocabulary.decode(rows)
        encoded = {name: term.encode(prompts) for name, term in self.terms.items()}
        own, fixed = encoded[PRIMARY], len(self.primary.surroundings.ids)
        valid = [e.free_ids == tuple(row) and len(e.ids) == fixed + len(row) for e, row in zip(own, rows, strict=True)]
        for name, term in self.terms.items():
            limit = term.vocabulary.max_length
            valid = [ok and len(e.ids) <= limit for ok, e in zip(valid, encoded[name], strict=True)]
        return encoded, valid


class Guide:
    """What a method may see of an objective: gradients and likelihoods over the primary's tokens, and which are allowed."""

    def __init__(self, objective: Objective) -> None:
        for name, term in objective.secondaries.items():
            if term.adapter is None and term.vocabulary is not objective.vocabulary:
                raise FuseError(f"secondary.{name}.adapter=None: its tokens are not the primary's; give one, such as LexicalAdapter")
        self._objective = objective
        self.vocabulary = objective.vocabulary
        self.longest = objective.primary.room
        self.valid = objective.valid
        self.check_length = objective.check_length

    @property
    def allowed(self) -> Bool[Tensor, " v"]:
        """Tokens that a candidate may hold."""
        return self.vocabulary.allowed

    def token_gradient(self, rows: Sequence[Ids], positions: Sequence[int]) -> Float[Tensor, "b v"]:
        """Gradient of the objective by the one-hot token at `positions[i]` of `rows[i]`, up to a constant a row."""
        total = self.vocabulary.embedding.new_zeros(len(rows), len(self.vocabulary), dtype=torch.float32)
        for term in self._objective.terms.values():
            if term.weight and term.adapter is not None:
                total = total + term.weight * term.adapter.token_scores(rows, positions, term).to(total.device)
            elif term.weight:
                total = total + term.weight * _own_token_gradient(term, rows, positions)
        return total

    def next_token_log_probs(self, rows: Sequence[Ids]) -> Float[Tensor, "b v"]:
        """The primary's log p(next token) after each row.

        Raises:
            FuseError: the primary is no causal LM.
        """
        model = self._objective.primary.model
        if not isinstance(model, CausalLM):
            raise FuseError(f"primary={type(model).__name__}: this method reads next-token probabilities; use a causal LM")
        contexts = [encoded.up_to_prompt() for encoded in self._objective.primary.around(rows)]
        return model.next_token_log_probs(pad(contexts, model.device))


def _own_token_gradient(term: Term, rows: Sequence[Ids], positions: Sequence[int]) -> Float[Tensor, "b v"]:
    """The gradient of a term whose own tokens the rows are: by the token as input, and as label where it acts as one."""
    table = term.vocabulary.embedding
    distinct = list(dict.fromkeys(rows))
    encoded = term.around(distinct)
    found = term.gradient(encoded)
    index = [distinct.index(row) for row in rows]
    places = [encoded[i].free[0] + p for i, p in zip(index, positions, strict=True)]
    by_token = found.embedding[index, places].to(table.dtype) @ table.T
    return by_token.float() if found.labels is None else by_token.float() + found.labels[index, places]
