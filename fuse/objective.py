"""The weighted sum that a search minimises: its losses and its gradients."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.engine import EngineGroup
from fuse.errors import FuseError
from fuse.memo import Memo
from fuse.models import CausalLM, MaskedLM
from fuse.nn.embedding_table import EmbeddedVocabulary
from fuse.nn.operations import OperationCounter
from fuse.statistics import standardised
from fuse.term import Term
from fuse.text.constraints import Constraints, spellings
from fuse.text.vocabulary import ID_BYTES, require_text
from fuse.types import Candidates, Evaluation, Ids, TermResult

PRIMARY = "primary"
MIN_PRECISE = 8
"""How many of the best candidates are scored again, at least, where models of a coarse type scored
them first.
"""

WORD = re.compile(r"\w[\w'-]*")

Known = Mapping[Ids, tuple[float, ...]]
"""Each term's loss of sequences that were scored before."""


class Objective:
    """sum of weight x loss over a primary, which owns the free tokens, and any number of named
    secondaries.

    Example::

        Objective(Term(lm, NLL()), {"clip": Term(clip, CosineDistance(image), weight=20,
        adapter=adapter)})

    Raises:
        FuseError: a secondary under the primary's name; constraints that leave no token.
    """

    def __init__(
        self,
        primary: Term,
        secondaries: Mapping[str, Term] | None = None,
        constraints: Constraints | None = None,
    ) -> None:
        self.primary = primary
        self.constraints = constraints or Constraints()
        self.allowed = self.constraints.allowed(primary.vocabulary)
        """The tokens that a search puts into a prompt."""
        self.usable = self.constraints.usable(primary.vocabulary, self.allowed)
        """The tokens that a start may hold: also those that spell a lone blank."""
        self.long_words = self.constraints.long_words(primary.vocabulary, self.usable)
        """The listed words of several tokens; empty where no list asks for such."""
        self.secondaries = dict(secondaries or {})
        if PRIMARY in self.secondaries:
            raise FuseError(
                f"secondary.{PRIMARY}: this key is taken; give the secondary another one"
            )
        self.terms: dict[str, Term] = {PRIMARY: primary, **self.secondaries}
        self._valid: Memo[Ids, bool] = Memo(lambda row, _: ID_BYTES * len(row))
        self._carried: dict[Ids, Float[Tensor, "s d"]] = {}
        """What the adapters made of the latest rows: a step may ask twice, and the next one for
        most again.
        """

    @property
    def vocabulary(self) -> EmbeddedVocabulary:
        """The primary's vocabulary, to which all ids belong."""
        return self.primary.vocabulary

    @property
    def counters(self) -> list[OperationCounter]:
        """What counts the operations of its models, each once."""
        models = [term.model for term in self.terms.values()]
        models += [term.precise.model for term in self.terms.values()]
        return list({id(model.operations): model.operations for model in models}.values())

    def spell(self, text: str) -> Ids:
        """Return the free tokens of a text that a search may start from; white space at its ends
        is left out.

        Raises:
            FuseError: the primary's tokens do not spell it exactly, or it is too long for a model.
        """
        require_text(text, "init")
        (encoded,) = self.primary.encode([text.strip()])
        ids = encoded.free_ids
        if not ids:
            raise FuseError(f"init={text!r}: holds no token of the primary's; give another text")
        forbidden = self._forbidden(ids)
        if forbidden:
            spelled = self.vocabulary.token_texts[forbidden[0]]
            raise FuseError(
                f"init={text!r}: the token {spelled.strip() or spelled!r} is not allowed; "
                "change the text or the constraints"
            )
        (prompt,) = self.vocabulary.decode([ids])
        alone = self.vocabulary.encode_ids([text.strip(), prompt])
        if alone[0] != alone[1]:
            raise FuseError(
                f"init={text!r}: between its prefix, suffix and label the primary reads it as "
                f"{prompt!r}; change the text, or what it touches"
            )
        if not self.valid([ids])[0]:
            raise FuseError(
                f"init={text!r}: too long for a model, "
                "not spelled exactly by the primary's tokens, "
                "or against the constraints; change it"
            )
        return ids

    def _forbidden(self, ids: Ids) -> list[int]:
        """Return the tokens that a start may not hold; a lone blank has to stand before a token
        that has none of its own.
        """
        begins, blank = self.vocabulary.begins_word, self.vocabulary.blank
        found = []
        for token, following in zip(ids, [*ids[1:], None], strict=True):
            ends = following is not None and begins[following]
            if not self.usable[token] or (blank[token] and ends):
                found.append(token)
        return found

    def spelled(self, texts: Sequence[str], *, blanks: bool = False) -> list[Ids | None]:
        """Return the allowed free tokens that spell each text in its surroundings; None where there
        are none.

        Args:
            blanks: whether tokens that spell a lone blank may be among them, as in a start.
        """
        rows = [e.free_ids for e in self.primary.encode(texts)]
        found: list[Ids | None] = []
        for row, ok in zip(rows, self.valid(rows), strict=True):
            allowed = ok and row and all(self.allowed[token] for token in row)
            if ok and row and blanks:
                allowed = not self._forbidden(row)
            found.append(row if allowed else None)
        return found

    def check_length(self, length: int) -> None:
        """Raise FuseError where prompts of so many free tokens do not fit the primary's context."""
        limit = self.primary.max_free_tokens
        if length > limit:
            raise FuseError(
                f"prompt_length={length}: the primary's context has room for {limit} "
                "tokens; choose fewer"
            )

    def valid(self, rows: Sequence[Ids]) -> list[bool]:
        """Whether each row's text, in its surroundings, spells the row again, fits every model and
        the constraints.

        What was decided of a row is remembered.
        """
        return self._valid.look_up([tuple(row) for row in rows], self._decide)

    def _decide(self, rows: list[Ids]) -> list[bool]:
        """Decide which rows are valid."""
        prompts = self.vocabulary.decode(rows)
        fixed = len(self.primary.surroundings.ids)
        valid = []
        for row, prompt, e in zip(rows, prompts, self.primary.encode(prompts), strict=True):
            spells_itself = e.free_ids == row and len(e.ids) == fixed + len(row)
            valid.append(spells_itself and self.constraints.accept(self.vocabulary, row, prompt))
        for term in self.terms.values():
            kept = [i for i, ok in enumerate(valid) if ok]
            fits = term.fits(term.encode([prompts[i] for i in kept]))
            for i, fit in zip(kept, fits, strict=True):
                valid[i] = fit
        return valid

    def finished(self, rows: Sequence[Ids]) -> list[bool]:
        """Whether each row's text ends as a whole one does, by `Constraints.endings`."""
        return self.constraints.finished(self.vocabulary, rows)

    # --- losses ----------------------------------------------------------------------------------

    def prefill(self, beam: Sequence[Ids]) -> None:
        """Begin a step whose candidates are made from these rows.

        What they share with the rows need not be computed again.
        """
        ObjectiveGroup([self]).prefill([beam])

    def clear(self) -> None:
        """Forget what was computed of any text: the next step depends on nothing before it."""
        self._carried = {}
        for term in self.terms.values():
            term.clear()

    def evaluate(
        self,
        candidates: Candidates | Sequence[Ids],
        known: Known | None = None,
        num_ranked: int = MIN_PRECISE,
    ) -> Evaluation:
        """Return the losses of candidates: decode, re-tokenise for every model, score.

        Args:
            known: losses of candidates that need not be scored again.
            num_ranked: how many of the candidates are compared with one another later; where a term
                has a precise model, so many of the best are scored by it, and `MIN_PRECISE` at
                least.
        """
        group = ObjectiveGroup([self])
        (found,) = group.evaluate([as_candidates(candidates)], [known or {}], [num_ranked])
        return found

    def match(self, texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the weighted sum of the secondaries' losses of texts, which need not be prompts;
        inf where one does not fit a model.
        """
        total = torch.zeros(len(texts))
        for term in self.secondaries.values():
            encoded = term.encode(texts) if term.weight else []
            kept = [i for i, fit in enumerate(term.fits(encoded)) if fit]
            losses = torch.full((len(texts),), torch.inf if term.weight else 0.0)
            if kept:
                losses[kept] = term.weight * term.score([encoded[i] for i in kept]).float().cpu()
            total += losses
        return total

    def total(self, losses: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """Return the weighted sum of the terms' losses; inf where one is not finite."""
        weights = torch.tensor([term.weight for term in self.terms.values()])
        return torch.where(losses.isfinite().all(1), losses.nan_to_num() @ weights, torch.inf)

    def rescore_best(
        self, losses: Float[Tensor, "n t"], prompts: Sequence[str], num_ranked: int
    ) -> None:
        """Score the best candidates anew by the precise models, in place, until the best ones are
        such.
        """
        coarse = [(i, t) for i, t in enumerate(self.terms.values()) if t.precise is not t.engine]
        settled: set[int] = set()
        while coarse:
            total = self.total(losses)
            best = total.argsort(stable=True)[: max(MIN_PRECISE, num_ranked)].tolist()
            best = [i for i in best if i not in settled and total[i] < torch.inf]
            if not best:
                break
            for column, term in coarse:
                encoded = term.encode([prompts[i] for i in best])
                losses[best, column] = term.precise.score(encoded)
            settled.update(best)

    @property
    def elicits(self) -> bool:
        """Whether the primary is to say a label."""
        return bool(self.primary.loss.label)

    def says_label(self, rows: Sequence[Ids]) -> list[bool]:
        """Whether greedy decoding after each row of free tokens says the label, token for token."""
        if not self.elicits:
            return [False] * len(rows)
        return self.primary.engine.says(self.primary.encode(self.vocabulary.decode(rows)))

    def score_texts(self, prompts: Sequence[str]) -> Float[Tensor, "n t"]:
        """Return each term's loss of exactly these texts, tokenised anew by every model."""
        losses = [term.precise.score(term.encode(prompts)) for term in self.terms.values()]
        return torch.stack(losses, 1)

    def evaluate_text(self, prompt: str) -> tuple[float, dict[str, TermResult]]:
        """Return the total loss of exactly this text, and of each term its loss and what its model
        read.
        """
        losses = self.score_texts([prompt])[0].tolist()
        results = self.term_results(prompt, losses)
        return sum(term.weight * term.loss for term in results.values()), results

    def term_results(self, prompt: str, losses: Sequence[float]) -> dict[str, TermResult]:
        """Return of each term its loss, as given, and what its model reads."""
        found = {}
        for (name, term), loss in zip(self.terms.items(), losses, strict=True):
            text, (encoded,) = term.template.render(prompt)[0], term.encode([prompt])
            found[name] = TermResult(loss, term.weight, text, encoded.ids)
        return found

    # --- gradients -------------------------------------------------------------------------------

    def token_gradient(
        self, rows: Sequence[Ids], positions: Sequence[int], linearise: Sequence[str] = ("current",)
    ) -> Float[Tensor, "b v"]:
        """Return the gradient by the one-hot token at one position of each row, up to a constant a
        row.

        Args:
            linearise: what the models read at the position, of `fuse.nn.embedding_table.POINTS`; of
                several such points the gradients are standardised over the allowed tokens, and
                summed.
        """
        by_point = [self._token_gradient(rows, positions, point) for point in linearise]
        if len(by_point) == 1:
            return by_point[0]
        return torch.stack([standardised(one, self.allowed) for one in by_point]).sum(0)

    def secondary_gradient(
        self, rows: Sequence[Ids], positions: Sequence[int], point: str
    ) -> Float[Tensor, "b v"]:
        """Return what `token_gradient` returns of the secondaries alone, at one point."""
        terms = [term for term in self.weighed_terms() if term is not self.primary]
        return self._token_gradient(rows, positions, point, terms)

    def _token_gradient(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        point: str,
        terms: Iterable[Term] | None = None,
    ) -> Float[Tensor, "b v"]:
        """Return the weighted sum of the terms' gradients with one point read at each position."""
        shape = len(rows), len(self.vocabulary)
        total = self.vocabulary.embedding.new_zeros(shape, dtype=torch.float32)
        for term in self.weighed_terms() if terms is None else terms:
            if term.adapter is None:
                total += term.weight * term.token_gradient(rows, positions, point)
                continue
            kept = self._readable(rows, term)
            if kept:
                own = [rows[i] for i in kept], [positions[i] for i in kept]
                total[kept] += term.weight * term.adapter.token_scores(*own, term, point).to(total)
        return total

    def proposals(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        top_k: int,
        linearise: Sequence[str] = ("current",),
    ) -> list[list[list[Ids]]]:
        """Return what each secondary proposes whose adapter does not rank the primary's tokens.

        Returns:
            For each such secondary and each row some rows of valid text, with a word of the
            secondary's own in the place of that at the row's position, one of its `top_k` best by
            its gradient at any of the points `linearise`.
        """
        pools = []
        for term in self.weighed_terms():
            if term.adapter is None or term.adapter.ranks:
                continue
            pool: list[list[Ids]] = [[] for _ in rows]
            kept = self._readable(rows, term)
            for point in linearise if kept else ():
                own = [rows[i] for i in kept], [positions[i] for i in kept]
                texts = term.adapter.proposals(*own, term, top_k, point)
                for i, proposed in zip(kept, texts, strict=True):
                    pool[i] += [row for row in self.spelled(proposed) if row]
            pools.append(pool)
        return pools

    def words_of(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """Return how each different word of some texts is spelled at the beginning of a prompt, and
        after a word; those of forbidden tokens are left out.
        """
        words = list(dict.fromkeys(WORD.findall(" ".join(texts))))
        found = spellings(self.vocabulary, words)
        pairs, may_stay = zip(found[: len(words)], found[len(words) :], strict=True), self.allowed
        return [pair for pair in pairs if may_stay[[*pair[0], *pair[1]]].all()]

    def word_proposals(
        self,
        rows: Sequence[Ids],
        positions: Sequence[int],
        words: Sequence[tuple[Ids, Ids]] = (),
    ) -> list[list[list[Ids]]]:
        """Return pools of rows with a word in the place of the token at each row's position, and of
        the word that it is part of.

        Returns:
            One pool for the listed words, unless all of them are one token, and one for `words`, if
            there are any.

        Args:
            words: as `words_of` returns them.
        """
        pools: list[list[list[Ids]]] = [[] for known in (self.long_words, words) if known]
        for row, position in zip(rows, positions, strict=True) if pools else ():
            own = self.vocabulary.word_around(row, position)
            listed: list[Ids] = []
            offered: list[Ids] = []
            for start, end in dict.fromkeys([(position, position + 1), own]):
                before, after = row[:start], row[end:]
                listed += [(*before, *word, *after) for word in self.long_words]
                offered += [(*before, *word[start > 0], *after) for word in words]
            for pool, found in zip(pools, filter(None, (listed, offered)), strict=True):
                pool.append(found)
        return pools

    def embedding_gradient(
        self, rows: Sequence[Ids], embeddings: Float[Tensor, "b s d"] | None = None
    ) -> Float[Tensor, "b s d"]:
        """Return the gradient by continuous prompts; models with other tokens read the text of
        `rows`.

        Args:
            rows: the tokens nearest to the continuous prompts.
            embeddings: the continuous prompts; None for the rows' own embeddings: their losses are
                computed as well, and not once more when the rows are evaluated in the same step.
        """
        new = [row for row in dict.fromkeys(rows) if row not in self._carried]
        carried = {**self._carried, **dict(zip(new, self._carry(new), strict=True))}
        self._carried = {row: carried[row] for row in rows}
        total = torch.stack([carried[row] for row in rows])
        for term in self.weighed_terms():
            if term.adapter is None:
                total += term.weight * term.embedding_gradient(rows, embeddings)
        return total

    def _carry(self, rows: Sequence[Ids]) -> Float[Tensor, "b s d"]:
        """Return what the adapters make of the gradients of models that read the rows' text, all of
        one length.
        """
        length = len(rows[0]) if rows else 0
        shape = len(rows), length, self.vocabulary.embedding.shape[1]
        total = self.vocabulary.embedding.new_zeros(shape, dtype=torch.float32)
        for term in self.weighed_terms():
            kept = self._readable(rows, term) if term.adapter is not None else []
            if not kept or term.adapter is None:
                continue
            repeated: list[Ids] = []
            positions: list[int] = []
            for i in kept:
                repeated += [rows[i]] * length
                positions += range(length)
            found = term.adapter.embedding_gradient(repeated, positions, term)
            total[kept] += term.weight * found.reshape(total[kept].shape).to(total)
        return total

    def weighed_terms(self) -> Iterable[Term]:
        """Return the terms whose weight is not zero."""
        return [term for term in self.terms.values() if term.weight]

    def _readable(self, rows: Sequence[Ids], term: Term) -> list[int]:
        """Return which rows fit a secondary's context; the others, whose candidates are refused
        anyway, have no say.
        """
        fits = term.fits(term.encode(self.vocabulary.decode(rows)))
        return [i for i, fit in enumerate(fits) if fit]

    def next_token_log_probs(self, rows: Sequence[Ids]) -> Float[Tensor, "b v"]:
        """Return the primary's log p(next token) after each row.

        Raises:
            FuseError: the primary is no causal LM.
        """
        model = self.primary.model
        if not isinstance(model, CausalLM):
            kind = type(model).__name__
            raise FuseError(
                f"primary={kind}: this method reads next-token probabilities; use a causal LM"
            )
        encoded = self.primary.with_surroundings(rows)
        # Where nothing stands before the first token, it is predicted from the start of a text
        before = [e.up_to_prompt().ids or self.vocabulary.start for e in encoded]
        return self.primary.engine.next_token_log_probs(before)

    def position_log_probs(
        self, rows: Sequence[Ids], positions: Sequence[int]
    ) -> Float[Tensor, "b v"]:
        """Return the primary's log p(token) at one position of each row: given all other tokens of
        a masked LM, given those before it of a causal one.

        Raises:
            FuseError: the primary is neither.
        """
        if not isinstance(self.primary.model, MaskedLM):
            before = [row[:position] for row, position in zip(rows, positions, strict=True)]
            return self.next_token_log_probs(before)
        encoded = self.primary.with_surroundings(rows)
        at = [e.free[0] + position for e, position in zip(encoded, positions, strict=True)]
        return self.primary.engine.masked_log_probs(encoded, at)


class ObjectiveGroup:
    """Objectives whose equal terms share forward passes, for searches side by side."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = list(objectives)
        members: dict[Hashable, list[tuple[int, str]]] = {}
        for i, objective in enumerate(objectives):
            for name, term in objective.terms.items():
                # No term of one objective with another of the same
                members.setdefault((name, term.engine.group_key), []).append((i, name))
        self._members = list(members.values())

    def _group(self, members: Sequence[tuple[int, str]]) -> EngineGroup:
        return EngineGroup([self.objectives[i].terms[name].engine for i, name in members])

    def prefill(self, beams: Sequence[Sequence[Ids]]) -> None:
        """Do `Objective.prefill` for each objective, with a beam of its own."""
        pairs = zip(self.objectives, beams, strict=True)
        prompts = [objective.vocabulary.decode(beam) for objective, beam in pairs]
        for members in self._members:
            terms = [(self.objectives[i].terms[name], prompts[i]) for i, name in members]
            self._group(members).prefill([term.encode(own) for term, own in terms])

    def evaluate(
        self, candidates: Sequence[Candidates], known: Sequence[Known], num_ranked: Sequence[int]
    ) -> list[Evaluation]:
        """Do `Objective.evaluate` for each objective, with candidates of its own."""
        new, prompts = [], []
        for objective, own, old in zip(self.objectives, candidates, known, strict=True):
            rows = [row for row in dict.fromkeys(map(tuple, own.ids)) if row not in old]
            valid = objective.valid(rows)
            new.append([row for row, ok in zip(rows, valid, strict=True) if ok])
            prompts.append(objective.vocabulary.decode(new[-1]))
        losses = [
            torch.zeros(len(rows), len(o.terms))
            for rows, o in zip(new, self.objectives, strict=True)
        ]
        for members in self._members:
            terms = [(self.objectives[i].terms[name], prompts[i]) for i, name in members]
            found = self._group(members).score([term.encode(own) for term, own in terms])
            for (i, name), values in zip(members, found, strict=True):
                losses[i][:, list(self.objectives[i].terms).index(name)] = values
        evaluations = []
        for i, objective in enumerate(self.objectives):
            objective.rescore_best(losses[i], prompts[i], num_ranked[i])
            scored = dict(zip(new[i], map(tuple, losses[i].tolist()), strict=True))
            evaluations.append(_evaluation(objective, candidates[i], known[i], scored))
        return evaluations


def _evaluation(
    objective: Objective, candidates: Candidates, known: Known, scored: Known
) -> Evaluation:
    """Put losses that were known and new ones into the order of the candidates."""
    refused = (torch.inf,) * len(objective.terms)
    rows = [tuple(row) for row in candidates.ids]
    values = [known[row] if row in known else scored.get(row, refused) for row in rows]
    losses = torch.tensor(values).reshape(len(rows), len(objective.terms))
    valid = torch.tensor([row in known or row in scored for row in rows], dtype=torch.bool)
    terms = dict(zip(objective.terms, losses.unbind(1), strict=True))
    weights = {name: term.weight for name, term in objective.terms.items()}
    return Evaluation(candidates, objective.total(losses), terms, valid, weights)


def as_candidates(candidates: Candidates | Sequence[Ids]) -> Candidates:
    """Return candidates; rows of ids are candidates without parents."""
    return candidates if isinstance(candidates, Candidates) else Candidates(candidates)
