"""Random combinations of valid options: no crash, right losses, no constraint broken.

Plain `pytest` tries a few; `pytest -m full` tries 300 in one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuse
from fuse.app.build import build
from fuse.app.config import compose
from fuse.registry import STRATEGIES

MODELS: dict[Any, Any] = {}
"""What was loaded, over all examples."""
METHODS = {
    "autodan": {
        "method.search_width": st.integers(1, 24),
        "method.logit_weight": st.sampled_from([0.0, 0.5, 2.0]),
        "method.temperature": st.sampled_from([0.0, 0.7]),
        "method.top_p": st.sampled_from([0.5, 1.0]),
        "method.frequency_penalty": st.sampled_from([0.0, 1.0]),
        "method.linearise": st.sampled_from(["[current]", "[mean]", "[mean,current]"]),
    },
    "gcg": {
        "method.search_width": st.integers(1, 24),
        "method.top_k": st.integers(1, 80),
        "method.n_replace": st.integers(1, 3),
        "method.moves": st.sampled_from(["[swap]", "[insert,delete]", "[swap,insert,delete]"]),
        "method.linearise": st.sampled_from(["[current]", "[mean]", "[mean,current]"]),
        "method.logit_weight": st.sampled_from([0.0, 0.4]),
        "method.momentum": st.sampled_from([0.0, 0.6]),
        "method.buffer_size": st.integers(0, 3),
    },
    "random": {
        "method.search_width": st.integers(1, 24),
        "method.search_ball": st.sampled_from(["L0", "L2"]),
        "method.moves": st.sampled_from(["[swap]", "[insert,delete]"]),
    },
    "gibbs": {
        "method.search_width": st.integers(1, 24),
        "method.temperature": st.sampled_from([0.0, 0.7]),
        "method.gradient_weight": st.sampled_from([0.0, 2.0]),
    },
    "pez": {"method.lr": st.sampled_from([0.01, 1.0])},
    "embedding": {
        "method.search_width": st.integers(1, 3),
        "method.start": st.sampled_from(["kmeans", "random"]),
    },
    "relaxed": {
        "method.search_width": st.integers(1, 3),
        "method.lr": st.sampled_from([0.1, 3.0]),
        "method.decay": st.sampled_from([0.0, 1.0]),
    },
    "langevin": {
        "method.search_width": st.integers(1, 5),
        "method.temperature": st.sampled_from([0.1, 10.0]),
        "method.step_size": st.sampled_from([0.05, 1.0]),
    },
    "caption": {},
}
COMMON = {
    "prompt_length": st.sampled_from(["null", 1, 4]),
    "seed": st.integers(0, 1000),
    "adapter": st.sampled_from(["semantic", "lexical", "pooled"]),
    "secondary": st.sampled_from(["[]", "[demo_clip]", "[demo_mood]", "[demo_clip,demo_mood]"]),
    "primary.loss": st.sampled_from(["nll", "log_prob", "kl_div"]),
    "primary.prefix": st.sampled_from(["''", "'Look:'", "'A picture of'"]),
    "primary.prefix_cache": st.booleans(),
    "primary.packing": st.booleans(),
    "primary.batch_size": st.sampled_from([1, 7, 128]),
    "primary.weight": st.sampled_from([0.0, 1.0]),
    "constraints.ascii": st.booleans(),
    "constraints.words": st.booleans(),
    "constraints.block": st.sampled_from(["[]", "[house,red]"]),
    "scoring": st.sampled_from(["exact", "exact", "probe"]),
    "init": st.sampled_from(["null", "random", "'A blue cup'"]),
    "max_evaluations": st.sampled_from(["null", 30]),
    "stop_loss": st.sampled_from(["null", 5.0]),
    "refine": st.sampled_from([None, None, "random", "gcg"]),
}
GREEDY_ONLY = ("pez", "embedding", "relaxed", "langevin", "caption")


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Draw a command line."""
    method = draw(st.sampled_from(sorted(METHODS)))
    chosen: dict[str, Any] = {"method": method}
    for name, values in {**COMMON, **METHODS[method]}.items():
        if draw(st.booleans()):
            chosen[name] = draw(values)
    if method not in GREEDY_ONLY:
        chosen["strategy"] = draw(st.sampled_from(["auto", "greedy", *STRATEGIES]))
    steps = draw(st.integers(0, 3))
    return [f"{name}={value}" for name, value in chosen.items() if value is not None] + [
        f"steps={steps}"
    ]


def check(arguments: list[str], cache: Path) -> None:
    """Run a search, and check what it finds."""
    try:
        config = compose([*arguments, f"adapter.cache_dir={cache}"])
        search = build(config, models=MODELS)
        result = search.run()
    except fuse.FuseError as error:
        assert len(str(error).splitlines()) == 1
        return
    objective = search.objective
    fresh = fuse.Objective(objective.primary, objective.secondaries, objective.constraints)
    fresh.clear()
    loss, _ = fresh.evaluate_text(result.prompt)
    assert result.loss == pytest.approx(loss, abs=1e-4, rel=1e-4)
    for step in result.trace:
        assert fresh.valid([step.free_ids]) == [True]
        assert all(fresh.allowed[token] for token in step.free_ids)
        assert step.loss == pytest.approx(fresh.evaluate_text(step.prompt)[0], abs=1e-4, rel=1e-4)


OPTIONS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=6, **OPTIONS)
@given(arguments=overrides())
def test_some_combinations(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    check(arguments, tmp_path_factory.getbasetemp())


@pytest.mark.full
@settings(max_examples=300, **OPTIONS)
@given(arguments=overrides())
def test_many_combinations(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    check(arguments, tmp_path_factory.getbasetemp())
