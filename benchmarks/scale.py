"""What one step costs on paper: a language model of 7 billion weights and the text tower of CLIP
ViT-L/14, on one GPU.

Every part is bounded by its operations or by the memory that it moves, whichever takes longer: the
weights once a pass, the keys and values that candidates go on from once for each row of the beam.
--tflops and --bandwidth are what is reached,
not what is promised: the defaults are 60% of an H200's data sheet in bfloat16, a share that
`benchmarks/speed.py` finds reached on a core. With --measure the same sums are held against real
steps of a small model on this machine, at its measured speeds.

    python benchmarks/scale.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from runs import Row, arguments, show


@dataclass(frozen=True)
class Shape:
    """A transformer: weights before the output layer, layers, width of keys and values, vocabulary,
    bytes a number.
    """

    weights: float
    layers: int
    width: int
    vocabulary: int
    bytes: int = 2


LM = Shape(weights=6.5e9, layers=32, width=4096, vocabulary=32_000)
CLIP = Shape(weights=85e6, layers=12, width=768, vocabulary=0)


def main() -> None:
    options = arguments(
        __doc__,
        candidates={"type": int, "default": 256},
        free={"type": int, "default": 16, "help": "free tokens of a prompt"},
        prefix={"type": int, "default": 32, "help": "tokens of the fixed prefix"},
        beam={"type": int, "default": 16, "help": "rows of AutoDAN's beam; GCG has one"},
        tflops={"type": float, "default": 0.6 * 989},
        bandwidth={"type": float, "default": 0.6 * 4.8, "help": "TB/s"},
        measure={
            "action": "store_true",
            "help": "compare with steps of a GPT-2 of 6 layers of 384 on this machine",
        },
    )
    if options.measure:
        show("Estimated and measured", [measured()], options.json)
        return
    speed, bandwidth = options.tflops * 1e12, options.bandwidth * 1e12
    n, s, p = options.candidates, options.free, options.prefix
    rows: list[Row] = []
    # Rows of the beam, tokens that a candidate adds to what it shares with them, and tokens of
    # which a gradient is taken
    for method, beam, new, moved in (("gcg", 1, s / 2, s), ("autodan", options.beam, 0, 1)):
        parts = {
            # An appended token is predicted by the beam's own pass
            "LM, candidates": step_part(LM, n * new, beam, p + s / 2, n * new),
            "LM, beam": step_part(LM, beam * moved, beam, p + s, beam * moved),
            # Forth and back
            "LM, gradient": step_part(LM, 3 * beam * moved, beam, p, 3 * beam * moved),
            "CLIP, candidates": step_part(CLIP, n * max(new, 2), beam, s, 0),
            "CLIP, gradient": step_part(CLIP, 3 * beam * max(moved, 2), beam, 0, 0),
        }
        rows += [cell(method, name, *of, speed, bandwidth) for name, of in parts.items()]
        own = [row for row in rows if row["method"] == method]
        sums = {key: sum(row[key] for row in own) for key in ("TFLOP", "GB", "ms")}
        rows.append({"method": method, "part": "all", **sums, "bound": "-"})
    show(f"{n} candidates of {s} tokens after {p}", rows, options.json)


def step_part(
    shape: Shape, tokens: float, rows: float, shared: float, predicted: float
) -> tuple[float, float]:
    """Operations and bytes of one pass: so many new tokens in all, of rows that go on from `shared`
    ones each.
    """
    if not tokens:
        return 0.0, 0.0
    operations = 2 * shape.weights * tokens + 2 * shape.width * shape.vocabulary * predicted
    table = shape.width * shape.vocabulary if predicted else 0
    moved = shape.bytes * (shape.weights + table + rows * 2 * shape.layers * shape.width * shared)
    return operations, moved


def cell(
    method: str, part: str, operations: float, moved: float, speed: float, bandwidth: float
) -> Row:
    """One line of the table."""
    by_speed, by_memory = operations / speed, moved / bandwidth
    bound = "-" if not operations else "operations" if by_speed > by_memory else "memory"
    return {
        "method": method,
        "part": part,
        "TFLOP": operations / 1e12,
        "GB": moved / 1e9,
        "ms": 1e3 * max(by_speed, by_memory),
        "bound": bound,
    }


def measured() -> Row:
    """One scoring pass of a small model, as estimated and as it is."""
    from speed import matrix_speed
    from transformers import GPT2Config, GPT2LMHeadModel

    import fuse

    layers, width, n, s = 6, 384, 256, 16
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        demo = fuse.CausalLM.load(str(Path(fuse.__file__).parent / "demo/lm"))
        demo.vocabulary.tokenizer.save_pretrained(folder)
        config = GPT2Config(
            n_layer=layers, n_embd=width, n_head=width // 64, vocab_size=len(demo.vocabulary)
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
        lm = fuse.CausalLM.load(folder)
    term = fuse.Term(lm, fuse.NLL())
    generator = torch.Generator().manual_seed(0)
    usable = lm.vocabulary.allowed.nonzero().flatten()
    (parent,) = usable[torch.randint(len(usable), (1, s), generator=generator)].tolist()
    rows = []
    for i in range(n):
        place, token = i % s, int(usable[torch.randint(len(usable), (1,), generator=generator)])
        rows.append((*parent[:place], token, *parent[place + 1 :]))
    seconds = []
    for _ in range(3):
        term.engine.clear()
        term.engine.prefill(term.with_surroundings([tuple(parent)]))
        term.engine.next_token_log_probs([term.with_surroundings([tuple(parent)])[0].ids])
        began = time.perf_counter()
        term.score(term.with_surroundings(rows))
        seconds.append(time.perf_counter() - began)
    shape = Shape(12 * layers * width**2, layers, width, len(lm.vocabulary), 4)
    operations, _ = step_part(shape, n * s / 2, n, s / 2, n * s / 2)
    estimate = operations / (1e9 * matrix_speed())
    return {
        "part": "LM 6x384, 256 candidates",
        "estimated_ms": 1e3 * estimate,
        "measured_ms": 1e3 * min(seconds),
        "ratio": estimate / min(seconds),
    }


if __name__ == "__main__":
    main()
