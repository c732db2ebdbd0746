"""FUSE: find text by search, scored by several models that do not share a tokenizer.

Names are imported on first use, so that `import fuse` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuse.adapter import FuseAdapter, LexicalAdapter, PooledAdapter, SemanticAdapter
    from fuse.constraints import Constraints
    from fuse.errors import FuseError
    from fuse.loop import Task, search, search_together
    from fuse.losses import NLL, ClassNLL, CosineDistance, CrossEntropy, KLDiv, LogProb
    from fuse.methods import GCG, PEZ, AutoDAN, Caption, Embedding, Random
    from fuse.models import CLIP, Captioner, CausalLM, Classifier, MaskedLM, OpenCLIP, SentenceEncoder, open_image
    from fuse.objective import Objective, Term
    from fuse.probe import Probe
    from fuse.strategies import Beam, UniformCost
    from fuse.types import Result, Step

_HOMES = {
    "fuse.errors": ("FuseError",),
    "fuse.constraints": ("Constraints",),
    "fuse.types": ("Result", "Step"),
    "fuse.models": ("CLIP", "Captioner", "CausalLM", "Classifier", "MaskedLM", "OpenCLIP", "SentenceEncoder", "open_image"),
    "fuse.losses": ("NLL", "ClassNLL", "CosineDistance", "CrossEntropy", "KLDiv", "LogProb"),
    "fuse.adapter": ("FuseAdapter", "LexicalAdapter", "PooledAdapter", "SemanticAdapter"),
    "fuse.objective": ("Objective", "Term"),
    "fuse.probe": ("Probe",),
    "fuse.methods": ("GCG", "PEZ", "AutoDAN", "Caption", "Embedding", "Random"),
    "fuse.strategies": ("Beam", "UniformCost"),
    "fuse.loop": ("Task", "search", "search_together"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fuse' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
