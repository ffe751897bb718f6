"""Latents of a real autoencoder through all commands; their units are those of the latents."""

import dataclasses

import numpy as np
import pytest

from geomem import data
from geomem.experiments import audit, danger_zone, evaluate, sample, train


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Return an .npz of latents [N, C, H, W] from diffusers' AutoencoderKL with random weights."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    blocks = {"block_out_channels": (16, 16, 16), "norm_num_groups": 8, "latent_channels": 4}
    kinds = {"down_block_types": 3 * ("DownEncoderBlock2D",)}
    vae = diffusers.AutoencoderKL(**blocks, **kinds, up_block_types=3 * ("UpDecoderBlock2D",))
    images = data.load("cifar10_sample")
    path = tmp_path_factory.mktemp("latents") / "latents.npz"
    with torch.inference_mode():
        train_set, test_set = (
            vae.encode(torch.tensor(split[:160]).movedim(-1, 1)).latent_dist.mean.numpy()
            for split in (images.train, images.test)
        )
    assert train_set.shape == (160, 4, 8, 8)
    np.savez(path, train=train_set, test=test_set)
    return path


@pytest.mark.slow
def test_vae_latents_go_through_all_commands(latents, tmp_path):
    given = {"dataset": str(latents), "layout": "NCHW"}
    zones = []
    for scale in (None, 0.18215):
        config = danger_zone.Config(
            **given, scale=scale, num_sigmas=12, threshold=0.5, out=str(tmp_path / "zone")
        )
        zones.append(danger_zone.run(dataclasses.replace(config, out=f"{config.out}{scale}")).zone)
    assert zones[0].low is not None
    for edge in ("low", "high"):
        whole, scaled = (getattr(zone, edge) for zone in zones)
        assert scaled == pytest.approx(0.18215 * whole, rel=5e-3)

    settings = {"num_sigmas": 12, "growth": False, "out": str(tmp_path / "audit")}
    report = audit.run(audit.Config(**given, **settings)).report
    assert not report["dataset"]["images"]
    assert report["wider_zone"]["low"] == pytest.approx(zones[0].low, rel=5e-3)
    assert (
        f"--noise-mean {np.log(report['dataset']['standard_deviation'] / 0.5) - 1.2:.3g}"
        in (report["commands"][0])
    )

    run = str(tmp_path / "run")
    tiny = dataclasses.replace(
        train.PRESETS["digits"], **given, num_train=None, channels=8, batch=16, kimg=0.064
    )
    tiny = dataclasses.replace(tiny, sigma_data=0, samples=0, watch=True, watch_samples=8, out=run)
    assert train.run(tiny).finished
    out = str(tmp_path / "samples.npz")
    assert sample.run(sample.Config(run=run, count=8, out=out)).images.shape == (8, 8, 8, 4)
    result = evaluate.run(evaluate.Config(samples=out, run=run, out=str(tmp_path / "evaluate")))
    assert result.report.memorized.total == 8
