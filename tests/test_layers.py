"""Imports point one way: each package imports only from itself and from what stands below it."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "atnet"
LAYERS = (
    "__main__", "cli", "sklearn", "viz", "serve", "export", "study", "bench", "training", "inference", "exported",
    "run", "eval", "timm", "models", "weights", "data", "device", "config", "files", "progress", "system", "limits",
    "extras", "errors", "moved", "version",
)  # fmt: skip


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it; for types alone does not count."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    types_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and id(node) not in types_only:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import) and id(node) not in types_only:
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("atnet.")}


FILES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}


def test_every_package_has_its_place():
    assert {name.partition(".")[0] for name in FILES if name != "__init__"} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_what_stands_below_it(layer):
    below = {layer, *LAYERS[LAYERS.index(layer) + 1 :]}
    of_layer = {name: path for name, path in FILES.items() if name.partition(".")[0] == layer}
    upwards = {
        name: sorted(m for m in imports(path) if m.split(".")[1] not in below) for name, path in of_layer.items()
    }
    assert {name: found for name, found in upwards.items() if found} == {}


def test_no_module_waits_for_itself():
    known = {f"atnet.{name.removesuffix('.__init__')}" for name in FILES}
    graph = {}
    for name, path in FILES.items():
        parts = {n for m in imports(path) for n in (m, m.rpartition(".")[0]) if n in known}
        own = f"atnet.{name.removesuffix('.__init__')}"
        graph[own] = {n for n in parts if n != own and not own.startswith(f"{n}.")}
    while free := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in free:
            del graph[name]
    assert sorted(graph) == []
