"""The training and sampling commands: resume bit for bit, SIGTERM, bad input in one line."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from network_oracles import DATA

from geomem.diffusion import training_step as steps
from geomem.experiments import sample
from geomem.experiments.train import configuration, run_folder
from geomem.experiments.train.metrics_log import Journal

TINY = dataclasses.replace(
    run_folder.PRESETS["digits"],
    channels=8,
    batch=16,
    num_train=32,
    kimg=0.32,
    log_every=4,
    checkpoint_every=8,
    samples=4,
)


def _config(folder, **changes):
    return dataclasses.replace(TINY, out=str(folder), **changes)


def _metrics(folder):
    return (folder / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 20 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("run")
    result = run_folder.run(_config(folder))
    assert (result.step, result.finished) == (20, True)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The same run, stopped by SIGTERM and resumed, with the traces that a kill leaves behind."""
    folder = tmp_path_factory.mktemp("resumed")
    with pytest.MonkeyPatch.context() as patch:
        write = Journal.write

        def write_and_terminate(self, step, *rest):
            write(self, step, *rest)
            if step == 8:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(Journal, "write", write_and_terminate)
        result = run_folder.run(_config(folder))
        assert (result.step, result.finished) == (9, False)  # saved in the middle of a window
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "kimg": 99}\n{"step": 16, "ki')
    assert run_folder.run(_config(folder)).finished
    return folder


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(finished, interrupted):
    assert _metrics(interrupted) == _metrics(finished)
    assert [json.loads(line)["step"] for line in _metrics(finished).splitlines()] == [
        *range(4, 21, 4)
    ]
    for average in (True, False):
        ours, theirs = (
            run_folder.load(folder, average=average)[1] for folder in (interrupted, finished)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_run_folder_holds_what_it_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "run.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert {"samples_0000008.png", "samples_0000016.png", "samples_0000020.png"} <= names
    config = json.loads((finished / "config.json").read_text())
    assert config["data"]["image_shape"] == [8, 8, 1]
    assert configuration.from_facts(config) == configuration.resolve(_config(finished))
    assert json.loads((finished / "run.json").read_text())["result"]["step"] == 20
    assert list((finished / "tensorboard").iterdir())


def test_a_finished_run_is_left_alone(finished):
    files = [finished / "metrics.jsonl", finished / "run.json"]
    before = [path.read_text() for path in files]
    assert run_folder.run(_config(finished)).step == 20
    assert [path.read_text() for path in files] == before


def test_samples_come_from_the_average_and_one_seed_each(finished, tmp_path):
    config = sample.Config(run=str(finished), out=str(tmp_path / "a"), count=6, seed=3, steps=5)
    result = sample.run(config)
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["images"], result.images)
        np.testing.assert_array_equal(archive["seeds"], range(3, 9))
        assert archive["images"].dtype == np.float32
    assert result.files[1].exists()
    few = sample.run(dataclasses.replace(config, count=2, seed=5, batch_size=1))
    np.testing.assert_allclose(few.images, result.images[2:4], atol=1e-4)
    raw = sample.run(dataclasses.replace(config, average=False))
    assert np.abs(raw.images - result.images).max() > 1e-3


def test_samples_step_over_the_gap_of_their_training(finished, tmp_path):
    run = tmp_path / "gap"
    shutil.copytree(finished, run)
    facts = json.loads((run / "config.json").read_text())
    facts["config"] |= {"schedule": "gap", "gap": [0.3, 1.5]}
    (run / "config.json").write_text(json.dumps(facts))
    config = sample.Config(run=str(run), out=str(tmp_path / "a"), count=2, steps=5)
    over, whole = (
        sample.run(dataclasses.replace(config, over_gap=o)).images for o in (True, False)
    )
    assert np.abs(over - whole).max() > 1e-3
    without = sample.run(dataclasses.replace(config, run=str(finished))).images
    np.testing.assert_allclose(whole, without, atol=1e-4)


def test_published_weights_are_sampled(tmp_path):
    config = sample.Config(
        weights=str(DATA / "songunet_gray8.npz"), out=str(tmp_path / "b.npz"), count=2, steps=3
    )
    assert sample.run(config).images.shape == (2, 8, 8, 1)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setattr(steps, "loss", lambda d, p, *rest: np.nan * p["map_layer0"]["bias"].sum())
    with pytest.raises(ValueError, match="loss: nan by step 24, wanted a finite one"):
        run_folder.run(_config(folder, kimg=1, checkpoint_every=4))
    ours, theirs = run_folder.load(folder)[1], run_folder.load(finished)[1]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_gaps_reach_the_recipe(tmp_path):
    zone = tmp_path / "zone.json"
    zone.write_text('{"low": 0.5, "high": 2.0}')

    def recipe(**changes):
        config = configuration.resolve(_config(tmp_path, **changes))
        fields = dataclasses.asdict(config)
        return configuration.build({"config": fields, "data": {"sigma_data": 0.5}})[1]

    assert recipe().schedule.edges == ()
    assert recipe(gap=(0.5, 2.0)).schedule.mass(0.5, 2.0) == 0
    assert recipe(gap_from=str(zone)) == recipe(gap=(0.5, 2.0))
    assert recipe(gap=(0.5, 2.0), keep=0.5).schedule.weights == (1, 0.5, 1)
    assert recipe(gap=(0.5, 2.0), schedule="dummy").schedule.dummy == (0.5, 2.0)


def _command(*arguments, module="train"):
    return [sys.executable, "-m", f"geomem.experiments.{module}", *map(str, arguments)]


ZONES = {
    "empty.json": '{"low": null, "high": null}',
    "other.json": "[]",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gap": (2.0, 1.0)}, "gap: 2.0 to 1.0, wanted 0 < low < high"),
        ({"gap": (0.001, 1000.0)}, "gap: 0.001 to 1000 leaves 0.00% of the training noise"),
        ({"gap": (1.0, 2.0), "schedule": "lognormal"}, "schedule: lognormal, wanted gap or dummy"),
        ({"schedule": "dummy"}, "schedule: dummy, wanted --gap LOW HIGH"),
        ({"gap": (1.0, 2.0), "gap_from": "x.json"}, "gap: given twice"),
        (
            {"gap_from": "empty.json"},
            "gap_from must hold a danger zone, got .*: low and high are null",
        ),
        ({"gap_from": "other.json"}, "gap_from must be a JSON file with low and high, got"),
        ({"gap": (1.0, 2.0), "keep": 1.5}, "keep: 1.5, wanted a factor"),
        ({"keep": 0.5}, "keep: 0.5, wanted a gap"),
        ({"batch": 12}, "batch: 12, wanted a multiple of the 8 devices"),
        ({"multipliers": (1, 1, 1, 1)}, "resolution: 8x8 images, wanted .* multiples of 16"),
        ({"channels": 6}, "channels: 6, wanted"),
        ({"channels": -4}, "channels: -4, wanted a positive number"),
        ({"noise_std": -1.0}, "noise_std: -1.0, wanted a positive number"),
        ({"patch": 0}, "patch: 0, wanted a positive number"),
        ({"attention": (4, 7)}, r"attention: \(4, 7\), wanted resolutions among \[4\]"),
        (
            {"gap_from": "nowhere.json"},
            r"gap_from must be a readable file, got nowhere\.json \(No such file",
        ),
        ({"channels": 100}, "channels, multipliers: they make a layer of 200 channels, wanted"),
        ({"checkpoint_every": 6}, "checkpoint_every: 6, wanted a multiple of log_every"),
        ({"num_train": 10_000}, r"count \(--num-train\): 10000, wanted 1 to 900"),
        ({"kimg": 0}, "kimg: 0, wanted"),
    ],
)
def test_bad_configurations_are_named(changes, message, tmp_path):
    for name, text in ZONES.items():
        (tmp_path / name).write_text(text)
    if changes.get("gap_from") in ZONES:
        changes = {**changes, "gap_from": str(tmp_path / changes["gap_from"])}
    with pytest.raises(ValueError, match=message) as error:
        run_folder.run(_config(tmp_path / "out", **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()  # refused before anything is written


def test_runs_from_before_heldout_seed_go_on(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "old")
    facts = json.loads((folder / "config.json").read_text())
    del facts["config"]["heldout_seed"]
    (folder / "config.json").write_text(json.dumps(facts))
    assert configuration.from_facts(facts).heldout_seed == 0
    assert run_folder.run(_config(folder)).step == 20


def test_another_configuration_does_not_resume(finished):
    before = _metrics(finished)
    for changes, message in [
        ({"lr": 0.5}, r"lr: 0.5, but .*config.json has 0.004"),
        ({"channels": 16}, "channels: 16, but .* has 8"),
        ({"gap": (1.0, 2.0)}, r"gap: \[1.0, 2.0\], but .* has None"),
        ({"subset_seed": 1}, "subset_seed: 1, but .* has None"),
        ({"dataset": "cifar10_sample"}, "image_shape: .* but .*|sha256: .*"),
        ({"resume": False}, "out: .* holds a run, wanted --resume True"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_folder.run(_config(finished, **changes))
    assert _metrics(finished) == before


def test_the_commands_print_one_line_and_exit_2(tmp_path):
    (tmp_path / "notes.txt").touch()
    for command, message in [
        (_command("digits", "--out", tmp_path, "--kimg", "1"), "is not a run folder"),
        (_command("--run", tmp_path, module="sample"), "is not a run folder"),
        (_command(module="sample"), "run or weights must be given, and not both"),
    ]:
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
