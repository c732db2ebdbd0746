"""Runs of tropt's GCG on tasks of `benchmarks/speed.py` for one model, in an environment of its
own: `python gcg_tropt.py TASKS`.
"""

import json
import sys

import torch
import tropt_import  # noqa: F401
from measured import Stopwatch
from transformers import AutoModelForCausalLM
from tropt.common import Targets
from tropt.loss import PrefillCELoss
from tropt.model.huggingface.lm import LMHFModel
from tropt.optimizer.gcg_optimizer import GCGOptimizer
from tropt.optimizer.utils.token_constraints import TokenConstraints

tasks = json.loads(sys.argv[1])
first = tasks[0]
torch.set_num_threads(first["threads"])
network = AutoModelForCausalLM.from_pretrained(first["model"], dtype=getattr(torch, first["dtype"]))
network.to(first["device"])
model = LMHFModel(
    first["model"], device=first["device"], loaded_model=network, use_prefix_cache=True
)
watch = Stopwatch(network)
reports = []
for task in tasks:
    method = GCGOptimizer(
        model,
        PrefillCELoss(),
        seed=0,
        num_steps=task["steps"],
        n_candidates=task["search_width"],
        sample_topk=task["top_k"],
        token_constraints=TokenConstraints(disallow_non_ascii=True, disallow_special_tokens=True),
    )
    watch.start()
    result = method.optimize_trigger(
        [task["prefix"] + "{{OPTIMIZED_TRIGGER}}"],
        task["init"],
        Targets(target_response_strs=[task["label"]]),
    )
    report = {"loss": result.best_loss, "text": result.best_trigger_str}
    reports.append({**watch.report(task["warm_up"]), **report})
print(json.dumps(reports))
