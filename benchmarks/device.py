"""Does everything give on a device what it gives on the CPU?

Scores (plain, padded, packed), estimates, gradients and predictions of the demo models are compared
with those of the plain pass on the CPU; each method runs on the device, which has to obey the laws
of searches (`fuse.check_search`: the same seed gives the same trace to the bit, and so does a
resume) and to find a text that has the same loss on the CPU; then the command line itself runs,
with each dtype, and is resumed. On a GPU memory is let run out, too. With --device cpu the CPU is
compared with itself.

    python benchmarks/device.py --device cuda
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from runs import ROOT, Row, arguments, show

import fuse
from fuse.engine import Engine
from fuse.models import Captioner
from fuse.registry import ADAPTERS, METHODS

DEMO = ROOT / "fuse/demo"
KINDS = {
    "lm": fuse.CausalLM,
    "clip": fuse.CLIP,
    "mood": fuse.Classifier,
    "open_clip": fuse.OpenCLIP,
}
WAYS: dict[str, dict[str, bool]] = {
    "plain": {"prefix_cache": False},
    "padded": {"packing": False},
    "packed": {},
}
BEAM = ["See how a red house stands in the deep snow of winter", "A blue cup lies on the"]
TEXTS = [
    "See how a red house stands in the deep snow of spring",
    "See how a red house stands in the",
    "See how a red house stands in deep deep snow of winter",
    "A blue cup lies on the table",
    "A blue cup lies near the",
    "Nothing that was ever read",
]
WORDS = ["a", "red", "house", "boat", "by", "the", "sea", "in", "snow", "at", "night", "turquoise"]
LIMITS = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.03}
"""How far a loss may be from that of the CPU in float32, as a share of 1 or of the loss."""
MAX_GRADIENT_ERROR = 1e-3
"""As a share of the gradient's norm."""
SMALL: dict[str, Any] = {"search_width": 12, "prompt_length": 4, "steps": 4}


