"""Training and sampling: resume bit for bit, stop by signals, sample what was trained."""

import contextlib
import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from network_oracles import DATA

import geomem
from geomem import memory
from geomem.diffusion import grids, replacement, sampler
from geomem.diffusion import training_step as steps
from geomem.experiments import sample
from geomem.experiments.common import denoisers
from geomem.experiments.train import PRESETS, configuration, loop, run_folder
from geomem.experiments.train.metrics_log import MetricsLog
from geomem.metrics import watch

TINY = dataclasses.replace(
    PRESETS["digits"],
    channels=8,
    batch=16,
    num_train=32,
    kimg=0.32,
    log_every=4,
    checkpoint_every=8,
    samples=4,
    watch=True,
    watch_samples=8,
)


def _config(folder, **changes):
    return dataclasses.replace(TINY, out=str(folder), **changes)


def _metrics(folder):
    return (folder / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of 20 steps."""
    folder = tmp_path_factory.mktemp("run")
    result = loop.run(_config(folder))
    assert (result.step, result.finished) == (20, True)
    return folder


@contextlib.contextmanager
def _signal_at(step, number):
    """Raise a signal when the metrics of a step are written."""
    with pytest.MonkeyPatch.context() as patch:
        write = MetricsLog.write

        def write_and_raise(self, written, *rest):
            write(self, written, *rest)
            if written == step:
                signal.raise_signal(number)

        patch.setattr(MetricsLog, "write", write_and_raise)
        yield


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The same run, resumed after SIGTERM, after Ctrl-C and from what a kill leaves behind."""
    folder = tmp_path_factory.mktemp("resumed")
    with _signal_at(8, signal.SIGTERM):
        result = loop.run(_config(folder))
    assert (result.step, result.finished) == (9, False)  # saved in the middle of a window
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "kimg": 99}\n{"step": 16, "ki')
    message = rf"^interrupted at step 13; {folder} keeps checkpoint 13; the same command resumes.$"
    with _signal_at(12, signal.SIGINT), pytest.raises(KeyboardInterrupt, match=message):
        loop.run(_config(folder))
    assert loop.run(_config(folder)).finished
    return folder


def test_resumed_run_is_bitwise_identical(finished, interrupted):
    assert _metrics(interrupted) == _metrics(finished)
    lines = [json.loads(line) for line in _metrics(finished).splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [*range(4, 21, 4)]
    assert [line["step"] for line in lines if "watch/memorized" in line] == [8, 16, 20]
    for average in (True, False):
        ours, theirs = (
            run_folder.load(folder, average=average)[1] for folder in (interrupted, finished)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture
def observations(monkeypatch):
    """The counts of all observations; from the second on, the samples are training images."""

    def observe(denoiser, train, heldout, **settings):
        calls.append(settings["count"])
        return observed(None, train, heldout, samples=train if len(calls) > 1 else heldout)

    calls, observed = [], watch.observe
    monkeypatch.setattr(watch, "observe", observe)
    return calls


def test_says_when_copying_starts(tmp_path, observations, capsys):
    loop.run(_config(tmp_path / "run", samples=0))
    text = capsys.readouterr().out
    assert observations == [8, 8, 8]
    assert text.count("copying has started") == 1
    assert "step 16: copying has started; checkpoint 8 was saved before" in text


def test_stops_when_copying_starts(tmp_path, observations, capsys):
    config = _config(tmp_path / "run", samples=0, stop_when_copying=True)
    result = loop.run(config)
    assert (result.step, result.finished, result.copying) == (16, True, True)
    assert len(observations) == 2
    assert "finished at step 16, where copying started" in capsys.readouterr().out
    again = loop.run(config)  # the same command leaves it there
    assert (again.step, again.copying, len(observations)) == (16, True, 2)
    on = loop.run(dataclasses.replace(config, stop_when_copying=False))
    assert (on.step, on.finished, on.copying) == (20, True, False)
    with pytest.raises(ValueError, match=r"^stop_when_copying must be False without watch"):
        loop.run(dataclasses.replace(config, watch=False))


def test_refuses_a_step_that_does_not_fit_once_compiled(tmp_path, monkeypatch):
    config = _config(tmp_path / "run", samples=0, watch=False)
    least = loop._least_activations(config, (32, 8, 8, 1)) // 2  # far below what a step takes
    monkeypatch.setattr(loop, "_least_activations", lambda *_: least)
    monkeypatch.setattr(memory, "_RESERVE", 0)
    monkeypatch.setattr(memory, "free", lambda: int(1.5 * least))
    with pytest.raises(ValueError, match=r"^batch must fit in memory, got 16, which needs"):
        loop.run(config)
    least *= 2
    monkeypatch.setattr(memory, "free", lambda: int(3.9 * least))
    assert loop.run(config).finished


def test_refuses_to_watch_with_one_held_out_image(tmp_path):
    np.save(tmp_path / "three.npy", np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)))
    config = _config(tmp_path / "run", dataset=str(tmp_path / "three.npy"), num_train=None)
    with pytest.raises(ValueError, match=r"^heldout must leave 2 or more images for watch, got 1"):
        loop.run(config)


def test_run_folder_holds_documented_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "run.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert {"samples_0000008.png", "samples_0000016.png", "samples_0000020.png"} <= names
    config = json.loads((finished / "config.json").read_text())
    assert config["data"]["image_shape"] == [8, 8, 1]
    assert configuration.from_facts(config) == configuration.resolve(_config(finished))
    assert json.loads((finished / "run.json").read_text())["result"]["step"] == 20
    assert list((finished / "tensorboard").iterdir())


def test_finished_run_is_unchanged(finished):
    files = [finished / "metrics.jsonl", finished / "run.json"]
    before = [path.read_text() for path in files]
    assert loop.run(_config(finished)).step == 20
    assert [path.read_text() for path in files] == before


def test_samples_use_the_average_and_one_seed_each(finished, tmp_path):
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


def test_samples_skip_the_training_gap(finished, tmp_path):
    run = tmp_path / "gap"
    shutil.copytree(finished, run)
    facts = json.loads((run / "config.json").read_text())
    facts["config"] |= {"schedule": "gap", "gap": [0.3, 1.5]}
    (run / "config.json").write_text(json.dumps(facts))
    config = sample.Config(run=str(run), out=str(tmp_path / "a"), count=2, steps=5)
    skipping, whole = (
        sample.run(dataclasses.replace(config, over_gap=over_gap)).images
        for over_gap in (True, False)
    )
    assert np.abs(skipping - whole).max() > 1e-3
    without = sample.run(dataclasses.replace(config, run=str(finished))).images
    np.testing.assert_allclose(whole, without, atol=1e-4)


def test_samples_are_repaired_inside_the_zone(finished, tmp_path):
    zone = tmp_path / "zone.json"
    zone.write_text('{"low": 0.3, "high": 1.5}')
    config = sample.Config(run=str(finished), out=str(tmp_path / "a"), count=2, repair=(str(zone),))
    images = sample.run(config).images
    network, params, shape = run_folder.load(finished)
    grid = grids.edm_grid(18)
    local = geomem.geometry.local.ls(denoisers.load_images(finished).train, 3)
    repaired = replacement.repair(network.bind(params), local, grid, (0.3, 1.5))
    np.testing.assert_allclose(images, sampler.generate(repaired, range(2), shape, grid), atol=1e-5)
    # The run itself in its own place changes nothing.
    own = dataclasses.replace(config, repair=("0.3", "1.5"), repair_with=str(finished))
    plain = dataclasses.replace(config, repair=None)
    np.testing.assert_array_equal(sample.run(own).images, sample.run(plain).images)
    assert np.abs(images - sample.run(plain).images).max() > 1e-2


def test_samples_published_weights(tmp_path):
    config = sample.Config(
        weights=str(DATA / "songunet_gray8.npz"), out=str(tmp_path / "b.npz"), count=2, steps=3
    )
    assert sample.run(config).images.shape == (2, 8, 8, 1)


def test_nonfinite_loss_keeps_the_last_good_checkpoint(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setattr(steps, "loss", lambda d, p, *rest: np.nan * p["map_layer0"]["bias"].sum())
    monkeypatch.setattr(steps, "_compiled", steps._compiled.__wrapped__)  # traced anew
    with pytest.raises(ValueError, match=r"^loss must be finite, got nan by step 24"):
        loop.run(_config(folder, kimg=1, checkpoint_every=4))
    ours, theirs = run_folder.load(folder)[1], run_folder.load(finished)[1]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_resumes_runs_of_older_versions(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "old")
    facts = json.loads((folder / "config.json").read_text())
    del facts["config"]["heldout_seed"], facts["config"]["num_heldout"]
    (folder / "config.json").write_text(json.dumps(facts))
    assert configuration.from_facts(facts).heldout_seed == 0
    assert loop.run(_config(folder)).step == 20


def test_rejects_resuming_with_another_configuration(finished):
    before = _metrics(finished)
    for changes, message in [
        ({"lr": 0.5}, r"^lr must be 0.004 as in .*config.json, got 0.5"),
        ({"channels": 16}, "^channels must be 8 as in .*, got 16"),
        ({"gap": (1.0, 2.0)}, r"^gap must be None as in .*, got \[1.0, 2.0\]"),
        ({"subset_seed": 1}, "^subset_seed must be None as in .*, got 1"),
        ({"dataset": "cifar10_sample"}, "^(image_shape|sha256) must be .* as in .*"),
        ({"resume": False}, "^out must not hold a run when resume is False"),
    ]:
        with pytest.raises(ValueError, match=message):
            loop.run(_config(finished, **changes))
    assert _metrics(finished) == before
