"""PEZ on a CLIP alone beside a plain loop written from the paper (arXiv 2302.03668, algorithm 1):
same CLIP, same steps, same first prompts, same learning rate.

    python benchmarks/pez.py --pictures 10
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from pictures import draw
from runs import arguments, mean, show
from torch.nn.functional import normalize

import fuse
from fuse.guide import Guide


def main() -> None:
    options = arguments(
        __doc__,
        pictures={"type": int, "default": 10},
        first={"type": int, "default": 1_000_000, "help": "seed of the first picture"},
        steps={"type": int, "default": 300},
        length={"type": int, "default": 8, "help": "free tokens"},
        clip={"default": "fuse/demo/clip", "help": "hub id or folder"},
    )
    clip = fuse.CLIP.load(options.clip)
    ours, rows = fuse.PEZ(prompt_length=options.length), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first, options.first + options.pictures):
            scene = draw(seed, Path(folder))
            (image,) = clip.embed_images([fuse.open_image(scene["image"])])
            objective = fuse.Objective(fuse.Term(clip, fuse.CosineDistance(image)))
            generator = torch.Generator().manual_seed(seed)
            (start,) = ours.init(Guide(objective), (), generator)[1]
            result = fuse.search(
                objective, ours, steps=options.steps, init=clip.vocabulary.decode([start])[0]
            )
            plain = paper_loop(clip, image, start, options.steps, ours.lr, ours.weight_decay)
            rows.append(
                {
                    "picture": str(seed),
                    "ours": 1 - result.loss,
                    "plain": plain,
                    "prompt": result.prompt,
                }
            )
    rows.append(
        {
            "picture": "mean",
            **{key: mean([row[key] for row in rows]) for key in ("ours", "plain")},
            "prompt": "",
        }
    )
    show(f"Cosine of prompt and picture after {options.steps} steps", rows, options.json)


def paper_loop(
    clip: fuse.CLIP,
    image: torch.Tensor,
    start: tuple[int, ...],
    steps: int,
    lr: float,
    weight_decay: float,
) -> float:
    """The best cosine that the paper's loop reaches, each projected prompt judged by its decoded
    text.
    """
    vocabulary, tower = clip.vocabulary, clip.network
    table = vocabulary.embedding
    usable = vocabulary.allowed.nonzero().flatten()
    soft = table[list(start)].clone().requires_grad_()
    optimiser = torch.optim.AdamW([soft], lr=lr, weight_decay=weight_decay)
    best = -1.0
    head, tail = (torch.tensor(ids, dtype=torch.long) for ids in (vocabulary.head, vocabulary.tail))
    for _ in range(steps):
        nearest = usable[torch.cdist(soft.detach(), table[usable]).argmin(1)]
        projected = table[nearest].clone().requires_grad_()
        ids = torch.cat([head, nearest, tail])[None]
        embeddings = torch.cat([table[head], projected, table[tail]])[None]
        hook = tower.text_model.get_input_embeddings().register_forward_hook(
            lambda *_, given=embeddings: given
        )
        text = normalize(tower.get_text_features(input_ids=ids).pooler_output, dim=-1)[0]
        hook.remove()
        (soft.grad,) = torch.autograd.grad(1 - text @ image, projected)
        optimiser.step()
        nearest = usable[torch.cdist(soft.detach(), table[usable]).argmin(1)]
        best = max(
            best, float(clip.embed_texts(vocabulary.decode([tuple(nearest.tolist())]))[0] @ image)
        )
    return best


if __name__ == "__main__":
    main()
