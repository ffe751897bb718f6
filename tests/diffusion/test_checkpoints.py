"""Checkpoints: exact, and safe against damage, other runs' folders and full disks."""

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


def test_a_state_comes_back_bit_for_bit(tmp_path):
    _saved(tmp_path)
    step, state = _restore(tmp_path)
    assert step == state["step"] == 15
    jax.tree.map(np.testing.assert_array_equal, state, {**STATE, "step": np.int32(15)})
    assert state["noise"].dtype == np.float64


def test_only_the_newest_are_kept(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=2) as saved:
        for step in (1, 2, 3, 3):
            saved.save(step, STATE)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.steps() == [2, 3]


# tensorstore's reader threads outlive the failed restore and complain to a closed event loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(tmp_path, caplog, damage):
    folder = _saved(tmp_path)
    # The largest file holds the values: a flipped byte there is not seen by Orbax.
    victim = max((folder / "15").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(content if damage == "flip" else content[:10])
    with caplog.at_level(logging.WARNING):
        step, state = _restore(tmp_path, read_only=True)
        assert (folder / "15").exists()
        step, state = _restore(tmp_path)
    assert step == state["step"] == 10
    assert "checkpoint 15 is damaged" in caplog.text
    assert not (folder / "15").exists()
    _saved(tmp_path, [15])
    assert _restore(tmp_path)[0] == 15


def test_no_usable_checkpoint_is_an_error_and_none_is_a_fresh_start(tmp_path):
    assert _restore(tmp_path) is None
    folder = _saved(tmp_path, [5])
    for path in (folder / "5").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"run: no usable checkpoint among \[5\]"):
        _restore(tmp_path)
    with (
        checkpoints.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=r"step: 6, wanted one of \[5\]"),
    ):
        saved.restore(STATE, 6)


def test_a_folder_belongs_to_one_run(tmp_path):
    facts = {"config": {"lr": 0.1, "kimg": 5, "gap": (1.0, 2.0)}, "data": {"sha256": "ab"}}
    assert not checkpoints.claim_folder(tmp_path, facts)
    assert checkpoints.claim_folder(tmp_path, facts)
    assert checkpoints.read_facts(tmp_path)["config"]["gap"] == [1.0, 2.0]
    longer = {**facts, "config": {**facts["config"], "kimg": 9}}
    with pytest.raises(ValueError, match=r"kimg: 9, but .*config.json has 5"):
        checkpoints.claim_folder(tmp_path, longer)
    assert checkpoints.claim_folder(tmp_path, longer, ["config.kimg"])
    with pytest.raises(ValueError, match=r"sha256: 'cd', but .* has 'ab'"):
        checkpoints.claim_folder(tmp_path, {**longer, "data": {"sha256": "cd"}})


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"out: .* is not a run folder \(has thesis.tex"):
        checkpoints.claim_folder(tmp_path, {})
    with pytest.raises(ValueError, match=r"run: .* is not a run folder"):
        checkpoints.read_facts(tmp_path)


def test_a_full_disk_is_one_line(tmp_path):
    # A small file system of its own, in a user namespace; where that is not allowed, skip.
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
        f"OSError checkpoints: cannot write to {tmp_path}/checkpoints: No space left on device"
    )
    assert result.stdout.splitlines() == [message]
