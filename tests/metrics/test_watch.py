"""Watching a training: numbers whose right values are known, and a PyTorch training loop."""

import numpy as np
import pytest

from geomem import data
from geomem.diffusion import adapters, conventions
from geomem.geometry import posterior
from geomem.metrics import intervals, watch

TRAIN, LEVELS = 96, (0.5, 0.8, 1.1)
GRID = np.array([80.0, 5.0, 1.0, 0.3, 0.05, 0.0])


@pytest.fixture(scope="module")
def digits():
    """Return training and held-out digits of the same writers."""
    images = np.random.default_rng(0).permutation(data.load("digits").train)
    return images[:TRAIN], images[TRAIN : 2 * TRAIN]


def observe(denoiser, train, heldout, **options):
    return watch.observe(denoiser, train, heldout, count=32, sigmas=GRID, levels=LEVELS, **options)


def test_sees_that_the_empirical_denoiser_copies(digits):
    seen = observe(posterior.empirical_denoiser(digits[0]), *digits)
    assert seen.copying
    assert (seen.memorized.rate, seen.memorized_heldout.rate) == (1, 0)
    assert seen.heldout_ratio.high < 0.05
    assert min(gap.low for gap in seen.denoising_gap) > 0.3


def test_sees_no_copies_in_held_out_images(digits):
    train, heldout = digits
    seen = watch.observe(None, train, heldout[:48], samples=heldout[48:])
    assert not seen.copying
    assert seen.heldout_ratio.low < 1 < seen.heldout_ratio.high
    assert seen.denoising_gap == ()
    assert abs(seen.quality.value) < 0.05


def test_finds_no_gap_in_a_denoiser_of_other_images(digits):
    train, heldout = digits
    others = data.load("digits").test[:TRAIN]
    seen = observe(posterior.empirical_denoiser(others), train, heldout)
    assert not seen.copying
    for gap in seen.denoising_gap:
        assert gap.low - 0.1 < 0 < gap.high + 0.1


def test_intervals_of_ratios_cover(rng):
    truth = 0.8
    first, second = rng.gamma(3, truth, (2000, 100)), rng.gamma(3, 1.0, (2000, 60))
    covered = [r.low <= truth <= r.high for r in map(watch.ratio, first, second)]
    assert 0.93 < np.mean(covered) < 0.97


def test_copying_is_rarely_announced_without_copies(rng):
    """At equal rates, the exact intervals of 256 samples and 256 images almost always overlap."""
    for rate in (0.0, 0.02, 0.3):
        samples, heldout = rng.binomial(256, rate, (2, 2000))
        bounds = {k: intervals.rate(np.arange(256) < k)[3:] for k in {*samples, *heldout}}
        false = [bounds[a][0] > bounds[b][1] for a, b in zip(samples, heldout, strict=True)]
        assert np.mean(false) < 0.01


def test_rejects_missing_images(digits):
    train, heldout = digits
    with pytest.raises(ValueError, match="samples must be given without a denoiser"):
        watch.observe(None, train, heldout)
    with pytest.raises(ValueError, match="heldout must hold images that are not in train"):
        watch.observe(None, train, train[:5], samples=heldout)


def test_watches_a_pytorch_training(digits):
    """The callback of docs/howto/watch.md, in a loop whose network moves to the training images."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    train, heldout = digits
    alphas_cumprod = np.cumprod(1 - conventions.linear_betas())

    class Network(torch.nn.Module):
        """Predicts the noise as the exact empirical denoiser of a part of the images does."""

        def __init__(self, images):
            super().__init__()
            self.images = torch.nn.Parameter(torch.tensor(images).movedim(-1, 1))

        def forward(self, x, t):
            abar = torch.tensor(alphas_cumprod, dtype=x.dtype)
            low = t.long().clamp(max=998)
            part = t - low
            logs = torch.log((1 - abar) / abar) / 2
            sigma = torch.exp(logs[low] * (1 - part) + logs[low + 1] * part)[:, None, None, None]
            noisy = x * torch.sqrt(1 + sigma**2)
            squares = ((noisy[:, None] - self.images) ** 2).sum(dim=(2, 3, 4))
            weights = torch.softmax(-squares / (2 * sigma[:, :, 0, 0] ** 2), dim=1)
            return (noisy - torch.einsum("bn,nchw->bchw", weights, self.images)) / sigma

    network = Network(data.load("digits").test[:TRAIN])
    denoiser = adapters.adapt(
        adapters.from_torch(network), "epsilon", adapters.ddpm_input(alphas_cumprod)
    )
    target = torch.tensor(train).movedim(-1, 1)
    copying = []
    for weight in (0.0, 1.0):  # two steps toward the training images
        network.images.data.lerp_(target, weight)
        copying.append(observe(denoiser, train, heldout).copying)
    assert copying == [False, True]
