"""Proof, when a model is made, that it computes what its network computes as given.

What counts is the network's plain forward pass: eager attention, where the network offers it, one
row at a time, neither padding nor mask nor cache. A model's quicker ways to read have to agree with
it on a few short rows; those that do not are turned off. There is no list of architectures.

Shape letters: t positions, n predictions, v vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fuse.errors import FuseError
from fuse.models.base import Model
from fuse.models.model_files import first_line
from fuse.models.reuse_trial import MAX_COARSE_ERROR, MAX_ERROR, is_coarse, relative_error
from fuse.nn.lm_head import widened
from fuse.nn.prefix_attention import Attention
from fuse.types import Ids

log = logging.getLogger(__name__)

MAX_LOSS_ERROR = 1e-4
"""How much a log-probability may differ, in nats, or in the predictions' spread if that is more."""
MAX_REPEATED_ERROR = 0.02
"""How much predictions of equal beginnings of equally long rows may differ in coarse types."""
EAGER = "eager"


@dataclass(frozen=True)
class FastWay:
    """A way to read that is quicker than the plain one."""

    name: str
    turn: Callable[[bool], None]
    """Turns it on or off."""


class Proof:
    """Try ways to read, and keep those on that change no result.

    Args:
        network: the network that reads, for messages.
        agrees: whether what is computed in the ways that are on equals what is read plainly.
    """

    def __init__(self, network: Any, agrees: Callable[[], bool]) -> None:
        self._kind, self._agrees = type(network).__name__, agrees

    def all_agree(self, ways: Sequence[FastWay]) -> bool:
        """Turn all ways on, and say whether results stay the same; else turn all off."""
        if self._try(", ".join(way.name for way in ways), ways):
            return True
        for way in reversed(ways):
            way.turn(False)
        return False

    def settle(self, ways: Sequence[FastWay]) -> tuple[str, ...]:
        """Turn on one way after another, and off again those that do not agree.

        Returns:
            The names of those that do.

        Raises:
            FuseError: the plain way does not agree with itself.
        """
        if not self._try("the plain way to read", ()):
            raise FuseError(
                f"network={self._kind}: it reads a text otherwise from pass to pass, or when more "
                "follows; choose another"
            )
        kept = []
        for way in ways:
            if self._try(way.name, (way,)):
                kept.append(way.name)
            else:
                way.turn(False)
        return tuple(kept)

    def _try(self, name: str, ways: Sequence[FastWay]) -> bool:
        """Turn ways on, and say whether results stay the same."""
        try:
            for way in ways:
                way.turn(True)
            agrees = self._agrees()
        except torch.OutOfMemoryError:
            raise
        except Exception as reason:  # a network that cannot do it fails in its own way
            log.debug("%s: %s: no (%r)", self._kind, name, reason)
            return False
        log.debug("%s: %s: %s", self._kind, name, "yes" if agrees else "no")
        return agrees


def agree(
    model: Model,
    found: Float[Tensor, "n v"],
    expected: Float[Tensor, "n v"],
    max_coarse_error: float = MAX_COARSE_ERROR,
) -> bool:
    """Whether log-probabilities are equal, up to what the model's type rounds.

    Args:
        max_coarse_error: how much they may differ in coarse types, relative to their spread.
    """
    # What a network rules out is -inf in both
    found, expected = found.float(), expected.to(found.device).float()
    same = found == expected
    found, expected = (one.masked_fill(same & one.isinf(), 0.0) for one in (found, expected))
    error = relative_error(found, expected)
    if is_coarse(model):
        return error <= max_coarse_error
    spread = float((expected - expected.mean(0)).square().mean().sqrt())
    largest = float((found - expected).abs().max())
    return largest <= MAX_LOSS_ERROR * max(1.0, spread) and (
        error <= MAX_ERROR or largest <= MAX_LOSS_ERROR / 10
    )


def plain_options(network: Any) -> dict[str, Any]:
    """Return what a plain pass is told beside the ids: to keep no cache, if it can be told."""
    parameters = signature(network.forward).parameters
    passes_on = any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())
    return {"use_cache": False} if passes_on or "use_cache" in parameters else {}


def plain_logits(network: Any, row: Ids, device: torch.device) -> Float[Tensor, "t v"]:
    """Return the logits of one row, read plainly with the attention that is in use.

    Raises:
        FuseError: the network cannot read it, or its logits are no numbers.
    """
    kind = type(network).__name__
    try:
        ids = torch.tensor([row], device=device)
        logits = widened(network(input_ids=ids, **plain_options(network)).logits[0])
    except (torch.OutOfMemoryError, FuseError):
        raise
    except Exception as error:  # a network that reads more than text fails in its own way
        raise FuseError(
            f"network={kind}: it cannot read a text alone ({type(error).__name__}: "
            f"{first_line(error)}); choose another"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(row):
        raise FuseError(f"network={kind}: it has no logits for each token; choose another")
    if logits.isnan().any() or logits.isposinf().any():
        raise FuseError(
            f"network={kind}: its logits are not finite (nan or inf); "
            "repair its weights or choose another"
        )
    return logits


def use_eager(attention: Attention, read: Callable[[], Any]) -> bool:
    """Use eager attention, and say whether the network can read with it; else that as given."""
    attention.use(EAGER)
    try:
        read()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the network has none
        attention.use()
        return False
    return True


def check_repeats(
    model: Model, found: Float[Tensor, "n v"], expected: Float[Tensor, "n v"]
) -> None:
    """Check that a row's predictions are the same when it is read again.

    Raises:
        FuseError: they differ.
    """
    if not agree(model, found, expected, MAX_REPEATED_ERROR):
        raise FuseError(
            f"network={type(model.network).__name__}: two passes over one text differ "
            "(chance in evaluation mode?); choose another"
        )
