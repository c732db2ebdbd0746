"""FUSE: find text by search, scored by several models that do not share a tokenizer.

Names are imported on first use, so that `import fuse` is quick.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fuse import registry

if TYPE_CHECKING:
    from fuse.engine import Engine
    from fuse.errors import FuseError
    from fuse.guide import Guide
    from fuse.objective import Objective
    from fuse.retrieval import retrieve
    from fuse.search.loop import SideBySide, search, search_together
    from fuse.search.search import Search
    from fuse.term import Term
    from fuse.types import Candidates, Evaluation, Result, Step

_MODULE_OF = {
    "FuseError": "fuse.errors",
    "Constraints": "fuse.text.constraints",
    "Candidates": "fuse.types",
    "Entry": "fuse.types",
    "Evaluation": "fuse.types",
    "FrontPrompt": "fuse.types",
    "Result": "fuse.types",
    "Step": "fuse.types",
    "Captioner": "fuse.models",
    "ReadingOptions": "fuse.images",
    "open_image": "fuse.images",
    "replica": "fuse.models.replica",
    "DenoisingError": "fuse.losses",
    "Engine": "fuse.engine",
    "Objective": "fuse.objective",
    "Term": "fuse.term",
    "Guide": "fuse.guide",
    "retrieve": "fuse.retrieval",
    "Probe": "fuse.search.screening",
    "ContractError": "fuse.search.contracts",
    "check_search": "fuse.search.contracts",
    "Search": "fuse.search.search",
    "SearchState": "fuse.search.state",
    "SideBySide": "fuse.search.loop",
    "search": "fuse.search.loop",
    "search_together": "fuse.search.loop",
    # What a part of one's own is a subclass of
    "Adapter": "fuse.adapters",
    "EmbeddingModel": "fuse.models",
    "Loss": "fuse.losses",
    "Method": "fuse.search.methods.base",
    "Model": "fuse.models",
    "Strategy": "fuse.search.strategies.base",
    "first_valid": "fuse.search.methods.base",
    "random_prompt": "fuse.search.methods.base",
    "VectorLoss": "fuse.losses",
    "VectorModel": "fuse.models",
}
for _registry in (
    registry.METHODS,
    registry.STRATEGIES,
    registry.ADAPTERS,
    registry.LM_LOSSES,
    registry.VECTOR_LOSSES,
    registry.MODELS,
):
    _MODULE_OF |= _registry.modules()
_FORMER = {"Task": "Search"}
"""Names that have changed."""

__version__ = "0.1.0"
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        warnings.warn(f"fuse.{name} is now fuse.{_FORMER[name]}", DeprecationWarning, stacklevel=2)
        name = _FORMER[name]
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fuse' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
