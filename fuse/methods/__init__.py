"""Search methods, one file each; each only proposes."""

from fuse.methods.autodan import AutoDAN
from fuse.methods.base import Method
from fuse.methods.caption import Caption
from fuse.methods.embedding import Embedding
from fuse.methods.gcg import GCG
from fuse.methods.pez import PEZ
from fuse.methods.random import Random

METHODS: dict[str, type[Method]] = {
    "autodan": AutoDAN,
    "gcg": GCG,
    "random": Random,
    "pez": PEZ,
    "caption": Caption,
    "embedding": Embedding,
}
"""Every method by its name in `conf/method`; the contract tests run over this list."""

__all__ = ["GCG", "METHODS", "PEZ", "AutoDAN", "Caption", "Embedding", "Method", "Random"]
