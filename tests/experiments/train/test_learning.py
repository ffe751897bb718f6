"""The digits preset memorizes 128 images in minutes; no denoiser beats the empirical one."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geomem
from geomem import data
from geomem.diffusion import grids, sampler
from geomem.experiments.train import PRESETS, run_folder

pytestmark = pytest.mark.slow


def _memorized(images, training):
    """Return the fraction of images with d1 < d2 / 3 to their two nearest training images."""
    flat, reference = images.reshape(len(images), 1, -1), training.reshape(1, len(training), -1)
    distances = np.linalg.norm(flat - reference, axis=-1)
    distances.sort(axis=1)
    return np.mean(distances[:, 0] < distances[:, 1] / 3)


def _empirical(training, x, sigma):
    """Return the posterior mean over the training images, in float64 NumPy."""
    squares = ((x[:, None] - training[None]) ** 2).sum((2, 3, 4))
    logits = -(squares - squares.min(1, keepdims=True)) / (2 * sigma**2)
    weights = np.exp(logits)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("bn,nhwc->bhwc", weights, training)


def _command(folder, kimg):
    """Run the command as a user does, on one device; return the seconds."""
    flags = ["--out", str(folder), "--kimg", str(kimg), "--samples", "0"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "geomem.experiments.train", "digits", *flags],
        env={**os.environ, "XLA_FLAGS": ""},
        cwd=pathlib.Path(geomem.__file__).parents[1],
        check=True,
    )
    return time.perf_counter() - start


def test_memorizes_digits_and_approaches_the_empirical_loss(tmp_path):
    config = PRESETS["digits"]
    training = data.load("digits").subset(count=config.num_train).train.astype(np.float64)
    excess, seconds = [], 0.0
    for kimg in (50, config.kimg):
        seconds += _command(tmp_path, kimg)
        denoiser, params, shape = run_folder.load(tmp_path)
        rng, ratios = np.random.default_rng(0), []
        for sigma in (0.1, 0.3, 0.6, 1.0, 2.0, 5.0):
            clean = training[rng.integers(len(training), size=512)]
            noisy = clean + sigma * rng.normal(size=clean.shape)
            ours = np.asarray(jax.jit(denoiser)(params, jnp.asarray(noisy, jnp.float32), sigma))
            errors = [
                ((output - clean) ** 2).sum((1, 2, 3))
                for output in (ours, _empirical(training, noisy, sigma))
            ]
            gain = errors[0] - errors[1]
            # The empirical denoiser minimizes the loss: no denoiser has a smaller mean error.
            assert gain.mean() > -3 * gain.std() / np.sqrt(len(gain)), sigma
            ratios.append(gain.mean())
        excess.append(ratios)
    early, late = excess
    assert all(b < a for a, b in zip(early, late, strict=True)), excess
    images = sampler.generate(denoiser.bind(params), range(256), shape, grids.edm_grid(18))
    fraction = _memorized(images.astype(np.float64), training)
    print(f"memorized {fraction:.1%} in {seconds:.0f} s; excess loss", np.round(excess, 3).tolist())
    assert fraction >= 0.5
