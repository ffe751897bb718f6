"""The notebooks in colab/: clean in git, without logic of their own, and they run.

A notebook is picked up by being there. To be quick here, it assigns what makes it long (training
images, steps) in a cell with the tag "parameters", and names smaller values in its metadata:
{"geomem": {"quick": {"num_train": 200}}}.
"""

import ast
import pathlib
import re

import pytest

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "colab").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _parse(source):
    """The statements of a cell, its lines of shell and magic left out."""
    return ast.parse(re.sub(r"^( *)[!%].*$", r"\1pass", source, flags=re.MULTILINE))


def _parameters(notebook):
    """The cell with the tag, and the names that it assigns."""
    (cell,) = (cell for cell in _code(notebook) if "parameters" in cell.metadata.get("tags", ()))
    targets = [node.targets[0] for node in _parse(cell.source).body if isinstance(node, ast.Assign)]
    return cell, {target.id for target in targets}


@each
def test_outputs_are_stripped(path):
    for cell in _code(_read(path)):
        assert cell.outputs == []
        assert cell.execution_count is None


@each
def test_there_is_no_logic_of_its_own(path):
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in _code(_read(path)):
        for node in ast.walk(_parse(cell.source)):
            assert not isinstance(node, logic), f"{path.name}: {cell.source}"


@each
def test_it_opens_in_colab_and_keeps_the_runtimes_jax(path):
    notebook = _read(path)
    badge = f"colab.research.google.com/github/geomem/geomem/blob/main/colab/{path.name}"
    assert badge in notebook.cells[0].source
    install = _code(notebook)[0].source
    assert 'grep -iE "^(jax|numpy)" > constraints.txt' in install
    assert "pip install --quiet --constraint constraints.txt" in install


@each
def test_the_quick_values_are_of_its_parameters(path):
    notebook = _read(path)
    assert notebook.metadata.geomem.quick.keys() <= _parameters(notebook)[1]


@pytest.mark.slow
@each
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as a runtime has
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = _read(path)
    cell, _ = _parameters(notebook)
    quick = notebook.metadata.geomem.quick.items()
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in quick)
    place = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    shown = [output.get("data", {}) for cell in _code(notebook) for output in cell.outputs]
    assert any("image/png" in data for data in shown)
