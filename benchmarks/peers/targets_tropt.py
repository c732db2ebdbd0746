"""Runs of tropt's optimisers on tasks of `benchmarks/optimisers.py` of one model, in an environment
of its own: `python targets_tropt.py TASKS`.
"""

import json
import sys
import time

import torch
import tropt_import  # noqa: F401
from measured import counter_of
from transformers import AutoModelForCausalLM
from tropt.common import Targets
from tropt.loss import PrefillCELoss
from tropt.model.huggingface.lm import LMHFModel
from tropt.optimizer.arca_optimizer import ARCAOptimizer
from tropt.optimizer.autoprompt_optimizer import AutoPromptOptimizer
from tropt.optimizer.gasliteplus_optimizer import GASLITEPlusOptimizer
from tropt.optimizer.gbda_optimizer import GBDAOptimizer
from tropt.optimizer.gcg_optimizer import GCGOptimizer
from tropt.optimizer.gcgplus_optimizer import GCGPlusOptimizer
from tropt.optimizer.pez_optimizer import PEZOptimizer
from tropt.optimizer.rs_optimizer import RandomSearchOptimizer
from tropt.optimizer.utils.token_constraints import TokenConstraints
from tropt.recipe_hub.GASLITE__bentov2024 import GASLITE_PLUS_HPARAMS
from tropt.tracker import BaseTracker

MANY_STEPS = 10**6
WIDE = {"n_candidates": 512, "sample_topk": 256}
# The options of its recipes (tropt.recipe_hub), and one that joins the tricks of its GCG+
RECIPES = {
    "tropt_gcg": (GCGOptimizer, WIDE),
    "tropt_mac": (GCGPlusOptimizer, {"n_candidates": 256, "sample_topk": 256, "momentum": 0.6}),
    "tropt_gcgplus": (GCGPlusOptimizer, {**WIDE, "skip_visited": True, "buffer_size": 16}),
    "tropt_focused": (
        GCGPlusOptimizer,
        {"candidate_selection": "focused", "n_candidates": 32, "buffer_size": 128},
    ),
    "tropt_gasliteplus": (GASLITEPlusOptimizer, GASLITE_PLUS_HPARAMS),
    "tropt_arca": (ARCAOptimizer, {"n_grad_avg": 32}),
    "tropt_autoprompt": (AutoPromptOptimizer, {}),
    "tropt_random": (
        RandomSearchOptimizer,
        {
            "n_candidates": 128,
            "patience": 25,
            "mutation_mode": "block_random",
            "initial_block_len": 4,
            "schedule": "fixed",
        },
    ),
    "tropt_pez": (PEZOptimizer, {"learning_rate": 0.1, "weight_decay": 0.1}),
    "tropt_gbda": (
        GBDAOptimizer,
        {
            "n_grad_samples": 10,
            "learning_rate": 0.3,
            "initial_coeff": 15.0,
            "temp_start": 1.0,
            "temp_end": 1.0,
            "n_final_gumbel_samples": 100,
            "use_lr_schedule": False,
        },
    ),
}
UNCONSTRAINED = (PEZOptimizer, GBDAOptimizer)


class Record(BaseTracker):
    """Keeps the loss and the text of each step, and what was spent by then."""

    def _init(self, config=None):
        self.steps = []

    def _log(self, data):
        self.steps.append((counter.total, data["loss"], data.get("trigger_str")))

    def _finish(self, summary=None):
        pass


tasks = json.loads(sys.argv[1])
first = tasks[0]
torch.set_num_threads(first["threads"])
network = AutoModelForCausalLM.from_pretrained(first["model"], dtype=getattr(torch, first["dtype"]))
network.to(first["device"])
network.requires_grad_(False)
counter = counter_of(network)
model = LMHFModel(
    first["model"], device=first["device"], loaded_model=network, use_prefix_cache=True
)


def run(task):
    """One run, which ends before the step at which its budget is spent."""
    kind, options = RECIPES[task["method"]]
    if kind not in UNCONSTRAINED:
        constraints = TokenConstraints(disallow_non_ascii=True, disallow_special_tokens=True)
        options = {**options, "token_constraints": constraints}
    if "decline_n_flip_from_step" in options:
        # Its schedule is laid over the number of its steps; one says how many the budget has
        if "num_steps" not in task:
            pilot = run({**task, "num_steps": 1, "budget": float("inf")})["operations"]
            return run({**task, "num_steps": max(1, round(task["budget"] / pilot))})
        options = {**options, "early_stopping_patience": None}
    steps = task.get("num_steps", MANY_STEPS)
    record, before, began = Record(), counter.total, time.perf_counter()
    method = kind(
        model,
        PrefillCELoss(),
        tracker=record,
        seed=task["seed"],
        **{**options, "num_steps": steps},
    )
    if task["budget"] < float("inf"):
        method.set_budget(task["budget"], "total_flops")
        method._budget_usage = lambda: counter.total - before
    result = method.optimize_trigger(
        [task["prefix"] + "{{OPTIMIZED_TRIGGER}}"],
        task["init"],
        Targets(target_response_strs=[task["label"]]),
    )
    half = [loss for spent, loss, _ in record.steps if spent - before <= task["budget"] / 2]
    return {
        # Where its first step was not within the budget, it has no text
        "text": result.best_trigger_str or task["init"],
        "operations": counter.total - before,
        "evaluations": 0,
        "steps": len(record.steps),
        "seconds": time.perf_counter() - began,
        "ended": "",
        "half": min(half, default=None),
    }


print(json.dumps([run(task) for task in tasks]))
