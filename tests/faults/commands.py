"""Run commands in this process, and the damaged files that they must refuse."""

import sys

import jax
import numpy as np
import pytest

from geomem import __main__ as front_door
from geomem.diffusion import checkpoints
from geomem.experiments.common import image_flags
from geomem.experiments.train import PRESETS, configuration, run_folder


@pytest.fixture
def refuses(monkeypatch, capfd, tmp_path):
    """Return a function that checks that a command refuses its arguments in one line.

    It returns what is wrong, or None, so that a test can list all failures at once.
    """
    monkeypatch.chdir(tmp_path)

    def check(words, *expected):
        monkeypatch.setattr(sys, "argv", ["geomem", *map(str, words)])
        capfd.readouterr()
        try:
            front_door.main()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            return f"{words}: {type(error).__name__}: {str(error)[:200]}"
        lines = capfd.readouterr().err.splitlines()
        if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
            return f"{words}: exit {code}, {lines[:3]}"
        missing = [text for text in expected if text not in lines[0]]
        return f"{words}: {lines[0]} lacks {missing}" if missing else None

    return check


def make_run(folder):
    """Make the folder of a run of no steps; compiling a step would take most of the tests' time."""
    small = dict(channels=8, batch=16, num_train=32, log_every=4, checkpoint_every=4, samples=0)
    config = configuration.dataclasses.replace(
        PRESETS["digits"], out=str(folder), kimg=0.064, **small
    )
    config = configuration.resolve(config)
    facts = configuration.facts(config, image_flags.load(config).train_split)
    folder.mkdir()
    run_folder.claim(folder, facts)
    rng, shapes = np.random.default_rng(0), run_folder.state_template(facts)
    state = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes)
    with checkpoints.Checkpoints(folder) as saved:
        saved.save(4, state)
    return folder


def check_all(refuses, rows):
    failures = [failure for words, *expected in rows if (failure := refuses(words, *expected))]
    assert not failures, "\n".join([f"{len(failures)} of {len(rows)}", *failures[:30]])
