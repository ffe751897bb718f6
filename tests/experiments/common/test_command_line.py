"""The command line: grouped flags, one-line errors, and results that are never overwritten."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import Literal

import jax
import pytest

from geomem import paths
from geomem.__main__ import COMMANDS
from geomem.experiments.common import (
    command_line,
    compilation,
    dataclass_flags,
    interruption,
    results,
)
from geomem.experiments.common.dataclass_flags import REQUIRED, flag

NAMES = [name for commands in COMMANDS.values() for name in commands]


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure something.

    A second paragraph.
    """

    count: int = 3
    """Number of things, in 100%."""
    dataset: str = flag("digits", "data", positional=True)
    """What to measure."""
    sigma_min: float = flag(0.5, "curves")
    """Smallest noise level."""
    gap: tuple[float, float] | None = flag(None, "noise")
    """Edges of the gap."""
    classes: tuple[str, ...] = flag((), "data")
    """Classes to keep."""
    heldout: float | str | None = flag(None, "data")
    """Fraction or path."""
    grid: Literal["log", "edm"] = flag("log", "advanced")
    """Spacing."""
    growth: bool = flag(True, "advanced")
    """Whether to measure growth."""
    out: str = flag("runs/thing", "output")
    """Output folder."""


@dataclasses.dataclass(frozen=True)
class Needy(Config):
    """Needs samples."""

    samples: str = flag(REQUIRED, kw_only=True)
    """A file."""


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Count."""

    number: int | None = None
    """Number; default: all."""


def parse(*words, config=Config, **options):
    return dataclass_flags.parse(config, words, "geomem thing", **options)


@pytest.fixture
def command(monkeypatch, tmp_path, capfd):
    """Run command_line.main in an empty folder; return (exit code, stdout lines, stderr lines)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "_written", {})
    monkeypatch.setattr(command_line, "_prog", "geomem thing")

    def run_command(run, *words, config=Config, **options):
        monkeypatch.setattr(sys, "argv", ["geomem", *words])
        code = 0
        try:
            command_line.main(config, run, **options)
        except SystemExit as end:
            code = end.code
        output = capfd.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return run_command


def write_results(config):
    run = results.Run(config)
    with run.phase("work"):
        run.write_rows("table.csv", [{"count": config.count}])
    run.finish(answer=42)


def test_help_shows_flags_in_groups(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help", switches={"overwrite": "Overwrite."})
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "usage: geomem thing [DATASET] [flags]\n\nMeasure something.\n\nA second"
    )
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["options", "data", "curves", "noise", "output", "advanced"]
    assert "Number of things, in 100%. (default: 3)" in text
    assert text.index("curves:") < text.index("--sigma-min NUMBER") < text.index("noise:")
    assert "--grid {log,edm}" in text
    assert "--overwrite" in text


def test_flags_have_their_types():
    given = [
        "--gap",
        "0.5",
        "2",
        "--classes",
        "cat",
        "dog",
        "--heldout",
        "0.2",
        "--growth",
        "False",
    ]
    config, names = parse(*given, "--grid=edm", "--count", "7")
    assert config == Config(7, "digits", 0.5, (0.5, 2.0), ("cat", "dog"), 0.2, "edm", False)
    assert isinstance(config.gap, tuple)
    assert names == {"gap", "classes", "heldout", "growth", "grid", "count"}
    assert parse("--heldout", "folder")[0].heldout == "folder"
    assert parse("--heldout", "None")[0].heldout is None
    assert parse("--growth")[0].growth is True
    assert parse("--classes")[0].classes == ()
    assert parse("--sigma_min", "2")[0].sigma_min == 2


@pytest.mark.parametrize(
    "words",
    [("a_b", "--count", "4"), ("--count", "4", "a_b"), ("--dataset", "a_b", "--count", "4")],
)
def test_data_argument_needs_no_flag(words):
    assert parse(*words)[0] == Config(4, "a_b")


def test_preset_help_shows_its_own_defaults(capsys):
    presets = {"small": Numbered(number=7)}
    for words, text in [((), "Number; default: all.\n"), (("small",), "Number. (default: 7)\n")]:
        with pytest.raises(SystemExit):
            parse(*words, "--help", config=Numbered, presets=presets if words else None)
        assert text in capsys.readouterr().out


