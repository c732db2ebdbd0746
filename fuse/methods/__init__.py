"""Search methods, one file each; each only proposes."""

from fuse.methods.autodan import AutoDAN
from fuse.methods.base import Method
from fuse.methods.gcg import GCG

METHODS: dict[str, type[Method]] = {"autodan": AutoDAN, "gcg": GCG}
"""Every method by its name in `conf/method`; the contract tests run over this list."""

__all__ = ["METHODS", "AutoDAN", "GCG", "Method"]
