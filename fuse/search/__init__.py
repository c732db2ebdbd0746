"""The search: its state, its loop, methods that propose and strategies that select.

The package is callable, so that `fuse.search(objective, method)` works beside `fuse.search.loop`.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that does what its function `fuse.search.loop.search` does when it is called."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from fuse.search.loop import search

        return search(*args, **options)


sys.modules[__name__].__class__ = _Callable
