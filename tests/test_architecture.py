"""The layers of docs/architecture.md: imports go downwards and in no circle; files and functions stay short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "phrase_loc"

LAYERS = {
    0: {
        "errors",
        "boxes",
        "files",
        "structures",
        "config",
        "distributed",
        "images",
        "masks",
        "image_inputs",
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
        "runtime",
        "exported",
        "training",
        "evaluation",
        "streaming",
        "web",
        "display",
        "gallery",
        "labelling",
        "label_formats",
    },
    4: {"__main__", "cli"},
}
LAYER = {name: floor for floor, names in LAYERS.items() for name in names}
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
    assert me in LAYER, f"{me} stands in no layer: add it to LAYERS and to docs/architecture.md"
    for name in imported(path) - {me}:
        assert LAYER[name] <= LAYER[me], (
            f"{path.name} (layer {LAYER[me]}) imports {name} (layer {LAYER[name]})"
        )


def test_layer_two_does_not_know_its_neighbours():
    for path in FILES:
        if LAYER[own(path)] == 2 and "The former name" not in path.read_text(encoding="utf-8"):
            assert not (imported(path) - {own(path)}) & LAYERS[2], path


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(node: ast.AST, modules: set[str]) -> set[str]:
    """What a file imports at any time, inside functions too, but not for the type checker alone."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.module:
            names = {f"{child.module}.{alias.name}" for alias in child.names}
            found |= {name if name in modules else child.module for name in names}
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            found |= imported_modules(child, modules)
    return found & modules


def circle(imports: dict[str, set[str]]) -> list[str] | None:
    """A circle of modules, first = last; None where there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str] | None:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        found = (visit(other, [*way, name]) for other in sorted(imports[name]))
        result = next((c for c in found if c), None)
        done.add(name)
        return result

    return next((c for c in (visit(name, []) for name in sorted(imports)) if c), None)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_no_modules_import_each_other_in_a_circle():
    paths = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    imports = {name: imported_modules(tree, set(paths)) - {name} for name, tree in trees.items()}
    assert sum(map(len, imports.values())) > len(paths)
    assert circle(imports) is None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [n.name for n in functions if n.end_lineno - n.lineno >= 60] == []