def main() -> None:
    checks = {each.__name__: each for each in CHECKS}
    options = arguments(
        __doc__,
        device={"default": "cpu", "choices": ["cpu", "cuda"]},
        checks={"default": ",".join(checks), "help": "which to run (default: all)"},
    )
    rows: list[Row] = []
    for check in (checks[name] for name in options.checks.split(",")):
        began = time.perf_counter()
        try:
            rows += check(options.device)
        except Exception:
            traceback.print_exc()
            rows.append(row(check.__name__, "ends without an error", torch.inf, 0))
        print(f"{check.__name__}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    show(f"{options.device} beside the CPU", rows, options.json)
    failed = [f"{one['what']}: {one['check']}" for one in rows if not one["right"]]
    if failed:
        raise SystemExit("\n".join([f"{len(failed)} of {len(rows)} checks failed:", *failed]))


def row(what: str, check: str, error: float, limit: float) -> Row:
    """One line of the table; an error that is no number is none that is right."""
    return {"what": what, "check": check, "error": error, "limit": limit, "right": error <= limit}


def losses(device: str) -> Iterator[Row]:
    """Scores, estimates, gradients and predictions of each model and loss."""
    for name, kind in KINDS.items():
        there = kind.load(str(DEMO / name), device=device)
        here = kind.load(str(DEMO / name))
        for ability in ("supports_prefix_cache", "supports_packing"):
            differs = getattr(there, ability) != getattr(here, ability)
            yield row(name, f"{ability}={getattr(there, ability)}", float(differs), 0)
        for loss in losses_of(here):
            yield from engine_rows(name, loss, there, here)
        for dtype in ("bfloat16", "float16"):
            coarse = kind.load(str(DEMO / name), device=device, dtype=getattr(torch, dtype))
            for loss in losses_of(here):
                yield from coarse_rows(name, loss, coarse, here, dtype)


def losses_of(model: Any) -> dict[str, Any]:
    """Every loss that goes with a model."""
    if isinstance(model, fuse.CausalLM):
        return {
            "nll": fuse.NLL(),
            "kl_div": fuse.KLDiv(),
            "label": fuse.CrossEntropy("by the sea.", 0.5),
        }
    if isinstance(model, fuse.Classifier):
        return {"class": fuse.ClassNLL(1)}
    (target,) = model.embed_images([fuse.open_image(ROOT / "images/house.png")])
    return {"picture": fuse.CosineDistance(target)}


def engine_rows(name: str, loss_name: str, there: Any, here: Any) -> Iterator[Row]:
    """What an engine on the device says, beside the plain pass on the CPU."""
    # A target is a vector on its model's device
    what, own, loss = f"{name} {loss_name}", losses_of(there)[loss_name], losses_of(here)[loss_name]
    term = fuse.Term(here, loss, prefix="It shows:", suffix="and so on")
    rows, beam = term.encode(TEXTS), term.encode(BEAM)
    positions = [[row.free[1] - 2, row.free[1] - 1] for row in rows]

    def engine(model: Any, loss: Any, way: str) -> Engine:
        made = Engine(model, loss, term.surroundings, **WAYS[way])
        made.runner.launch_tokens = 0  # reuse wherever it saves a token
        made.prefill(beam)
        return made

    plain = engine(here, loss, "plain")
    expected, gradient = plain.score(rows), plain.gradient(rows, positions).embedding
    for way in WAYS:
        scores = engine(there, own, way).score(rows)
        yield row(what, f"{way}: scores", gap(scores, expected), LIMITS["float32"])
        found, again = (
            engine(there, own, way).gradient(rows, positions).embedding.cpu() for _ in range(2)
        )
        error = float((found - gradient).norm() / gradient.norm())
        yield row(what, f"{way}: gradients", error, MAX_GRADIENT_ERROR)
        differs = float((again - found).abs().max())
        yield row(what, f"{way}: the same gradient again, to the bit", differs, 0)
    guesses = [engine(*pair, "packed").estimate(rows) for pair in ((there, own), (here, loss))]
    yield row(what, "estimates", gap(*guesses), LIMITS["float32"])
    if isinstance(here, fuse.CausalLM):
        ids = [row.ids for row in beam]
        pairs = (there, own), (here, loss)
        found, expected = (
            engine(*pair, "packed").next_token_log_probs(ids).cpu() for pair in pairs
        )
        yield row(what, "next tokens", gap(found, expected), LIMITS["float32"])


def coarse_rows(name: str, loss_name: str, coarse: Any, here: Any, dtype: str) -> Iterator[Row]:
    """Scores in a coarse type on the device, beside float32 on the CPU."""
    loss = losses_of(here)[loss_name]
    term = fuse.Term(here, loss, prefix="It shows:", suffix="and so on")
    rows = term.encode(TEXTS)
    expected = Engine(here, loss, term.surroundings, prefix_cache=False).score(rows)
    engine = Engine(coarse, losses_of(coarse)[loss_name], term.surroundings)
    engine.runner.launch_tokens = 0
    engine.prefill(term.encode(BEAM))
    way = "packed" if engine.runner.packing else "padded" if engine.runner.prefix_cache else "plain"
    error = gap(engine.score(rows), expected)
    yield row(f"{name} {loss_name}", f"{dtype}, {way}: scores", error, LIMITS[dtype])


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far values are apart at most, as a share of 1 or of the value."""
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return torch.inf
    found, expected = found[finite].double(), expected[finite].double()
    return float(((found - expected).abs() / expected.abs().clamp(min=1)).max())


def objective_on(device: str, adapter: str = "semantic") -> fuse.Objective:
    """The demo language model, and the CLIP that looks at the house."""
    lm = fuse.CausalLM.load(str(DEMO / "lm"), device=device)
    clip = fuse.CLIP.load(str(DEMO / "clip"), device=device)
    loss = losses_of(clip)["picture"]
    fitted = ADAPTERS[adapter].fit(lm.vocabulary, clip, WORDS)
    secondary = fuse.Term(clip, loss, weight=10, prefix="a picture:", adapter=fitted)
    return fuse.Objective(fuse.Term(lm, fuse.NLL(), prefix="Look:"), {"clip": secondary})


def adapters(device: str) -> Iterator[Row]:
    """The gradient that each adapter carries to the primary's tokens."""
    for name in ADAPTERS:
        found = []
        for where in (device, "cpu"):
            objective = objective_on(where, name)
            begun = objective.spell("A red house stands in the snow")
            objective.prefill([begun])
            gradient = objective.token_gradient([begun], [3])
            found.append(gradient.float().cpu())
        finite = found[1].isfinite()
        there, here = (one[finite] for one in found)
        error = float((there - here).norm() / here.norm())
        yield row(f"adapter {name}", "token gradient", error, 5 * MAX_GRADIENT_ERROR)


def captions(device: str) -> Iterator[Row]:
    """Vectors of a picture, and what the captioner says of it."""
    picture = fuse.open_image(ROOT / "images/house.png")
    for name in ("clip", "open_clip"):
        found = [
            KINDS[name].load(str(DEMO / name), device=where).embed_images([picture]).cpu()
            for where in (device, "cpu")
        ]
        yield row(name, "vector of a picture", gap(*found), LIMITS["float32"])
    texts = [
        Captioner.load(str(DEMO / "captioner"), device=where).caption(picture)
        for where in (device, "cpu")
    ]
    yield row("captioner", f"says the same: {texts[0]}", float(texts[0] != texts[1]), 0)


def searches(device: str) -> Iterator[Row]:
    """Every method obeys the laws of searches; the CPU agrees on the loss of what it finds."""
    there, here = objective_on(device), objective_on("cpu")
    for name, kind in METHODS.items():
        fields = kind.__dataclass_fields__
        options: dict[str, Any] = {key: value for key, value in SMALL.items() if key in fields}
        if "texts" in fields:
            options["texts"] = ("A red house in the snow.",)
        for strategy in (fuse.Beam(1), fuse.Beam(3)):
            if kind.greedy_only and strategy != fuse.Beam(1):
                continue
            what = f"{name}, beam of {strategy.beam_width}"
            try:
                result = fuse.check_search(fuse.Search(there, kind(**options), strategy))
            except AssertionError as error:
                yield row(what, str(error), torch.inf, 0)
                continue
            expected = here.evaluate_text(result.prompt)[0]
            error = gap(torch.tensor([result.loss]), torch.tensor([expected]))
            yield row(what, "laws, and the loss on the CPU", error, LIMITS["float32"])


def memory(device: str) -> Iterator[Row]:
    """Where a GPU's memory runs out, batches are halved, and the losses stay the same."""
    if device != "cuda":
        return
    lm = fuse.CausalLM.load(str(DEMO / "lm"), device=device)
    term = fuse.Term(lm, fuse.KLDiv(), prefix="Look:")
    begun = term.encode(["A red house stands alone in the deep snow of winter"])[0].free_ids
    rows = term.with_surroundings([(token, *begun) for token in range(300, 1300)])
    expected = Engine(lm, term.loss, term.surroundings, 16).score(rows)
    torch.cuda.empty_cache()
    free = torch.cuda.memory_allocated() + 64 * 2**20
    torch.cuda.set_per_process_memory_fraction(
        free / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        engine = Engine(lm, term.loss, term.surroundings, 4096, prefix_cache=False)
        found = engine.score(rows)
        halved = engine.runner.batch_size
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    yield row("memory", f"batches are halved: to {halved}", float(halved == 4096), 0)
    yield row("memory", "scores", gap(found, expected), LIMITS["float32"])


def command_line(device: str) -> Iterator[Row]:
    """Runs of find_prompt.py, several at once; and a resumed one, which has an equal trace."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "whole": ["steps=6"],
            "short": ["steps=3"],
            "gcg": ["method=gcg", "steps=3", "scoring=probe", "secondary=[demo_clip,demo_mood]"],
            "pez": ["method=pez", "primary=demo_clip", "steps=6"],
            "mixed_bfloat16": ["dtype=mixed_bfloat16", "steps=6"],
            "bfloat16": ["dtype=bfloat16", "steps=6"],
            "mixed_float16": ["dtype=mixed_float16", "steps=6", "adapter=lexical"],
        }
        root = Path(folder)
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4)) as pool:
            done = [pool.submit(find, root / name, device, *runs[name]) for name in runs]
        yield from (one.result() for one in done)
        yield find(root / "short", device, "steps=6", f"resume={root / 'short'}")
        first, second = (trace(root / name) for name in ("whole", "short"))
        yield row("resume", f"an equal trace of {len(first)} steps", float(first != second), 0)
        whole, mixed = (result(root / name) for name in ("whole", "mixed_bfloat16"))
        error = gap(torch.tensor([mixed["loss"]]), torch.tensor([whole["loss"]]))
        yield row("mixed_bfloat16", "the loss that float32 finds", error, 0.2)


def find(folder: Path, device: str, *given: str) -> Row:
    """Run find_prompt.py."""
    own = [f"device={device}", f"hydra.run.dir={folder}", "checkpoint_every=1"]
    command = [sys.executable, str(ROOT / "find_prompt.py"), *own, *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        print(f"{folder.name}:\n{done.stdout}\n{done.stderr[-3000:]}", file=sys.stderr)
    said = done.stdout.strip().splitlines()[-1:] or [""]
    return row(f"find_prompt {' '.join(given[:2])}", said[0], float(done.returncode), 0)


def trace(folder: Path) -> list[dict[str, Any]]:
    """The trace of a run, without its clock."""
    lines = (folder / "trace.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def result(folder: Path) -> dict[str, Any]:
    """The result of a run."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


CHECKS = (losses, adapters, captions, searches, memory, command_line)


if __name__ == "__main__":
    main()
