"""Checkpoints are exact, and survive damage and full disks."""

import logging
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from geomem.diffusion import checkpoints

STATE = {
    "params": {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.float32(0.1) / 3},
    "key": np.asarray(jax.random.key_data(jax.random.key(7))),
    "noise": np.random.default_rng(0).normal(size=5000),
    "step": np.int32(5),
}


def _saved(folder, steps=(5, 10, 15)):
    with checkpoints.Checkpoints(folder) as saved:
        for step in steps:
            saved.save(step, {**STATE, "step": np.int32(step)})
    return folder / "checkpoints"


def _restore(folder, **options):
    with checkpoints.Checkpoints(folder, **options) as saved:
        return saved.restore(STATE)


def test_restores_the_state_exactly(tmp_path):
    _saved(tmp_path)
    step, state = _restore(tmp_path)
    assert step == state["step"] == 15
    jax.tree.map(np.testing.assert_array_equal, state, {**STATE, "step": np.int32(15)})
    assert state["noise"].dtype == np.float64


def test_keeps_only_the_newest(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=2) as saved:
        for step in (1, 2, 3, 3):
            saved.save(step, STATE)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.steps() == [2, 3]


# tensorstore's reader threads outlive the failed restore and report to a closed event loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_falls_back_from_a_damaged_checkpoint(tmp_path, caplog, damage):
    folder = _saved(tmp_path)
    # The largest file holds the values: Orbax does not notice a flipped byte in it.
    largest = max((folder / "15").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "remove":
        largest.unlink()
    else:
        largest.write_bytes(content if damage == "flip" else content[:10])
    with caplog.at_level(logging.WARNING):
        step, state = _restore(tmp_path, read_only=True)
        assert (folder / "15").exists()
        step, state = _restore(tmp_path)
    assert step == state["step"] == 10
    assert "checkpoint 15 is damaged" in caplog.text
    assert not (folder / "15").exists()
    assert (folder / "15.damaged").exists()
    _saved(tmp_path, [15])
    assert _restore(tmp_path)[0] == 15


def test_strays_do_not_harm_whole_checkpoints(tmp_path):
    folder = _saved(tmp_path)
    (folder / "50").mkdir()
    (folder / "999" / "notes").mkdir(parents=True)
    (folder / "20").write_text("not a folder")
    assert _restore(tmp_path, read_only=True)[0] == 15
    assert (folder / "50").exists()
    assert _restore(tmp_path)[0] == 15
    _saved(tmp_path, [20])  # also saves after a step that only seemed to exist
    assert _restore(tmp_path)[0] == 20
    assert {"10", "15", "20", "50.damaged", "999.damaged", "20.damaged"} <= {
        path.name for path in folder.iterdir()
    }


def test_other_failures_are_not_damage(tmp_path, monkeypatch):
    folder = _saved(tmp_path)
    with (
        checkpoints.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=r"^run must hold checkpoints of this network, got .*15,"),
    ):
        saved.restore({**STATE, "noise": np.zeros(7)})
    with checkpoints.Checkpoints(tmp_path) as saved:
        for error in (PermissionError(13, "Permission denied"), ValueError("UNAVAILABLE: later")):

            def fail(*_, error=error):
                raise error

            monkeypatch.setattr(saved._reader, "restore", fail)
            with pytest.raises(OSError, match=r"checkpoint .*15 cannot be read: "):
                saved.restore(STATE)
    assert {path.name for path in folder.iterdir()} == {"5", "10", "15"}


def test_rejects_damaged_checkpoints_and_missing_steps(tmp_path):
    assert _restore(tmp_path) is None
    folder = _saved(tmp_path, [5])
    for path in (folder / "5").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"^run must have an undamaged checkpoint, got .* where all of \[5\] are"
    ):
        _restore(tmp_path)
    with (
        checkpoints.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=r"^step must be one of \[5\] .*, got 6"),
    ):
        saved.restore(STATE, 6)


def test_reports_a_full_disk_in_one_line(tmp_path):
    # Needs a small file system, mounted in a user namespace.
    code = """
import numpy as np, pathlib, sys
from geomem.diffusion import checkpoints
try:
    with checkpoints.Checkpoints(pathlib.Path(sys.argv[1])) as saved:
        saved.save(1, {"x": np.random.default_rng(0).normal(size=1_000_000)})
except OSError as error:
    print("OSError", error)
"""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    command = f"{mount} && exec {sys.executable} - {tmp_path}"
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        input=code,
        capture_output=True,
        text=True,
        cwd=pathlib.Path(checkpoints.__file__).parents[2],
    )
    message = (
        f"OSError checkpoints cannot be written to {tmp_path}/checkpoints: No space left on device."
    )
    assert result.stdout.splitlines() == [message]
