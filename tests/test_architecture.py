"""Imports go only downwards between the floors of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "phrase_loc"

FLOORS = {
    0: {
        "errors",
        "boxes",
        "files",
        "structures",
        "config",
        "distributed",
        "images",
        "image_inputs",
        "photographs",
        "profiling",
        "drawing",
        "skipped",
        "tables",
    },
    1: {"attention", "maps", "ranking", "text"},
    2: {"models", "proposals", "datasets", "pairs"},
    3: {
        "inference",
        "localizer",
        "export",
        "exported",
        "runtime",
        "training",
        "evaluation",
        "answer_file",
        "streaming",
        "web",
        "display",
    },
    4: {"__main__", "cli"},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imported(path: Path) -> set[str]:
    """First component below phrase_loc of everything a file imports from the package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("phrase_loc"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("phrase_loc.")}
    return names - {"__version__"}


def own(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path):
    me = own(path)
    assert me in FLOOR, f"{me} stands on no floor: add it to FLOORS and to docs/architecture.md"
    for name in imported(path) - {me}:
        assert FLOOR[name] <= FLOOR[me], (
            f"{path.name} (floor {FLOOR[me]}) imports {name} (floor {FLOOR[name]})"
        )


def test_floor_two_does_not_know_its_neighbours():
    for path in FILES:
        if FLOOR[own(path)] == 2 and "The former name" not in path.read_text(encoding="utf-8"):
            assert not (imported(path) - {own(path)}) & FLOORS[2], path
