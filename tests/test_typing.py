"""A type checker finds no error in the package, nor in a script that uses it as people do."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_pyright_finds_no_error_in_the_public_api_and_its_use():
    pytest.importorskip("pyright", reason="pip install -e '.[lint]'")
    command = [sys.executable, "-m", "pyright", "--project", ROOT, "--pythonpath", sys.executable]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
