"""Importing runs upward nowhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# From the lowest layer to the highest; a module may import only from layers below its own, or its package's own base.
LAYERS = [
    ["errors", "batches", "products"],
    ["models.output", "models.layers"],
    ["types", "tproduct", "values"],
    ["vocabulary"],
    ["constraints"],
    ["models.base", "models.attention"],
    [f"models.{kind}" for kind in ("captioner", "causal_lm", "classifier", "clip", "masked_lm", "open_clip", "sentence")],
    ["models"],
    ["losses"],
    ["adapter.fidelity", "adapter.corpus"],
    ["adapter.base"],
    ["adapter.fuse", "adapter.lexical", "adapter.pooled", "adapter.cache"],
    ["adapter.semantic"],
    ["adapter"],
    ["roots"],
    ["scoring"],
    ["objective"],
    ["guide", "probe"],
    ["methods.base", "strategies"],
    ["methods.continuous", "methods.edits"],
    [f"methods.{name}" for name in ("autodan", "caption", "embedding", "gcg", "pez", "random")],
    ["methods"],
    ["loop", "terms"],
    ["build"],
    ["console", "overrides"],
]
LEVEL = {f"fuse.{name}": level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in (ROOT / "fuse").rglob("*.py") if path != ROOT / "fuse" / "__init__.py" and "demo" not in path.parts)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_what_comes_before(path: Path) -> None:
    name = name_of(path)
    assert name in LEVEL, "give the new module its place in LAYERS"
    tree = ast.parse(path.read_text())
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fuse")]
    if "from fuse import scoring" in path.read_text():
        imported = [module for module in imported if module != "fuse"] + ["fuse.scoring"]
    for module in imported:
        assert LEVEL[module] < LEVEL[name], f"{name} imports {module}"


def test_nothing_dangerous_is_used() -> None:
    forbidden = {"pickle", "eval", "exec", "print"}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not forbidden & (names | modules), path
        assert "trust_remote_code" not in path.read_text()
