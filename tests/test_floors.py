"""An import goes down or sideways, never up; and what is heavy is imported where it is used."""

import ast
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
    "__main__": 8,
}
FORBIDDEN = {("diffusion", "geometry")}  # schedules take two numbers, not a Zone
HEAVY = ("tensorflow_datasets", "sklearn", "matplotlib", "orbax", "flax", "tyro", "PIL")
MODULES = sorted(ROOT.rglob("*.py"))


def _imports(path):
    """The geomem modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _area(parts):
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_or_sideways(path):
    here = _area(path.relative_to(ROOT).parts)
    for name in _imports(path):
        if name.startswith("geomem.") and (there := _area(name.split(".")[1:])) in FLOORS:
            assert FLOORS[there] <= FLOORS.get(here, 0), f"{path.name} imports {name}"
            assert (here, there) not in FORBIDDEN, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_floor_a_docstring_and_a_public_list(path):
    tree = ast.parse(path.read_text())
    assert _area(path.relative_to(ROOT).parts) in {*FLOORS, "__init__"}
    assert ast.get_docstring(tree)
    if path.name != "__init__.py":
        assert any(
            isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
            for node in tree.body
            if isinstance(node, ast.Assign)
        )


def test_importing_the_geometry_loads_nothing_heavy():
    modules = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for path in MODULES
        if _area(path.relative_to(ROOT).parts) in ("data", "points", "geometry")
        and path.stem != "__init__"
    ]
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
