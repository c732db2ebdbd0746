"""What a peer's run costs: candidates scored, seconds of whole steps, peak memory."""

import resource
import time
from pathlib import Path

import torch


def peak_megabytes() -> float:
    """The most memory this process has held since it began; where Linux does not say, the parent's
    counts with it.
    """
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


class Stopwatch:
    """Counts the rows of a network's forward passes.

    A step begins with a pass that a gradient is taken of.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.begun: list[float] = []
        self.scored: list[int] = []
        forward = network.forward

        def counted(*arguments, **options):
            given = next(
                options[name]
                for name in ("inputs_embeds", "input_ids")
                if options.get(name) is not None
            )
            if torch.is_grad_enabled() and given.requires_grad:
                self.begun.append(time.perf_counter())
                self.scored.append(0)
            elif self.scored:
                self.scored[-1] += len(given)
            return forward(*arguments, **options)

        network.forward = counted

    def report(self) -> dict[str, float]:
        """All steps but the first, which warms up."""
        end = time.perf_counter()
        seconds, scored = end - self.begun[1], sum(self.scored[1:])
        return {
            "per_second": scored / seconds,
            "step_seconds": seconds / len(self.begun[1:]),
            "peak_mb": peak_megabytes(),
        }
