"""What a peer's run costs: candidates scored, seconds of whole steps, peak memory, operations."""

import importlib.util
import resource
import time
from pathlib import Path

import torch


def peak_megabytes() -> float:
    """The most memory this process has held since it began, or on a GPU since `forget_peak`; where
    Linux does not say, the parent's counts with it.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    peak = (
        [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if status.exists()
        else []
    )
    return (
        int(peak[0].split()[1] if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        / 1024
    )


def forget_peak() -> None:
    """Let the peak of a GPU's memory begin anew."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def clock() -> float:
    """Seconds, once all that a GPU was asked for is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Counts the rows of a network's forward passes.

    A step begins with a pass that a gradient is taken of.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.start()
        forward = network.forward

        def counted(*arguments, **options):
            given = next(
                options[name]
                for name in ("inputs_embeds", "input_ids")
                if options.get(name) is not None
            )
            if torch.is_grad_enabled() and given.requires_grad:
                self.begun.append(clock())
                self.scored.append(0)
            elif self.scored:
                self.scored[-1] += len(given)
            return forward(*arguments, **options)

        network.forward = counted

    def start(self) -> None:
        """Forget all steps so far, and the peak of the memory."""
        self.begun: list[float] = []
        self.scored: list[int] = []
        forget_peak()

    def report(self, warm_up: int) -> dict[str, float]:
        """All steps but the first ones, which warm up."""
        end = clock()
        seconds, scored = end - self.begun[warm_up], sum(self.scored[warm_up:])
        return {
            "per_second": scored / seconds,
            "step_seconds": seconds / len(self.begun[warm_up:]),
            "peak_mb": peak_megabytes(),
        }


def counter_of(network: torch.nn.Module):
    """Our own counter of operations on a peer's network; of our package nothing else is loaded."""
    path = Path(__file__).parents[2] / "fuse/nn/operations.py"
    spec = importlib.util.spec_from_file_location("operations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OperationCounter(network)
