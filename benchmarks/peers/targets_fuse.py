"""Our runs of tasks of `benchmarks/optimisers.py` of one model: `python targets_fuse.py TASKS`."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import fuse
from fuse.registry import METHODS, STRATEGIES

FREE_TOKENS = 15
MANY_STEPS = 10**6
PILOT_WIDTH = 64
EDITS = {"moves": ("swap",)}
"""A prompt keeps its length."""
VARIANTS = {
    "gcg": ("gcg", EDITS),
    "gcg_merge": ("gcg", {**EDITS, "merge": 7}),
    "gcg_narrow": ("gcg", {**EDITS, "search_width": 32}),
    "gcg_narrow_merge": ("gcg", {**EDITS, "search_width": 32, "merge": 7}),
    "gcg_pairs": ("gcg", {**EDITS, "n_replace": 2}),
    "gcg_skew": ("gcg", {**EDITS, "skew": 2.0}),
    "gcg_distance": ("gcg", {**EDITS, "distance_weight": 1.0}),
    "gcg_momentum": ("gcg", {**EDITS, "momentum": 0.5}),
    "random": ("random", EDITS),
    "gibbs": ("gibbs", {}),
    "autodan": ("autodan", {"logit_weight": 0.0}),
    "autodan_readable": ("autodan", {}),
    "relaxed": ("relaxed", {}),
    "relaxed_simplex": ("relaxed", {"projection": "simplex", "lr": 0.1}),
    "langevin": ("langevin", {}),
    "pez": ("pez", {}),
    "embedding": ("embedding", {}),
}
"""A method and its options, by the name of a row."""


def method_of(name: str, width: int | None = None):
    """The method and the strategy of a row: `gcg`, or with options `gcg:top_k=32:merge=7`; an
    option `strategy` names that.
    """
    variant, *options = name.split(":")
    kind, given = VARIANTS[variant]
    given = dict(given)
    for option in options:
        key, _, value = option.partition("=")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    strategy = given.pop("strategy", None)
    if width is not None:
        given["search_width"] = width
    if kind == "autodan":
        given |= {"prompt_length": 0, "steps": FREE_TOKENS}
    else:
        given |= {"prompt_length": FREE_TOKENS, "steps": MANY_STEPS}
    return METHODS[kind](**given), None if strategy is None else STRATEGIES[strategy]()


def run(lm: fuse.CausalLM, task: dict, width: int | None = None) -> dict:
    """One search, which ends with the step in which its budget is spent."""
    term = fuse.Term(lm, fuse.CrossEntropy(task["label"]), prefix=task["prefix"])
    method, strategy = method_of(task["method"], width)
    appends = isinstance(method, fuse.AutoDAN)
    if appends and width is None:
        # Its number of steps is that of the tokens: the budget says how wide it is
        pilot = run(lm, {**task, "budget": float("inf")}, PILOT_WIDTH)
        width = max(1, round(PILOT_WIDTH * task["budget"] / pilot["operations"]))
        return run(lm, {**task, "budget": float("inf")}, width)
    search = fuse.Search(
        fuse.Objective(term),
        method,
        strategy,
        init="" if appends else task["init"].strip(),
        generator=torch.Generator().manual_seed(task["seed"]),
    )
    began = time.perf_counter()
    state, trace = search.start(), []
    while not state.ended and state.operations < task["budget"]:
        state = search.accept(state, search.evaluate(state, search.propose(state)))
        if state.best is not None:
            trace.append((state.operations, state.best.loss))
    return {
        "text": lm.vocabulary.decode([state.best.ids])[0],
        "operations": state.operations,
        "evaluations": state.evaluations,
        "steps": state.proposed,
        "seconds": time.perf_counter() - began,
        "ended": state.ended,
        "half": min([loss for spent, loss in trace if spent <= task["budget"] / 2], default=None),
    }


def main() -> None:
    tasks = json.loads(sys.argv[1])
    first = tasks[0]
    torch.set_num_threads(first["threads"])
    dtype = getattr(torch, first["dtype"])
    lm = fuse.CausalLM.load(first["model"], device=first["device"], dtype=dtype)
    print(json.dumps([run(lm, task) for task in tasks]))


if __name__ == "__main__":
    main()
