"""Prompts that make the primary say a text, collected by embedding optimisation, and each one tried
anew.

prompts: how many different ones were found. said: the share of them after which greedy generation,
from the text alone, says the label. tokens: how many different tokens they hold.

    python benchmarks/elicit.py --labels "in the snow.,by the sea.,a red house"
"""

from __future__ import annotations

import torch
from runs import Models, arguments, find, mean, show

import fuse


def main() -> None:
    options = arguments(
        __doc__,
        labels={
            "default": "in the snow.,by the sea.,a red house",
            "help": "texts, separated by commas",
        },
        overrides={"default": "", "help": "further overrides for every run, separated by blanks"},
        verbose={"action": "store_true", "help": "show every prompt"},
    )
    rows, models = [], Models()
    for label in options.labels.split(","):
        result = find(
            "method=embedding",
            "primary=demo",
            f'label="{label}"',
            *options.overrides.split(),
            models=models,
        )
        (lm,) = (model for model in models.values() if isinstance(model, fuse.CausalLM))
        if options.verbose:
            print(label, *result.found, sep="\n    ", flush=True)
        rows.append(
            {
                "label": label,
                "prompts": len(result.found),
                "said": mean([float(says(lm, prompt, label)) for prompt in result.found]),
                "tokens": len(result.token_counts),
                "seconds": result.seconds,
            }
        )
    show("Prompts that make the demo LM say a label", rows, options.json)


@torch.no_grad()
def says(lm: fuse.CausalLM, prompt: str, label: str) -> bool:
    """Whether the model's own greedy generation after a prompt begins with the label."""
    context = torch.tensor([[*lm.vocabulary.head, *lm.vocabulary.encode([prompt])[0][0]]])
    room = len(lm.vocabulary.encode([f" {label}"])[0][0]) + 1
    out = lm.network.generate(
        context,
        attention_mask=torch.ones_like(context),
        max_new_tokens=room,
        do_sample=False,
        pad_token_id=0,
    )
    return lm.vocabulary.decode([tuple(out[0, context.shape[1] :].tolist())])[0].startswith(label)


if __name__ == "__main__":
    main()
