"""The map that carries a secondary's gradient into the primary's vocabulary."""

from fuse.adapter.base import Adapter, Gradient, Progress, Target
from fuse.adapter.fuse import FuseAdapter
from fuse.adapter.lexical import LexicalAdapter
from fuse.adapter.pooled import PooledAdapter
from fuse.adapter.semantic import SemanticAdapter

ADAPTERS: dict[str, type[Adapter]] = {"fuse": FuseAdapter, "lexical": LexicalAdapter, "semantic": SemanticAdapter, "pooled": PooledAdapter}
"""Every adapter by its name in `conf/adapter`; the contract tests run over this list."""

__all__ = ["ADAPTERS", "Adapter", "FuseAdapter", "Gradient", "LexicalAdapter", "PooledAdapter", "Progress", "SemanticAdapter", "Target"]