def test_presets_choose_defaults():
    presets = {"small": Config(count=1), "large": Config(count=9)}
    assert parse("large", "--grid", "edm", presets=presets)[0] == Config(count=9, grid="edm")
    assert parse("small", "folder", presets=presets)[0] == Config(count=1, dataset="folder")
    with pytest.raises(ValueError, match=r"PRESET is required: one of small, large\."):
        parse("--count", "3", presets=presets)
    with pytest.raises(ValueError, match=r"unknown preset 'larg'; did you mean large\?"):
        parse("larg", presets=presets)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--count", "abc"], "error: --count must be an integer, got 'abc'."),
        (["--sigma-min", "x"], "error: --sigma-min must be a number, got 'x'."),
        (["--growth", "maybe"], "error: --growth must be True or False, got 'maybe'."),
        (["--grid", "lin"], "error: --grid must be one of log, edm, got 'lin'."),
        (["--gap", "1"], "error: --gap needs 2 arguments."),
        (["--count"], "error: --count needs one argument."),
        (["--sigma-mn", "1"], "error: unknown flag '--sigma-mn'; did you mean --sigma-min?"),
        (["--overwrit"], "error: unknown flag '--overwrit'; did you mean --overwrite?"),
        (["a", "b"], "error: unexpected argument 'b'."),
        (["a", "--dataset", "b"], "error: --dataset is given twice."),
    ],
)
def test_rejects_bad_flags_in_one_line(command, words, line):
    def run(config):
        raise AssertionError("must not run")

    assert command(run, *words) == (2, [], [line])


def test_rejects_missing_flags(command):
    assert command(print, config=Needy) == (2, [], ["error: --samples is required."])


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("sigma_min must be positive, got -1.", "error: --sigma-min must be positive, got -1."),
        ("sigma_min and gap must fit.", "error: --sigma-min and --gap must fit."),
        ("count (--num-train) must be 1.", "error: --num-train must be 1."),
        ("min_count must be 1, got 2.", "error: min_count must be 1, got 2."),
        ("The gap must be in sigma_min.", "error: The gap must be in sigma_min."),
        ("no data\nat all", "error: no data at all"),
    ],
)
def test_errors_name_the_flag(command, message, line):
    def run(config):
        raise ValueError(message)

    assert command(run) == (2, [], [line])


def test_other_errors_keep_their_traceback(command):
    def run(config):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        command(run)


def test_lists_written_files_and_records_the_run(command, tmp_path):
    code, out, err = command(write_results)
    assert (code, err) == (0, [])
    assert out == ["wrote runs/thing/table.csv", "wrote runs/thing/run.json"]
    record = json.loads((tmp_path / "runs/thing/run.json").read_text())
    assert record["config"]["count"] == 3
    assert record["answer"] == 42
    assert list(record["seconds"]) == ["work"]


def test_default_folder_is_numbered(command, tmp_path):
    command(write_results)
    command(write_results)  # the same configuration: its own folder
    code, out, _ = command(write_results, "--count", "4")
    assert code == 0
    assert out[0] == "runs/thing holds the results of another run; writing to runs/thing-2"
    assert command(write_results, "--count", "5")[1][-1] == "wrote runs/thing-3/run.json"
    counts = {
        path.name: json.loads((path / "run.json").read_text())["config"]["count"]
        for path in (tmp_path / "runs").iterdir()
    }
    assert counts == {"thing": 3, "thing-2": 4, "thing-3": 5}


def test_given_folder_is_not_overwritten(command, tmp_path):
    table = tmp_path / "mine" / "table.csv"
    assert command(write_results, "--out", "mine")[0] == 0
    before = table.read_text()
    line = (
        "error: --out must not hold the results of another run, got mine: choose another --out or "
        "add --overwrite."
    )
    assert command(write_results, "--out", "mine", "--count", "4") == (2, [], [line])
    assert table.read_text() == before
    assert command(write_results, "--out", "mine", "--count", "4", "--overwrite")[0] == 0
    assert table.read_text() != before


