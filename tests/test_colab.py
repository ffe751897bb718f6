"""The notebooks in colab/ run, hold no logic of their own, and keep clean outputs in git.

Every notebook in the folder is tested. A cell tagged "parameters" assigns what makes the notebook
slow (training images, steps), and the metadata gives smaller values for the tests:
{"geomem": {"quick": {"num_train": 200}}}.
"""

import ast
import pathlib
import re

import pytest

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "colab").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
NOISE = {
    "a progress bar": r"\d%\||it/s\]|s/it\]|\r",
    "a warning": r"Warning:",
    "a path of a machine": r"(?<![\w.])/(home|root|tmp|work|Users|usr)/",
    "an error": r"Traceback",
}


def _read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _parse(source):
    """Return the statements of a cell without its lines of shell and magic."""
    return ast.parse(re.sub(r"^( *)[!%].*$", r"\1pass", source, flags=re.MULTILINE))


def _parameters(notebook):
    """Return the cell with the tag, and the names that it assigns."""
    (cell,) = (cell for cell in _code(notebook) if "parameters" in cell.metadata.get("tags", ()))
    targets = [node.targets[0] for node in _parse(cell.source).body if isinstance(node, ast.Assign)]
    return cell, {target.id for target in targets}


def _kinds(cell):
    """Return what a cell shows: "stdout", "image/png", ..."""
    streams = {output.name for output in cell.outputs if output.output_type == "stream"}
    return streams.union(*(output.get("data", {}) for output in cell.outputs))


def _text(cell):
    """Return all text that a cell shows."""
    data = [text for output in cell.outputs for text in output.get("data", {}).items()]
    texts = [text for kind, text in data if not kind.startswith("image/png")]
    return "\n".join(map(str, texts + [output.get("text", "") for output in cell.outputs]))


@each
def test_outputs_are_kept_and_clean(path):
    notebook = _read(path)
    for number, cell in enumerate(_code(notebook), start=1):
        assert cell.execution_count == number, f"not executed in order: {cell.source}"
        kinds = {output.output_type for output in cell.outputs}
        assert "error" not in kinds, cell.source
        assert "stderr" not in _kinds(cell), cell.source
        for noise, pattern in NOISE.items():
            assert not re.search(pattern, _text(cell)), f"{noise} in the output of: {cell.source}"
    assert sum("image/png" in _kinds(cell) for cell in _code(notebook)) >= 1
    assert path.stat().st_size < 1_500_000


@each
def test_has_no_logic_of_its_own(path):
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in _code(_read(path)):
        for node in ast.walk(_parse(cell.source)):
            assert not isinstance(node, logic), f"{path.name}: {cell.source}"


@each
def test_explains_before_it_shows(path):
    notebook = _read(path)
    assert notebook.cells[0].cell_type == "markdown"
    assert "arxiv.org/abs/2602.17846" in "".join(
        cell.source for cell in notebook.cells if cell.cell_type == "markdown"
    )
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code" and "image/png" in _kinds(cell):
            assert before.cell_type == "markdown", cell.source


@each
def test_opens_in_colab_and_keeps_its_jax(path):
    notebook = _read(path)
    badge = f"colab.research.google.com/github/geomem/geomem/blob/main/colab/{path.name}"
    assert badge in notebook.cells[0].source
    install = _code(notebook)[0].source
    assert 'grep -iE "^(jax|numpy)" > constraints.txt' in install
    assert "pip install --quiet --constraint constraints.txt" in install


@each
def test_quick_values_replace_its_parameters(path):
    notebook = _read(path)
    assert notebook.metadata.geomem.quick.keys() <= _parameters(notebook)[1]


@pytest.mark.slow
@each
def test_rerun_shows_the_committed_outputs(path, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as in Colab
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    committed, notebook = _read(path), _read(path)
    cell, _ = _parameters(notebook)
    quick = notebook.metadata.geomem.quick.items()
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in quick)
    for cell in _code(notebook):
        cell.outputs = []
    place = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    for kept, run in zip(_code(committed), _code(notebook), strict=True):
        missing = _kinds(run) - _kinds(kept) - {"stderr"}
        assert not missing, f"{missing} is not among the outputs kept of: {kept.source}"
    assert any("image/png" in _kinds(cell) for cell in _code(notebook))
