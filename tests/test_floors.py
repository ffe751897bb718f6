"""Imports go down or sideways, never up or in a circle; heavy packages load late."""

import ast
import collections
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "geomem"
FLOORS = {
    "paths": 0,
    "data": 1,
    "points": 2,
    "geometry": 3,
    "diffusion": 4,
    "metrics": 5,
    "plots": 6,
    "experiments": 7,
    "__main__": 7,
}
FORBIDDEN = {("diffusion", "geometry")}  # schedules take two numbers, not a Zone
HEAVY = ("tensorflow_datasets", "sklearn", "matplotlib", "orbax", "flax", "PIL")
MODULES = sorted(ROOT.rglob("*.py"))
LONGEST = 350  # lines
# A module and its command share the name that users know.
SAME_NAME = {"danger_zone", "duplicates"}


def _name(path):
    """Return the module name: geomem/points/exact.py -> geomem.points.exact."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {_name(path): path for path in MODULES}


def _imports(path):
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _floor(name):
    return FLOORS.get(name.split(".")[1], 0) if "." in name else 0


def _area(name):
    return name.split(".")[1] if "." in name else name


@pytest.mark.parametrize("name", NAMES)
def test_imports_never_go_up(name):
    for imported in _imports(NAMES[name]):
        if imported.startswith("geomem.") and _area(imported) in FLOORS:
            assert _floor(imported) <= _floor(name), f"{name} imports {imported}"
            assert (_area(name), _area(imported)) not in FORBIDDEN, f"{name} imports {imported}"


def test_no_circular_imports():
    graph = {
        name: {other for other in _imports(path) if other in NAMES and other != name}
        # A package's own modules may name it; the package itself loads them lazily.
        - {name.rpartition(".")[0]}
        for name, path in NAMES.items()
    }
    done, path = set(), []

    def visit(name):
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_short_and_documented(name):
    path = NAMES[name]
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= LONGEST
    # What the commands share is not public.
    internal = _area(name) == "experiments" and name.count(".") > 2
    if path.name not in ("__init__.py", "__main__.py") and not internal:
        assert any(
            isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
            for node in tree.body
            if isinstance(node, ast.Assign)
        )


def test_module_names_are_unique():
    counts = collections.Counter(
        name.rpartition(".")[2] for name, path in NAMES.items() if path.name != "__main__.py"
    )
    assert {name for name, count in counts.items() if count > 1} == SAME_NAME


def test_geometry_imports_no_heavy_packages():
    modules = [
        name
        for name, path in NAMES.items()
        if _area(name) in ("data", "points", "geometry") and path.stem != "__init__"
    ]
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
