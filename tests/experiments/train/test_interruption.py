"""Real interruptions: SIGKILL at random moments, SIGTERM, and a run of two processes.

The environment variable GEOMEM_KILLS sets the number of kills (5).
"""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import processes
import pytest

from geomem.diffusion import checkpoints
from geomem.experiments.train import configuration, load, run, run_folder

pytestmark = pytest.mark.slow

STEPS = 300
FLAGS = (
    "digits --channels 8 --num-train 32 --batch 16 --log-every 2 --checkpoint-every 4 --samples 0 "
    f"--kimg {STEPS * 16 / 1000}"
).split()


def _start(folder, cache):
    """Start training on one device. Cached compilations leave time for kills."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "geomem.experiments.train", *FLAGS, "--out", str(folder)]
    return subprocess.Popen(
        command, env=environment, cwd=processes.ROOT, stderr=subprocess.PIPE, text=True
    )


def _finish(folder, cache):
    process = _start(folder, cache)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error


def _state(folder):
    template = run_folder.state_template(run_folder.read_facts(folder))
    with checkpoints.Checkpoints(folder, read_only=True) as saved:
        return saved.restore(template)


def _lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("uninterrupted")
    _finish(folder, cache)
    return folder


def _assert_same(folder, reference):
    (step, state), (_, expected) = _state(folder), _state(reference)
    assert step == STEPS
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert (folder / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


def test_killed_runs_resume_bitwise(reference, cache, tmp_path):
    rng, kills = random.Random(0), int(os.environ.get("GEOMEM_KILLS", "5"))
    while_writing = 0
    for kill in range(kills):
        process = _start(tmp_path, cache)
        # Every second kill waits until a checkpoint is being written. The others come at a random
        # moment of the start (imports, restoring) or of the training.
        if kill % 2:
            goal = _lines(tmp_path) + rng.randrange(1, max(2, STEPS // 2 // kills))
            while process.poll() is None and _lines(tmp_path) < goal:
                time.sleep(0.001)
            while process.poll() is None and not any((tmp_path / "checkpoints").glob("*tmp*")):
                time.sleep(0.0002)
        else:
            time.sleep(rng.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        while_writing += any((tmp_path / "checkpoints").glob("*tmp*"))
    assert while_writing or kills < 5
    _finish(tmp_path, cache)
    _assert_same(tmp_path, reference)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_exit_cleanly(reference, cache, tmp_path, number, code):
    process = _start(tmp_path, cache)
    while process.poll() is None and _lines(tmp_path) < 5:
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == code, error
    step = _state(tmp_path)[0]
    assert 10 <= step < STEPS
    if number == signal.SIGINT:
        message = f"interrupted at step {step}; {tmp_path} keeps checkpoint {step}; the same"
        assert error.splitlines()[-1].startswith(message), error
    _finish(tmp_path, cache)
    _assert_same(tmp_path, reference)


WORKER = """
import dataclasses
folder, kimg = arguments
from geomem.experiments import train
config = dataclasses.replace(
    train.PRESETS["digits"], out=folder, kimg=float(kimg), channels=8, num_train=32, batch=16,
    lr=1e-3, lr_ramp_kimg=0, log_every=2, checkpoint_every=2, samples=4,
)
train.run(config)
"""


def test_two_processes_train_save_and_restore_like_one(tmp_path):
    processes.run_two(WORKER, tmp_path / "two", 0.064)
    processes.run_two(WORKER, tmp_path / "two", 0.096)  # restores what two processes saved
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir())[-1] == "6"
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("\n") == 3

    config = configuration.from_facts(run_folder.read_facts(tmp_path / "two"))
    run(dataclasses.replace(config, out=str(tmp_path / "one")))
    params, expected = (load(tmp_path / name, average=False)[1] for name in ("two", "one"))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max() / scale, params, expected)
    assert max(jax.tree.leaves(errors)) <= 1e-6
