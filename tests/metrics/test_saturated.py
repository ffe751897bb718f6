"""The second look at saturated samples: against a loop over pixels, and on bright photographs."""

import numpy as np
import pytest

from geomem import data
from geomem.metrics import aligned, alignment, planted, saturated
from geomem.metrics.alignment import Alignment, Transform


def loop(sample, image, transform, gain):
    """The squared distance over the pixels that are known, one by one."""
    flip, _, down, right = transform
    height, width, channels = image.shape
    y = sample[:, ::-1] if flip else sample
    pairs = [
        (y[i - down, j - right, c], image[i, j, c])
        for i in range(height)
        for j in range(width)
        for c in range(channels)
        if 0 <= i - down < height and 0 <= j - right < width
    ]
    y, x = np.float64([p for p in pairs if abs(p[0]) < 0.999]).T
    gains = np.geomspace(1 / gain, gain, 4001)[:, None]
    residual = gains * (y - y.mean()) - (x - x.mean())
    return image.size / len(x) * (residual**2).sum(axis=1).min()


@pytest.mark.parametrize("transform", [Transform(False, 0, 0, 0), Transform(True, 0, 2, -1)])
def test_distances_equal_a_loop(rng, transform):
    sample = np.clip(rng.normal(size=(6, 7, 3)), -1, 1)
    train = rng.uniform(-1, 1, (5, 6, 7, 3)).astype(np.float32)
    train[0] = 0.7 * sample - 0.1
    copy, mask = saturated.aligned_copy(sample, transform)
    squares = saturated.squared_distances(copy, mask, train, 2.0)
    slow = [loop(sample, image, transform, 2.0) for image in train]
    np.testing.assert_allclose(squares, slow, rtol=1e-6, atol=1e-6)


def test_without_saturation_it_is_the_aligned_distance(rng):
    """Also for crops, which shrink the sample."""
    sample = rng.uniform(-0.9, 0.9, (16, 16, 3))
    train = rng.uniform(-1, 1, (4, 16, 16, 3))
    for transform in Alignment(shift=1, crop=2, gain=2.0).transforms():
        copy, mask = saturated.aligned_copy(sample, transform)
        pairs = np.repeat(sample[None], 4, axis=0), train
        expected = alignment.squared_distances(*pairs, transform, 2.0)
        squares = saturated.squared_distances(copy, mask, train, 2.0)
        np.testing.assert_allclose(squares, expected, rtol=1e-9)


def test_finds_bright_copies_that_were_clipped():
    dataset = data.load("cifar10_sample")
    train = dataset.train[:64]
    # The brightest images, which lose most, also mirrored.
    bright = np.argsort(train.mean(axis=(1, 2, 3)))[-8:]
    copies = planted.plant("brightness x1.3", train[bright])
    samples = np.concatenate([copies, np.flip(copies, 2), dataset.test[:48]])
    settings = Alignment(shift=1, gain=2.0)
    found = aligned.nearest(samples, train, settings)
    refined = saturated.refine(found, samples, train, settings, np.arange(64), 0.5)
    right = refined.index[:16, 0] == np.tile(bright, 2)
    assert (right & (refined.ratio[:16] < 0.5)).sum() > (found.ratio[:16] < 0.5).sum()
    assert (right & (refined.ratio[:16] < 0.5)).sum() >= 14
    np.testing.assert_array_equal(refined.ratio[16:], found.ratio[16:])
