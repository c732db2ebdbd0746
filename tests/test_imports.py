"""Imports run upward nowhere, and nothing dangerous is used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

ORDER = """errors files hub options images types memo statistics registry text nn models losses
    activation adapters
    engine term objective guide retrieval search app inspect report"""
PARTS = ORDER.split()
"""Files and folders of the package: each imports only what stands before it."""
MODULES = sorted(path for path in (ROOT / "fuse").rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Return the modules of ours that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fuse":
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), f"{alias.name}.py")
                found.add(f"{node.module}.{alias.name}" if inner.exists() else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "fuse"}
    return found


def part_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_what_comes_before(path: Path) -> None:
    own = part_of(name_of(path))
    for module in imported_modules(path):
        assert module != "fuse", "import from the module itself"
        assert PARTS.index(part_of(module)) <= PARTS.index(own), f"imports {module}"


def test_no_file_imports_itself_through_others() -> None:
    """Within a folder, too, there is no circle."""
    graph = {name_of(path): imported_modules(path) for path in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module in done:
            return
        for other in graph.get(module, ()):
            visit(other, (*above, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_types_import_nothing_of_ours() -> None:
    assert not imported_modules(ROOT / "fuse/types.py")


def test_nothing_dangerous_is_used() -> None:
    forbidden = {"pickle", "eval", "exec", "print"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, path
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name for alias in node.names}, path
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
