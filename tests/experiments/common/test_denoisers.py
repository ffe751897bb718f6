"""Figures 1 and 2 and the large-noise gap, end to end on one small run, against exact values."""

import dataclasses
import json
import sys

import numpy as np
import oracles
import pytest

from geomem import data
from geomem.experiments import (
    denoising_error,
    large_noise,
    local_denoisers,
    noise_level_memorization,
)
from geomem.experiments.common import denoisers
from geomem.experiments.train import presets
from geomem.geometry import posterior

TRAIN = 64
SHARED = {"num_images": 64, "num_sigmas": 3, "sigma_min": 0.05, "sigma_max": 50.0, "batch": 64}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the run folder of a preset with one tiny network."""
    recipe = dataclasses.replace(
        presets.PRESETS["digits"],
        num_train=TRAIN,
        channels=8,
        kimg=0.8,
        log_every=25,
        checkpoint_every=100,
        samples=0,
    )
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoisers, "PRESET_RUNS", {"digits": {"tiny": recipe}})
        denoisers.load_runs(denoisers.ComparisonFlags(runs=str(folder)))  # trains the missing run
        yield folder


def test_denoising_error_of_exact_denoisers_is_known(runs, tmp_path, capsys):
    config = denoising_error.Config(**SHARED, draws=8, runs=str(runs), out=str(tmp_path))
    tables = denoising_error.run(config)
    train_images = data.load("digits").train[:TRAIN].reshape(TRAIN, -1)

    # On its own points the Gaussian denoiser's error is sum v s^2 / (v + s^2), v their variances.
    variance = np.linalg.eigvalsh(np.cov(np.float64(train_images).T, bias=True)).clip(0)
    gaussian = denoisers.select(tables["errors"], kind="Gaussian", split="train")
    for sigma, mse in zip(gaussian["sigma"], gaussian["mse"], strict=True):
        expected = np.sum(variance * sigma**2 / (variance + sigma**2))
        assert mse == pytest.approx(expected, rel=0.05)

    # At small noise the empirical denoiser returns the nearest training image.
    empirical = denoisers.select(tables["errors"], kind="empirical")
    heldout = data.load("digits").test[:64].reshape(64, -1)
    nearest = oracles.two_nearest(heldout, train_images)[0][:, 0]
    assert empirical["mse"][0] == pytest.approx(0, abs=1e-9)
    assert empirical["mse"][3] == pytest.approx(np.mean(nearest**2), rel=0.02)
    np.testing.assert_array_equal(empirical["excess"], 0)
    assert denoisers.select(tables["auc"], kind="empirical")["auc"][0] == 1

    network = denoisers.select(tables["errors"], kind="network", split="train")
    assert (network["excess"] > -3 * network["excess_error"]).all()
    np.testing.assert_allclose(
        network["excess"], network["mse"] - empirical["mse"][:3], rtol=1e-4, atol=1e-4
    )

    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["runs"][0]["data"]["train"]["count"] == TRAIN
    assert facts["config"]["draws"] == 8
    assert {"runs", "tiny"} <= facts["seconds"].keys()
    printed = capsys.readouterr().out
    assert (
        "tiny: the network's training error exceeds the empirical denoiser's by at least" in printed
    )

    # The figure can be drawn again from the tables alone.
    (tmp_path / "figure.png").unlink()
    assert denoising_error.run(denoising_error.Config(plot_only=str(tmp_path))) == {}
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    np.testing.assert_array_equal(
        denoisers.read_table(tmp_path / "errors.csv")["mse"], tables["errors"]["mse"]
    )


def test_empirical_denoiser_memorizes_at_small_noise_only(runs, tmp_path, capsys):
    config = noise_level_memorization.Config(**SHARED, run=(str(runs / "tiny"),), out=str(tmp_path))
    rates = noise_level_memorization.run(config)["rates"]
    empirical = denoisers.select(rates, kind="empirical")["rate"]
    assert empirical[0] > 0.95  # one training image, nearly always
    assert empirical[-1] == 0  # their mean
    np.testing.assert_array_equal(denoisers.select(rates, kind="Gaussian")["rate"], 0)
    assert (rates["low"] <= rates["rate"]).all()
    assert (rates["rate"] <= rates["high"]).all()
    assert "tiny: the network memorizes most at sigma" in capsys.readouterr().out


def test_denoisers_approach_each_other_at_large_noise(runs, tmp_path, capsys):
    config = large_noise.Config(**SHARED, draws=1, runs=str(runs), out=str(tmp_path))
    gaps = large_noise.run(config)["gaps"]
    empirical = denoisers.select(gaps, first="empirical")
    assert empirical["gap"][-1] < 0.1 < empirical["gap"][1]
    assert empirical["distance"][-1] < 1e-3 * empirical["distance"][1]
    # The triangle inequality.
    sides = {
        (first, second): np.sqrt(denoisers.select(gaps, first=first, second=second)["distance"])
        for first, second in large_noise.PAIRS
    }
    a, b, c = sides.values()
    assert (a <= 1.001 * (b + c)).all()
    assert (c <= 1.001 * (a + b)).all()
    assert (
        "tiny: the empirical denoiser is within 10% of the Gaussian denoiser from sigma 50 on"
        in (capsys.readouterr().out)
    )


def test_local_denoisers_lie_between_copying_and_the_mean(runs, tmp_path, capsys):
    config = local_denoisers.Config(
        **SHARED | {"num_images": 32},
        num_calibration=16,
        sides=(1, 3),
        rank=4,
        runs=str(runs),
        out=str(tmp_path),
    )
    table = local_denoisers.run(config)["local"]
    assert list(dict.fromkeys(table["kind"])) == [
        *("network", "empirical", "Gaussian", "Wiener", "LS", "ELS", "PCA")
    ]
    network = denoisers.select(table, kind="network")
    np.testing.assert_array_equal(network["r2"], 1)
    empirical, ls, pca = (denoisers.select(table, kind=kind) for kind in ("empirical", "LS", "PCA"))
    # On new images, with little noise, a copy is far off; a patch of one pixel keeps the image.
    assert ls["mse"][0] < 0.1 * empirical["mse"][0]
    np.testing.assert_array_equal(empirical["patch"], 0)
    assert set(ls["patch"]) <= {1, 3}
    assert pca["mse"][0] < 0.2 * empirical["mse"][0]
    # With much noise, all return the mean image.
    for kind in ("Gaussian", "LS", "PCA"):
        last = denoisers.select(table, kind=kind)["mse"][-1]
        assert last == pytest.approx(empirical["mse"][-1], rel=0.25), kind
    for column in ("mse", "r2"):
        assert (table[f"{column}_low"] <= table[column] + 1e-5).all()
        assert (table[column] <= table[f"{column}_high"] + 1e-5).all()
    assert "the empirical denoiser predicts the network better" in capsys.readouterr().out
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_local_denoisers_reject_bad_flags(runs, tmp_path):
    def fails(match, **changes):
        flags = SHARED | {"runs": str(runs), "out": str(tmp_path / "out")} | changes
        with pytest.raises(ValueError, match=match):
            local_denoisers.run(local_denoisers.Config(**flags))

    fails(r"^sides must be odd, got 2\.$", sides=(1, 2))
    fails(r"^sides must hold at least one patch side, got none\.$", sides=())
    fails("^num_calibration must be at most half of the 897 held-out", num_calibration=500)


def test_rejects_bad_flags(tmp_path):
    def fails(match, **changes):
        with pytest.raises(ValueError, match=match):
            large_noise.run(large_noise.Config(**{"out": str(tmp_path / "out")} | changes))

    fails("^num_sigmas must be 2 or more, got 1", num_sigmas=1)
    fails(
        "^sigma_min and sigma_max must be positive and ascending, got 3 and 2",
        sigma_min=3.0,
        sigma_max=2.0,
    )
    fails(
        "^run must be the folder of a training run, got .*absent", run=(str(tmp_path / "absent"),)
    )
    fails(
        r"^run must be folders of different names, got a/base, b/base/\.$",
        run=("a/base", "b/base/"),
    )
    elsewhere = "ftp://host/x"
    for changes in ({"run": (elsewhere,)}, {"runs": elsewhere}, {"plot_only": elsewhere}):
        fails("^path must be a local path or gs://BUCKET/NAME, got ftp://host/x", **changes)
    fails("^plot_only must be the folder of a finished run, got ", plot_only=str(tmp_path))


def test_rejects_images_that_changed_since_training(runs, tmp_path):
    facts = json.loads((runs / "tiny" / "config.json").read_text())
    facts["data"]["sha256"] = "0" * 64
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (runs / "tiny").iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="must be trained on the images that digits holds now"):
        denoisers.load_run(copy)


IMAGES = data.load("digits").train[:TRAIN]


def only_copies(x, sigma):
    """An exact denoiser, as somebody else's network would be imported by its name."""
    return posterior.denoise(x, IMAGES, sigma)


