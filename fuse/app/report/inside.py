"""What the models say of a prompt: what each token is worth, what is near it, how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fuse.app.inspection.neighbours import nearest
from fuse.objective import Objective
from fuse.search.state import ScoredLog
from fuse.types import Ids

NUM_NEAR = 5
"""How many neighbours of a token are shown."""
Point = tuple[float, float]


@dataclass(frozen=True)
class TokenInside:
    """One token of a prompt.

    Args:
        text: what it spells.
        changes: by how much each term's loss, times its weight, grows when the token is left out;
            empty of the only token.
        near: the tokens with the closest embeddings, and their cosines.
    """

    text: str
    id: int
    changes: dict[str, float]
    near: list[tuple[str, float]]


@dataclass(frozen=True)
class Inside:
    """What the models say of a prompt.

    Args:
        tokens: those of the primary.
        readings: the parts in which each term's model reads the prompt.
        points: of everything scored, the primary's loss and the sum of the others', with weights.
    """

    tokens: list[TokenInside]
    readings: dict[str, list[str]]
    points: list[Point]


def look_inside(objective: Objective, ids: Ids, scored: ScoredLog | None = None) -> Inside:
    """Score a prompt without each of its tokens, and look up what is near them."""
    vocabulary = objective.vocabulary
    embeddings = vocabulary.embedding[list(ids)]
    near = nearest(vocabulary, embeddings, NUM_NEAR + len(set(ids)))
    texts, changes, tokens = vocabulary.token_texts, contributions(objective, ids), []
    for token, change, around in zip(ids, changes, near, strict=True):
        named = [(texts[other], cosine) for other, cosine in around if other != token]
        tokens.append(TokenInside(texts[token], token, change, named[:NUM_NEAR]))
    points = _points(objective, scored) if scored and objective.secondaries else []
    return Inside(tokens, readings(objective, vocabulary.decode([ids])[0]), points)


def contributions(objective: Objective, ids: Ids) -> list[dict[str, float]]:
    """Return what each token is worth, exactly: weight x (loss without it - loss), for each term.

    The text without the token is decoded and tokenised anew by every model.
    """
    if len(ids) < 2:
        return [{} for _ in ids]
    rows = [ids, *(ids[:i] + ids[i + 1 :] for i in range(len(ids)))]
    losses = objective.score_texts(objective.vocabulary.decode(rows))
    weights = torch.tensor([term.weight for term in objective.terms.values()])
    changes = (losses[1:] - losses[0]) * weights
    return [dict(zip(objective.terms, row, strict=True)) for row in changes.tolist()]


def readings(objective: Objective, prompt: str) -> dict[str, list[str]]:
    """Return the parts in which each term's model reads a prompt."""
    found = {}
    for name, term in objective.terms.items():
        (encoded,), text = term.encode([prompt]), term.template.render(prompt)[0]
        parts, end = [], encoded.prompt_start
        for start, stop in encoded.chars:
            # Of a character that several tokens spell, all but the first add nothing
            parts.append(text[min(end, start) : stop] if stop > end else "")
            end = max(end, stop)
        found[name] = parts
    return found


def _points(objective: Objective, scored: ScoredLog) -> list[Point]:
    losses = torch.tensor([scored[row] for row in scored], dtype=torch.float64)
    weights = torch.tensor([term.weight for term in objective.terms.values()], dtype=torch.float64)
    return split(losses.reshape(len(scored), len(weights)) * weights)


def split(weighted: torch.Tensor) -> list[Point]:
    """Return the primary's share of each finite weighted sum [n t], and that of the others."""
    weighted = weighted[weighted.isfinite().all(1)]
    pairs = torch.stack([weighted[:, 0], weighted[:, 1:].sum(1)], 1)
    return [(x, y) for x, y in pairs.tolist()]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in one part without losing in the other."""
    found: list[Point] = []
    for point in sorted(set(points)):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found
