"""Several threads that read the batches of one search, each with a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from fuse.models import Model

B = TypeVar("B")
T = TypeVar("T")


class Workers:
    """A model and its replicas, each for one thread: torch works on in one while another waits for
    Python.

    Args:
        models: the model first.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = list(models)
        self._pool = ThreadPoolExecutor(len(self.models))

    def read(
        self, batches: Sequence[B], function: Callable[[int, B], T], *, together: bool = True
    ) -> Iterator[T]:
        """Yield what a function returns of each batch, in their order.

        The batches are dealt out in turn: what a model reads depends on no clock.

        Args:
            function: gets the number of a model, and a batch.
            together: False to let the first model read all of them, one when the next result is
                asked for.
        """
        count = min(len(self.models), len(batches)) if together else 1
        if count < 2:
            return (function(0, batch) for batch in batches)
        num_threads = torch.get_num_threads()

        @torch.no_grad()
        def work(number: int) -> list[T]:
            torch.set_num_threads(num_threads)  # each thread has a number of its own
            return [function(number, batch) for batch in batches[number::count]]

        jobs = [self._pool.submit(work, number) for number in range(count)]
        wait(jobs)
        found = [job.result() for job in jobs]
        for one in self.models[1:]:
            self.models[0].operations.take(one.operations)
        return (found[i % count][i // count] for i in range(len(batches)))
