"""One GCG run of nanoGCG on a task of `benchmarks/speed.py`, in an environment of its own: `python
gcg_nanogcg.py TASK`.
"""

import json
import sys

import nanogcg
import torch
from measured import Stopwatch
from transformers import AutoModelForCausalLM, AutoTokenizer

task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
model = AutoModelForCausalLM.from_pretrained(task["model"], torch_dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(task["model"])
watch = Stopwatch(model)
settings = nanogcg.GCGConfig(
    num_steps=task["steps"],
    optim_str_init=task["init"],
    search_width=task["search_width"],
    topk=task["top_k"],
    seed=task.get("seed", 0),
    verbosity="WARNING",
)
result = nanogcg.run(model, tokenizer, task["prefix"] + "{optim_str}", task["label"], settings)
print(
    json.dumps(
        {
            **watch.report(),
            "loss": result.best_loss,
            "text": result.best_string,
            "losses": result.losses,
        }
    )
)
