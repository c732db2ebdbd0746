"""The map that carries a secondary's gradient into the primary's vocabulary."""

from fuse.adapters.base import Adapter, Progress
from fuse.adapters.lexical import LexicalAdapter
from fuse.adapters.pooled import PooledAdapter
from fuse.adapters.semantic import SemanticAdapter
from fuse.adapters.target import Gradient, Target
from fuse.adapters.tproduct_map import FuseAdapter
from fuse.registry import ADAPTERS

__all__ = [
    "ADAPTERS",
    "Adapter",
    "FuseAdapter",
    "Gradient",
    "LexicalAdapter",
    "PooledAdapter",
    "Progress",
    "SemanticAdapter",
    "Target",
]
