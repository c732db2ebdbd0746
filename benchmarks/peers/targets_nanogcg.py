"""Runs of nanoGCG on tasks of `benchmarks/optimisers.py` of one model, in an environment of its
own: `python targets_nanogcg.py TASKS`.
"""

import json
import sys
import time

import nanogcg
import torch
from measured import counter_of
from transformers import AutoModelForCausalLM, AutoTokenizer

tasks = json.loads(sys.argv[1])
first = tasks[0]
torch.set_num_threads(first["threads"])
model = AutoModelForCausalLM.from_pretrained(
    first["model"], torch_dtype=getattr(torch, first["dtype"])
).to(first["device"])
tokenizer = AutoTokenizer.from_pretrained(first["model"])
model.requires_grad_(False)
counter = counter_of(model)


def run(task, steps):
    """Its result after so many steps, and what they cost; the options are its defaults."""
    settings = nanogcg.GCGConfig(
        num_steps=steps, optim_str_init=task["init"], seed=task["seed"], verbosity="WARNING"
    )
    before, began = counter.total, time.perf_counter()
    result = nanogcg.run(model, tokenizer, task["prefix"] + "{optim_str}", task["label"], settings)
    return result, counter.total - before, time.perf_counter() - began


reports = []
for task in tasks:
    # Every step costs the same: two short runs say how much, and what comes before
    costs = [run(task, steps)[1] for steps in (1, 2)]
    each = costs[1] - costs[0]
    steps = max(1, round((task["budget"] - (costs[0] - each)) / each))
    result, operations, seconds = run(task, steps)
    reports.append(
        {
            "text": result.best_string,
            "operations": operations,
            "evaluations": steps * 512,
            "steps": steps,
            "seconds": seconds,
            "ended": "",
            "half": min(result.losses[: max(1, steps // 2)]),
        }
    )
print(json.dumps(reports))
