"""Data of any scale through the commands: everything is in the units of the data."""

import numpy as np
import pytest

from geomem.experiments import danger_zone, sample, train
from geomem.experiments.train import presets


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Return the paths of latents with 4 channels, and of the same times 10."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(120, 4, 4, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("latents")
    for factor in (1, 10):
        np.savez(folder / f"x{factor}.npz", train=factor * values[:80], test=factor * values[80:])
    return folder / "x1.npz", folder / "x10.npz"


def test_zone_scales_with_the_data(latents, tmp_path):
    zones = []
    for path, options in ((latents[0], {}), (latents[1], {}), (latents[1], {"scale": 0.1})):
        config = danger_zone.Config(
            dataset=str(path), num_sigmas=12, threshold=0.3, out=str(tmp_path / "out"), **options
        )
        zones.append(danger_zone.run(config).zone)
    for factor, zone in zip((10, 1), zones[1:], strict=True):
        for field in ("low", "high", "peak"):
            expected = factor * getattr(zones[0], field)
            assert getattr(zone, field) == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_trains_and_samples_latents(latents, tmp_path, capsys):
    config = presets.PRESETS["digits"]
    config = train.Config(
        **{**vars(config), "dataset": str(latents[1]), "num_train": None, "channels": 8},
    )
    config = train.Config(
        **{**vars(config), "kimg": 0.256, "batch": 64, "samples": 4, "out": str(tmp_path / "run")}
    )
    assert train.run(config).finished
    assert "--scale 0.05" in capsys.readouterr().err  # EDM's noise is for a deviation of 0.5
    assert np.load(tmp_path / "run" / "samples_0000004.npy").shape == (4, 4, 4, 4)
    images = sample.run(sample.Config(run=str(tmp_path / "run"), count=3, out=str(tmp_path / "s")))
    assert images.images.shape == (3, 4, 4, 4)


def test_training_refuses_vectors(tmp_path):
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(20, 8)))
    config = train.Config(dataset=str(tmp_path / "vectors.npy"), out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"dataset must be images or latents .*, got \(16, 8\)"):
        train.run(config)
