"""The map that carries a secondary's gradient into the primary's vocabulary."""

from fuse.adapter.base import Adapter, Gradient, Target
from fuse.adapter.fuse import FuseAdapter
from fuse.adapter.lexical import LexicalAdapter

ADAPTERS: dict[str, type[Adapter]] = {"fuse": FuseAdapter, "lexical": LexicalAdapter}
"""Every adapter by its name in `conf/adapter`; the contract tests run over this list."""

__all__ = ["ADAPTERS", "Adapter", "FuseAdapter", "Gradient", "LexicalAdapter", "Target"]
