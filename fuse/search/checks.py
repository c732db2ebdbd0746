"""What goes together: methods with strategies and with objectives."""

from __future__ import annotations

from fuse.errors import FuseError
from fuse.models import CausalLM, MaskedLM
from fuse.objective import Objective
from fuse.registry import METHODS
from fuse.search.methods.base import Method
from fuse.search.screening import Probe
from fuse.search.strategies.base import Strategy
from fuse.search.strategies.beam import Beam, name_of


def check_combination(method: Method, strategy: Strategy) -> None:
    """Raise FuseError where a method goes with greedy search alone, and this is another one."""
    if method.greedy_only and strategy != Beam(1):
        raise FuseError(
            f"strategy={name_of(strategy)}: method={METHODS.name_of(method)} follows a "
            "prompt of its own; "
            "give strategy=greedy"
        )


def check_objective(
    objective: Objective, method: Method, stop_at_label: bool = False, probe: Probe | None = None
) -> None:
    """Raise FuseError where the models are asked for what they cannot say, or a label is waited for
    that is not there.
    """
    model, name = objective.primary.model, METHODS.name_of(method)
    kind = type(model).__name__
    if probe is not None and probe.draft is None and not model.supports_packing:
        raise FuseError(
            f"scoring.draft.model_id=null: primary is a {kind} that cannot guess its "
            "loss from what changed; "
            "name a smaller model"
        )
    if method.reads_predictions and not isinstance(model, CausalLM):
        raise FuseError(
            f"method={name}: it reads next-token probabilities, and primary is a {kind}; "
            "use a causal LM"
        )
    if method.reads_conditionals and not isinstance(model, CausalLM | MaskedLM):
        raise FuseError(
            f"method={name}: it reads how likely tokens are, and primary is a {kind}; "
            "use a causal or a masked LM"
        )
    if stop_at_label and not objective.elicits:
        raise FuseError(
            "stop_at_label=true: there is no label; give label=TEXT and primary.loss=cross_entropy"
        )
    if "mask" in getattr(method, "linearise", ()):
        for key, term in objective.terms.items():
            if term.weight and term.vocabulary.mask_id is None:
                where = key if term is objective.primary else f"secondary.{key}"
                raise FuseError(
                    f"method.linearise={list(method.linearise)}: "  # type: ignore[attr-defined]
                    f"{where} has no mask token; "
                    "choose of current, mean"
                )