def test_a_file_is_no_folder(command, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/inside"):
        line = f"error: --out must be a writable folder, got {out} (a file is there)."
        assert command(write_results, "--out", out) == (2, [], [line])


def test_another_commands_folder_is_not_overwritten(command, tmp_path):
    command(write_results, "--out", "mine")
    record = tmp_path / "mine" / "run.json"
    about = json.loads(record.read_text())
    record.write_text(json.dumps(about | {"command": "something_else"}))
    assert command(write_results, "--out", "mine")[0] == 2
    # Records of version 0.1 name no command and hold no digest.
    old = {"config": about["config"] | {"out": "elsewhere"}}
    record.write_text(json.dumps(old))
    assert command(write_results, "--out", "mine")[0] == 0
    record.write_text("half a reco")
    assert command(write_results, "--out", "mine")[0] == 2


def test_resuming_commands_keep_their_folder(command):
    for count in ("3", "4"):
        code, out, _ = command(write_results, "--count", count, resumes=True)
        assert code == 0
        assert out[-1] == "wrote runs/thing/run.json"
    assert command(write_results, "--overwrite", resumes=True)[0] == 2


def test_output_files_are_numbered(tmp_path):
    config = Config(out=str(tmp_path / "a.b" / "samples.npz"))
    (tmp_path / "a.b").mkdir()
    record = results.run_facts(dataclasses.replace(config, count=9), results.Phases())
    results.write_json(tmp_path / "a.b" / "samples.json", record)
    claimed = results.claim(config, number=True)
    assert claimed.out == str(tmp_path / "a.b" / "samples-2.npz")


def test_unfinished_files_do_not_replace_old_ones(tmp_path):
    path = tmp_path / "a.txt"
    paths.write_whole(path, "old")
    with pytest.raises(TypeError), paths.open_whole(path) as file:
        file.write("text instead of bytes")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("resumes", "writes", "line"),
    [
        (True, True, "interrupted; runs/thing keeps what was finished; the same command resumes."),
        (False, False, "interrupted; nothing was kept."),
        (
            False,
            True,
            "interrupted; 2 files were written, last runs/thing/run.json; the same command starts "
            "over.",
        ),
    ],
)
def test_interruption_says_what_was_kept(command, monkeypatch, resumes, writes, line):
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(interruption, "_ending", threading.Lock())

    def run(config):
        if writes:
            write_results(config)
        raise KeyboardInterrupt

    code, _, err = command(run, resumes=resumes)
    assert (code, err[-1]) == (130, line)


def test_ctrl_c_ends_the_process_with_130(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import dataclasses, os, signal, time\n"
        "from geomem.experiments.common import command_line\n"
        "@dataclasses.dataclass\n"
        "class Config:\n"
        "    '''Sleep.'''\n"
        "def run(config):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "command_line.main(Config, run)\n"
    )
    process = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert process.returncode == 130
    assert process.stderr.split() == ["interrupted;", "nothing", "was", "kept."]


def test_long_compilations_are_announced(monkeypatch, capsys):
    x = jax.numpy.ones(3)
    with compilation.announced():
        jax.jit(lambda x: x * 2 + 1)(x).block_until_ready()  # quick
    assert capsys.readouterr().err == ""
    # JAX still records the two events, in this order.
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: events.append(event)
    )
    jax.jit(lambda x: x * 3 + 1)(x).block_until_ready()
    assert events.index(compilation._START) < events.index(compilation.END)

    monkeypatch.setattr(compilation, "_PATIENCE", 0.01)
    with compilation.announced():
        jax.monitoring.record_event_duration_secs(compilation._START, 0.1)
        time.sleep(0.3)
        jax.monitoring.record_event_duration_secs(compilation.END, 0.3)
    assert capsys.readouterr().err == "compiling ... (once per shape; cached afterwards)\n"
    jax.monitoring.record_event_duration_secs(compilation._START, 0.1)
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Unset JAX_COMPILATION_CACHE_DIR, and return the folder for the user's caches."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        monkeypatch.setenv(name.upper(), "")  # so that monkeypatch restores it
        monkeypatch.delenv(name.upper())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def test_compilation_cache_is_on(own_cache):
    compilation.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(own_cache / "geomem" / "xla")
    assert jax.config.jax_persistent_cache_min_compile_time_secs < 0.1
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(own_cache / "geomem" / "xla")


def test_compilation_cache_can_be_turned_off(own_cache, monkeypatch):
    monkeypatch.setenv("GEOMEM_NO_COMPILATION_CACHE", "1")
    compilation.enable_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not own_cache.exists()


def test_tolerates_unwritable_compilation_cache(own_cache):
    own_cache.write_text("a file where a folder should be")
    compilation.enable_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_users_compilation_cache_is_respected(own_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    compilation.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_is_documented(name):
    config = importlib.import_module(f"geomem.experiments.{name.replace('-', '_')}").Config
    texts = dataclass_flags.field_help(config)
    undocumented = [field.name for field in dataclasses.fields(config) if not texts.get(field.name)]
    assert undocumented == []
    assert "Attributes:" not in config.__doc__
