"""Runs of nanoGCG on tasks of `benchmarks/speed.py` for one model, in an environment of its own:
`python gcg_nanogcg.py TASKS`.
"""

import json
import sys

import nanogcg
import torch
from measured import Stopwatch
from transformers import AutoModelForCausalLM, AutoTokenizer

tasks = json.loads(sys.argv[1])
first = tasks[0]
torch.set_num_threads(first["threads"])
model = AutoModelForCausalLM.from_pretrained(
    first["model"], torch_dtype=getattr(torch, first["dtype"])
).to(first["device"])
tokenizer = AutoTokenizer.from_pretrained(first["model"])
watch = Stopwatch(model)
reports = []
for task in tasks:
    settings = nanogcg.GCGConfig(
        num_steps=task["steps"],
        optim_str_init=task["init"],
        search_width=task["search_width"],
        topk=task["top_k"],
        seed=task.get("seed", 0),
        verbosity="WARNING",
    )
    watch.start()
    result = nanogcg.run(model, tokenizer, task["prefix"] + "{optim_str}", task["label"], settings)
    reports.append(
        {
            **watch.report(task["warm_up"]),
            "loss": result.best_loss,
            "text": result.best_string,
            "losses": result.losses,
        }
    )
print(json.dumps(reports))
