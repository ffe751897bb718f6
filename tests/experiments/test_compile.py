"""Programs compile for TPUs that are not there; nothing is run."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from geomem.experiments import compile_check
from geomem.experiments.common import chips, hlo


def test_counts_collectives_and_their_bytes():
    text = """
      %all-reduce.1 = (f32[2,3]{1,0:T(8,128)}, bf16[4]{0}) all-reduce(%a, %b), channel_id=1
      %start = u8[10]{0} all-gather-start(%c), channel_id=2
      %done = u8[10]{0} all-gather-done(%start)
      %fusion.all-reduce = f32[7]{0} fusion(%d), calls=%all-reduce.2
    """
    assert hlo.collectives(text) == {
        "all-reduce": {"count": 1, "bytes": 32},
        "all-gather": {"count": 1, "bytes": 10},
    }


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^target must .* v5e:2x4: .*'geomem\[compile-tpu\]'\.$"):
        chips.target("v5e:2x4")
    with pytest.raises(ValueError, match=r"^target must .* h100:8: .*'geomem\[compile-cuda\]'\.$"):
        chips.target("h100:8")


@pytest.mark.parametrize("name", ["", "v5e", "v5e:", "v5e:2x", "v9:2x2", "h100:2.5"])
def test_rejects_unknown_targets(name):
    with pytest.raises(ValueError, match=r"^target must be like v5e:2x4"):
        chips.target(name)


@pytest.mark.parametrize(
    ("program", "flags"),
    [("train", {"queries": 8}), ("sample", {"points": 8}), ("nearest", {"batch": 8})],
)
def test_rejects_flags_that_the_program_does_not_use(program, flags):
    (name,) = flags
    with pytest.raises(ValueError, match=f"^{name} must be left out for the program {program}"):
        compile_check.run(compile_check.Config("v5e:2x2", program, **flags))


@pytest.mark.parametrize("program", ["posterior", "nearest", "curves"])
def test_geometry_lowers_for_several_devices(program):
    """Its arrays are all abstract, unlike in any other use of these functions."""
    config = compile_check.Config("v5e:2x2", program, points=64, shape=(4, 4, 1), queries=8)
    lower, items, _ = compile_check._PROGRAMS[program](config, jax.devices("cpu")[:4])
    assert items == 8
    assert "stablehlo.all_reduce" in lower().as_text()


@pytest.fixture(scope="module")
def libtpu(tmp_path_factory):
    """Install the TPU compiler that this JAX needs into a folder of its own."""
    (needed,) = (
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("jax") or ()
        if requirement.startswith("libtpu")
    )
    folder = tmp_path_factory.mktemp("libtpu")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
    if subprocess.run([*install, needed], capture_output=True).returncode:
        pytest.skip(f"{needed} could not be installed")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags", "all_reduces", "temporaries"),
    [
        ("train", ["--preset", "digits"], 1, 30e6),
        ("sample", ["--preset", "digits"], 0, 20e6),
        ("posterior", [], None, 200e6),
        ("nearest", [], None, 200e6),
    ],
)
def test_compiles_for_a_tpu_slice(program, flags, all_reduces, temporaries, libtpu, tmp_path):
    command = [sys.executable, "-m", "geomem.experiments.compile", "v5e:2x2", "--program", program]
    paths = os.pathsep.join(filter(None, [str(libtpu), os.environ.get("PYTHONPATH")]))
    outcome = subprocess.run(
        [*command, *flags, "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "nothing was run" in outcome.stdout
    report = json.loads((tmp_path / "out" / "compile.json").read_text())
    assert report["fits"]
    assert report["temporary_bytes"] < temporaries
    count = sum(entry["count"] for entry in report["collectives"].values())
    assert count == all_reduces if all_reduces is not None else count > 0
