"""The front door: what `import geomem` gives, and the command `geomem`."""

import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import geomem
from geomem import __main__ as front_door

ROOT = pathlib.Path(__file__).parents[1]
NAMES = [name for commands in front_door.COMMANDS.values() for name in commands]
MODULES = [f"geomem.experiments.{name.replace('-', '_')}" for name in NAMES]
FACES = ["geomem", "geomem.diffusion", "geomem.metrics", "geomem.plots", "geomem.experiments"]


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def geomem_command(monkeypatch, capsys, *words):
    """Run the command in this process; return (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["geomem", *words])
    code = 0
    try:
        front_door.main()
    except SystemExit as end:
        code = end.code
    output = capsys.readouterr()
    return code, output.out, output.err


def test_stdout_may_be_full_or_closed(tmp_path):
    full, closed = (
        subprocess.run(
            f'"{sys.executable}" -m geomem --help {redirection}',
            shell=True,
            capture_output=True,
            text=True,
        )
        for redirection in (">/dev/full", ">&-")
    )
    assert (full.returncode, full.stderr) == (2, "error: stdout: No space left on device.\n")
    assert (closed.returncode, closed.stderr) == (0, "")


def test_import_loads_no_heavy_library():
    code = "import sys, geomem; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    assert python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_exists(face):
    package = importlib.import_module(face)
    assert package.__all__
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_public_functions_are_those_of_their_modules():
    assert geomem.load is geomem.data.load
    assert geomem.denoise is geomem.geometry.posterior.denoise
    assert geomem.find_danger_zone is geomem.geometry.danger_zone.find
    assert geomem.estimate_curves is geomem.geometry.curves.estimate_curves


def test_package_has_one_version_and_types():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == geomem.__version__
    assert project["scripts"] == {"geomem": "geomem.__main__:main"}
    assert (ROOT / "geomem" / "py.typed").exists()


def test_help_lists_every_command_and_is_fast():
    code = (
        "import sys; sys.argv = ['geomem', '--help']\n"
        "from geomem.__main__ import main; main()\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in lines] == NAMES
    assert NAMES[:3] == ["audit", "danger-zone", "train"]
    assert all(len(line.split()) > 3 and len(line) <= 100 for line in lines)


def test_every_command_module_is_listed():
    folder = ROOT / "geomem" / "experiments"
    starts = {
        f"geomem.experiments.{path.parent.name if path.stem == '__main__' else path.stem}"
        for path in [*folder.glob("*.py"), *folder.glob("*/__main__.py")]
        if "command_line.main(" in path.read_text()
    }
    assert starts == set(MODULES)


def test_finds_modules_in_the_current_folder(monkeypatch, capsys, tmp_path):
    (tmp_path / "network_of_mine.py").write_text("def denoiser(x, sigma):\n    return 0 * x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as for a script
    words = "sample --denoiser network_of_mine:denoiser --image-shape 8 8 1 --count 1 --steps 2"
    assert geomem_command(monkeypatch, capsys, *words.split())[0] == 0
    assert (tmp_path / "samples.npz").exists()


def test_version(monkeypatch, capsys):
    assert geomem_command(monkeypatch, capsys, "--version") == (0, "geomem 0.2.0\n", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["audti"], "error: unknown command 'audti'; did you mean audit?\n"),
        (["frobnicate"], "error: unknown command 'frobnicate'.\n"),
        (
            ["--print-completion", "fish"],
            "error: --print-completion must be bash or zsh, got 'fish'.\n",
        ),
        (["audit"], "error: DATASET is required.\n"),
        (["danger_zone", "--xyz", "3"], "error: unknown flag '--xyz'.\n"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_rejects_bad_commands_in_one_line(monkeypatch, capsys, words, line):
    assert geomem_command(monkeypatch, capsys, *words) == (2, "", line)


@pytest.mark.parametrize(
    ("words", "prog"),
    [
        (["-m", "geomem", "danger-zone"], "geomem danger-zone"),
        (["-m", "geomem", "train", "digits"], "geomem train digits"),
        (["-m", "geomem.experiments.danger_zone"], "python -m geomem.experiments.danger_zone"),
        (["-m", "geomem.experiments.audit"], "python -m geomem.experiments.audit"),
    ],
)
def test_help_shows_what_the_user_typed(words, prog):
    process = python(*words, "--help")
    assert process.returncode == 0, process.stderr
    usage = process.stdout.splitlines()[0]
    assert re.fullmatch(re.escape(f"usage: {prog}") + r"( \[DATASET\])? \[flags\]", usage)


def test_bash_completes_commands_and_flags(monkeypatch, capsys):
    code, script, _ = geomem_command(monkeypatch, capsys, "--print-completion", "bash")
    assert code == 0

    def complete(*words):
        array = " ".join(f"'{word}'" for word in words)
        lines = [script, f"COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _geomem"]
        lines.append('printf "%s\\n" "${COMPREPLY[@]}"')
        process = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
        assert process.stderr == ""
        return process.stdout.split()

    starts_with_d = ["danger-zone", "duplicates", "denoising-error", "denoiser-swap"]
    assert complete("geomem", "d") == starts_with_d
    assert complete("geomem", "danger-zone", "--num-s") == ["--num-sigmas"]
    assert "digits" in complete("geomem", "train", "")
    zsh = geomem_command(monkeypatch, capsys, "--print-completion", "zsh")[1]
    assert "bashcompinit" in zsh.splitlines()[0]
    assert zsh.endswith(script)
