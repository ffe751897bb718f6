"""The zone on subsamples, and the slope of its width."""

import jax
import numpy as np
import pytest
import scipy.stats

from geomem import data
from geomem.geometry import curves, danger_zone, growth

SIGMAS = np.geomspace(0.05, 20, 9)


def made(count, width):
    one = np.ones(len(count))
    return growth.Growth(np.array(count), one, np.exp(width), one, one, 0.8)


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    train, heldout = (images.reshape(len(images), -1) for images in (dataset.train, dataset.test))
    train, heldout = train[:320], heldout[:200]
    whole = curves.estimate(
        jax.random.key(0), train, heldout, SIGMAS, num_base=200, draws_coverage=4, bootstrap=20
    )
    return train, heldout, whole


def test_subsamples_move_the_zone_to_larger_noise(digits):
    train, heldout, whole = digits
    result = growth.measure(
        jax.random.key(1), train, heldout, whole, noised=200, fractions=(1 / 8,)
    )
    assert result.count.tolist() == [40] * 4 + [320]
    zone = danger_zone.find(whole, 0.8)
    # Both curves are monotone here, so the zone's edges are the two crossings.
    assert result.reached[-1] == pytest.approx(zone.low, rel=1e-5)
    assert result.left[-1] == pytest.approx(zone.high, rel=1e-5)
    # More shells cover more; more neighbors split the posterior at smaller noise.
    assert (result.reached[:4] > result.reached[4]).all()
    assert (result.left[:4] > result.left[4]).all()
    assert len(np.unique(result.reached[:4])) == 4  # four different subsamples
    with pytest.raises(
        ValueError, match=r"fractions must each leave at least 2 of 320 images, got 0.001\."
    ):
        growth.measure(jax.random.key(1), train, heldout, whole, fractions=(0.001,))


def test_slope_matches_least_squares(rng):
    count = np.repeat([100, 200, 400, 800], [4, 4, 2, 1])
    width = 2 - 0.2 * np.log2(count / 100) + rng.normal(0, 0.02, len(count))
    closing = growth.extrapolate(made(count, width))
    x = np.log2(count)
    centered = x - x.mean()
    slope = (centered @ width) / (centered @ centered)
    residual = width - width.mean() - slope * centered
    error = np.sqrt(residual @ residual / (len(x) - 2) / (centered @ centered))
    assert closing.slope == pytest.approx(slope)
    quantile = scipy.stats.t.ppf(0.975, len(x) - 2)
    assert closing.slope_interval == pytest.approx(
        (slope - quantile * error, slope + quantile * error)
    )
    assert closing.closes


def test_line_ignores_open_ends():
    count = np.repeat([100, 200, 400, 800], [4, 4, 2, 1])
    width = 2 - 0.2 * np.log2(count / 100)
    width[2] = np.nan
    assert growth.extrapolate(made(count, width)).slope == pytest.approx(-0.2)


def test_flat_or_wider_zones_do_not_close(rng):
    count = np.repeat([100, 200, 400, 800], [4, 4, 2, 1])
    flat = growth.extrapolate(made(count, 1 + rng.normal(0, 0.05, len(count))))
    assert not flat.closes
    assert growth.extrapolate(made(count, 1 + 0.1 * np.log2(count))).closes is False
    assert growth.extrapolate(made(count[:8], np.ones(8))) is None  # two sizes are too few