def identity(x, sigma):
    """A network that removes nothing."""
    return x


def wrong_shape(x, sigma):
    """A network for other images."""
    return x[:, :4]


def test_measures_a_network_of_another_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "others", sys.modules[__name__])
    config = noise_level_memorization.Config(
        **SHARED,
        denoiser="others:only_copies",
        dataset="digits",
        num_train=TRAIN,
        out=str(tmp_path / "out"),
    )
    rates = noise_level_memorization.run(config)["rates"]
    network, empirical = (
        denoisers.select(rates, kind=kind)["rate"] for kind in ("network", "empirical")
    )
    np.testing.assert_array_equal(network, empirical)
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["runs"][0]["denoiser"] == "others:only_copies"
    with pytest.raises(ValueError, match=r"denoiser must return floats of shape \(2, 8, 8, 1\)"):
        denoisers.load_runs(dataclasses.replace(config, denoiser="others:wrong_shape"))
    with pytest.raises(ValueError, match="denoiser and dataset must be given together"):
        denoisers.load_runs(dataclasses.replace(config, dataset=None))


def test_near_duplicates_do_not_hide_copies(tmp_path, monkeypatch, capsys):
    """Each training image is there twice, with a pixel changed by a gray level."""
    monkeypatch.setitem(sys.modules, "others", sys.modules[__name__])
    images = data.load("cifar10_sample").train_split.pixels[:32]
    near = images.copy()
    near[:, 5, 5] ^= 1
    np.savez(tmp_path / "train.npz", train=np.concatenate([images, near]), test=images[:16])
    config = noise_level_memorization.Config(
        num_sigmas=2,
        sigma_min=0.001,
        sigma_max=1.0,
        denoiser="others:identity",
        dataset=str(tmp_path / "train.npz"),
        out=str(tmp_path / "out"),
    )
    rates = denoisers.select(noise_level_memorization.run(config)["rates"], kind="network")
    np.testing.assert_array_equal(rates["rate"], [1, 0])
    np.testing.assert_array_equal(rates["strict"], [0, 0])
    assert (rates["strict"] <= rates["strict_high"]).all()
    assert "(0.0% by the paper's strict definition)" in capsys.readouterr().out
