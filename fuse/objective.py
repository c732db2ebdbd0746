"""The weighted sum that a search minimises."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.adapter import Adapter, Gradient
from fuse.constraints import Constraints
from fuse.errors import FuseError
from fuse.losses import Loss
from fuse.models import Model
from fuse.scoring import Scorer, score_together
from fuse.scoring import expand_together as expand_scorers
from fuse.types import Evaluation, Ids, TermResult
from fuse.vocabulary import MEMO, Encoded, Template, Vocabulary, remembered

PRIMARY = "primary"
FEW = 8
"""How many of the best candidates are scored again where models of a coarse type scored them first."""


class Term:
    """One summand: a model, a loss on it, the fixed text around the prompt, and a weight.

    A secondary also has the `adapter` that carries its gradient to the primary's tokens. `batch_size` is the number of
    rows in one forward pass. Where `precise` is given, the same model in a finer type, it scores the best few again.
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
        precise: Model | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.weight = float(weight)
        self.template = Template(prefix, suffix, loss.label)
        self._encoded: OrderedDict[str, Encoded] = OrderedDict()
        self.adapter = adapter
        self.surroundings = self.encode(["a"])[0].with_free_ids(())
        self.scorer = Scorer(model, loss, self.surroundings, batch_size)
        self.precise = self.scorer if precise is None else Scorer(precise, loss, self.surroundings, batch_size)
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
        """What this term's model reads for each prompt; what was encoded lately is not encoded again."""
        return remembered(self._encoded, list(prompts), lambda new: self.template.encode(self.vocabulary, new))

    def around(self, rows: Sequence[Ids]) -> list[Encoded]:
        """What this term's model reads for rows of its own tokens, taken as they are, whatever text they spell."""
        return [self.surroundings.with_free_ids(tuple(row)) for row in rows]

    def score(self, rows: Sequence[Encoded]) -> Float[Tensor, " n"]:
        """The unweighted loss of every row."""
        return self.scorer.score(rows)

    def gradient(
        self, rows: Sequence[Encoded], places: Sequence[Sequence[int]], read: Sequence[Float[Tensor, "_ d"]] | None = None
    ) -> Gradient:
        """Gradients of the rows' unweighted losses at `places`, as `fuse.scoring.Scorer.gradient` has them."""
        return self.scorer.gradient(rows, places, read)

    def vector_gradient(self, rows: Sequence[Encoded]) -> Float[Tensor, "b e"] | None:
        """Gradients of the rows' unweighted losses by the model's vectors; None where the loss is no function of them."""
        return self.scorer.vector_gradient(rows)

    def token_gradient(self, rows: Sequence[Ids], positions: Sequence[int], point: str) -> Float[Tensor, "b v"]:
        """The gradient by one-hot tokens of rows of the term's own tokens: as input and, where they act as such, as labels.

        `positions[i]` is the place in `rows[i]`; `point` is what the model reads there, as in `fuse.vocabulary.POINTS`.
        """
        table, encoded = self.vocabulary.embedding, self.around(rows)
        places = [e.free[0] + p for e, p in zip(encoded, positions, strict=True)]
        if point == "current":  # the places of one row share one pass
            lines = list(dict.fromkeys(encoded))
            groups = [[place for e, place in zip(encoded, places, strict=True) if e == line] for line in lines]
            found, read = self.gradient(lines, groups), None
            index = [(lines.index(e), groups[lines.index(e)].index(place)) for e, place in zip(encoded, places, strict=True)]
        else:
            read = [self.vocabulary.point(point)[None]] * len(rows)
            found = self.gradient(encoded, [[place] for place in places], read)
            index = [(i, 0) for i in range(len(rows))]
        line, column = torch.tensor(index).unbind(1)
        by_embedding = found.embedding[line, column].to(table)
        # At the end of a text nobody reads on
        silent = not by_embedding.any()
        by_token = by_embedding.new_zeros(len(rows), len(table)) if silent else self.vocabulary.table.inner_products(by_embedding)
        by_token = by_token.float()
        return by_token if found.labels is None else by_token + found.labels[line, column]

    def embedding_gradient(self, rows: Sequence[Ids], embeddings: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """The gradient at continuous prompts; `rows` are the tokens nearest to them, which act as labels."""
        encoded = self.around(rows)
        found = self.gradient(encoded, [range(*e.free) for e in encoded], list(embeddings))
        if found.labels is None:
            return found.embedding
        flat = self.vocabulary.as_embedding_gradient(found.labels.flatten(0, 1))
        return found.embedding + flat.reshape(found.embedding.shape)


class Objective:
    """sum of weight x loss over a primary, which owns the free tokens, and any number of named secondaries.

    Example::

        Objective(Term(lm, NLL()), {"clip": Term(clip, CosineDistance(image), weight=20, adapter=adapter)})

    Raises:
        FuseError: a secondary under the primary's name.
    """

    def __init__(self, primary: Term, secondaries: Mapping[str, Term] | None = None, constraints: Constraints | None = None) -> None:
        self.primary = primary
        self.constraints = constraints or Constraints()
        self.allowed = self.constraints.allowed(primary.vocabulary)
        """The tokens that a prompt may hold."""
        self.secondaries = dict(secondaries or {})
        if PRIMARY in self.secondaries:
            raise FuseError(f"secondary.{PRIMARY}: this key is taken; give the secondary another one")
        self.terms: dict[str, Term] = {PRIMARY: primary, **self.secondaries}
        self.evaluations = 0
        """How many different candidates have been scored."""
        self._scored: OrderedDict[Ids, tuple[float, ...]] = OrderedDict()

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
        forbidden = [token for token in ids if not self.allowed[token]]
        if forbidden:
            spelled = self.vocabulary.decode([(forbidden[0],)])[0]
            raise FuseError(f"init={text!r}: the token {spelled!r} is not allowed; change the text or the constraints")
        if not self.valid([ids])[0]:
            raise FuseError(
                f"init={text!r}: too long for a model, not spelled exactly by the primary's tokens, or against the constraints; change it"
            )
        return ids

    def spelled(self, texts: Sequence[str]) -> list[Ids | None]:
        """For each text the allowed free tokens that spell it in its surroundings; None where there are none."""
        rows = [e.free_ids for e in self.primary.encode(texts)]
        return [
            row if ok and row and all(self.allowed[token] for token in row) else None
            for row, ok in zip(rows, self.valid(rows), strict=True)
        ]

    def check_length(self, length: int) -> None:
        """Raises FuseError where prompts of so many free tokens do not fit the primary's context."""
        if length > self.primary.room:
            raise FuseError(f"prompt_length={length}: the primary's context has room for {self.primary.room} tokens; choose fewer")

    def expand(self, beam: Sequence[Ids]) -> None:
        """Candidates are made from these rows next: what they share with them need not be computed again."""
        expand_together([(self, beam)])

    def evaluate(self, rows: Sequence[Ids]) -> Evaluation:
        """Losses of rows of free tokens: decode, re-tokenise for every model, score.

        A row is refused (loss inf) if its text does not tokenise to itself, is too long for some model, or is against the
        constraints. What was scored lately is not scored again.
        """
        return evaluate_together([(self, rows)])[0]

    def _new(self, rows: Sequence[Ids]) -> tuple[list[Ids], list[int], dict[str, list[Encoded]]]:
        """The different rows that were not scored lately, which of them are valid, and what each model reads for these."""
        new = list(dict.fromkeys(tuple(row) for row in rows if tuple(row) not in self._scored))
        return new, *self._encode(new)

    def _recall(self, rows: Sequence[Ids]) -> Evaluation:
        """The losses of rows that are known."""
        losses = torch.tensor([self._scored[tuple(row)] for row in rows]).reshape(len(rows), len(self.terms))
        while len(self._scored) > MEMO:
            self._scored.popitem(last=False)
        return Evaluation(self._total(losses), dict(zip(self.terms, losses.unbind(1), strict=True)))

    def _total(self, losses: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """The weighted sum of the terms' losses."""
        # A refused row's term stays inf even where its weight is 0; what overflowed in a half type is refused too
        weights = torch.tensor([term.weight for term in self.terms.values()])
        return torch.where(losses.isfinite().all(1), losses @ weights, torch.inf)

    def _settle(self, losses: Float[Tensor, "n t"], encoded: dict[str, list[Encoded]]) -> None:
        """Score the best few anew by the precise models, in place, until the best few are such."""
        coarse = [(column, name) for column, (name, term) in enumerate(self.terms.items()) if term.precise is not term.scorer]
        settled: set[int] = set()
        while coarse:
            total = self._total(losses)
            best = [i for i in total.argsort(stable=True)[:FEW].tolist() if i not in settled and total[i] < torch.inf]
            if not best:
                break
            for column, name in coarse:
                losses[best, column] = self.terms[name].precise.score([encoded[name][i] for i in best])
            settled.update(best)

    @property
    def elicits(self) -> bool:
        """Whether the primary is to say a label."""
        return bool(self.primary.loss.label)

    def says_label(self, rows: Sequence[Ids]) -> list[bool]:
        """Whether greedy decoding after each row of free tokens says the label, token for token."""
        return self.primary.scorer.says(self.primary.encode(self.vocabulary.decode(rows))) if self.elicits else [False] * len(rows)

    def evaluate_text(self, prompt: str) -> tuple[float, dict[str, TermResult]]:
        """The total loss of exactly this text, each term's share, and what each model read."""
        results = {
            name: TermResult(float(term.precise.score(term.encode([prompt]))[0]), term.weight, term.template.render(prompt)[0])
            for name, term in self.terms.items()
        }
        return sum(term.weight * term.loss for term in results.values()), results

    def valid(self, rows: Sequence[Ids]) -> list[bool]:
        """Whether each row's text, in its surroundings, tokenises to the row again, fits every model and the constraints."""
        kept = set(self._encode(rows)[0])
        return [i in kept for i in range(len(rows))]

    def _encode(self, rows: Sequence[Ids]) -> tuple[list[int], dict[str, list[Encoded]]]:
        """Which rows are valid, and what each model reads for these."""
        prompts, fixed, accept = self.vocabulary.decode(rows), len(self.primary.surroundings.ids), self.constraints.accept
        own = zip(self.primary.encode(prompts), map(tuple, rows), prompts, strict=True)
        spelled = [e.free_ids == row and len(e.ids) == fixed + len(row) and accept(self.vocabulary, row, text) for e, row, text in own]
        kept = [i for i, ok in enumerate(spelled) if ok]
        for term in self.terms.values():
            encoded = term.encode([prompts[i] for i in kept])
            kept = [i for i, e in zip(kept, encoded, strict=True) if len(e.ids) <= term.vocabulary.max_length]
        return kept, {name: term.encode([prompts[i] for i in kept]) for name, term in self.terms.items()}


Asked = Sequence[tuple[Objective, Sequence[Ids]]]
"""Objectives, and rows of free tokens for each of them."""


def expand_together(asked: Asked) -> None:
    """`Objective.expand` of each: terms that are alike read in shared passes what candidates have in common with the rows."""
    encoded = [{name: term.encode(texts) for name, term in objective.terms.items()}
               for objective, rows in asked for texts in [objective.vocabulary.decode(rows)]]  # fmt: skip
    for members in _alike([objective for objective, _ in asked]):
        expand_scorers([asked[i][0].terms[name].scorer for i, name in members], [encoded[i][name] for i, name in members])


def evaluate_together(asked: Asked) -> list[Evaluation]:
    """`Objective.evaluate` of each: terms that are alike score in shared forward passes."""
    new = [objective._new(rows) for objective, rows in asked]
    found = [torch.full((len(of), len(objective.terms)), torch.inf) for (of, _, _), (objective, _) in zip(new, asked, strict=True)]
    for members in _alike([objective for objective, _ in asked]):
        scorers = [asked[i][0].terms[name].scorer for i, name in members]
        for (i, name), losses in zip(members, score_together(scorers, [new[i][2][name] for i, name in members]), strict=True):
            found[i][new[i][1], list(asked[i][0].terms).index(name)] = losses
    for (objective, _), (of, kept, encoded), losses in zip(asked, new, found, strict=True):
        settled = losses[kept]
        objective._settle(settled, encoded)
        losses[kept] = settled
        objective.evaluations += len(kept)
        objective._scored.update(zip(of, map(tuple, losses.tolist()), strict=True))
    return [objective._recall(rows) for objective, rows in asked]


def _alike(objectives: Sequence[Objective]) -> list[list[tuple[int, str]]]:
    """The terms, as objective and name, in groups that can share forward passes; no term of one objective with another."""
    groups: dict[Any, list[tuple[int, str]]] = {}
    for i, objective in enumerate(objectives):
        for name, term in objective.terms.items():
            groups.setdefault((name, term.scorer.alike), []).append((i, name))
    return list(groups.values())
