"""The zone on subsamples, and the straight line through its width."""

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


def test_subsamples_of_digits(digits):
    train, heldout, whole = digits
    grown = growth.measure(jax.random.key(1), train, heldout, whole, noised=200, fractions=(1 / 8,))
    assert grown.count.tolist() == [40] * 4 + [320]
    zone = danger_zone.find(whole, 0.8)
    # Both curves are monotone here, so the zone's edges are the two crossings.
    assert grown.reached[-1] == pytest.approx(zone.low, rel=1e-5)
    assert grown.left[-1] == pytest.approx(zone.high, rel=1e-5)
    # More shells cover more, more rivals split the posterior earlier.
    assert (grown.reached[:4] > grown.reached[4]).all()
    assert (grown.left[:4] > grown.left[4]).all()
    assert len(np.unique(grown.reached[:4])) == 4  # four different subsamples
    with pytest.raises(ValueError, match=r"fractions: 0.001 of 320 images, wanted 2 or more"):
        growth.measure(jax.random.key(1), train, heldout, whole, fractions=(0.001,))


def test_crossings_may_be_missing_or_at_the_end():
    sigma, low, high = np.array([1.0, 2.0, 4.0]), np.full(3, 0.1), np.full(3, 0.9)
    assert np.isnan(growth.crossings(sigma, low, low, 0.8)).all()
    assert growth.crossings(sigma, high, high, 0.8) == pytest.approx((1, 4))
    rising = np.array([0.0, 0.4, 1.0])
    # Linear in ln sigma: 0.8 is two thirds of the way from 0.4 at 2 to 1.0 at 4.
    expected = 2 * 2 ** (2 / 3)
    assert growth.crossings(sigma, rising, rising[::-1], 0.8)[0] == pytest.approx(expected)
    assert growth.crossings(sigma, rising, rising[::-1], 0.8)[1] == pytest.approx(4 / expected)


def test_the_line_against_linregress_and_its_band(rng):
    count = np.repeat([100, 200, 400, 800], [4, 4, 2, 1])
    width = 2 - 0.2 * np.log2(count / 100) + rng.normal(0, 0.02, len(count))
    closing = growth.extrapolate(made(count, width))
    x = np.log2(count)
    line = scipy.stats.linregress(x, width)
    quantile = scipy.stats.t.ppf(0.975, len(x) - 2)
    assert closing.slope == pytest.approx(line.slope)
    assert np.diff(closing.slope_interval)[0] == pytest.approx(2 * quantile * line.stderr)
    assert closing.closes
    assert closing.count == pytest.approx(2 ** (-line.intercept / line.slope))
    # At both ends of the interval the line's 95% band touches zero.
    residual = width - line.intercept - line.slope * x
    for end in closing.count_interval:
        z = np.log2(end)
        error = np.sqrt(
            (residual**2).sum()
            / (len(x) - 2)
            * (1 / len(x) + (z - x.mean()) ** 2 / x.var() / len(x))
        )
        assert abs(line.intercept + line.slope * z) == pytest.approx(quantile * error, rel=1e-6)
    assert closing.count_interval[0] < closing.count < closing.count_interval[1]


def test_no_sign_of_closing(rng):
    count = np.repeat([100, 200, 400, 800], [4, 4, 2, 1])
    flat = growth.extrapolate(made(count, 1 + rng.normal(0, 0.05, len(count))))
    assert not flat.closes
    assert flat.count is flat.count_interval is None
    assert growth.extrapolate(made(count, 1 + 0.1 * np.log2(count))).closes is False
    assert growth.extrapolate(made(count[:8], np.ones(8))) is None  # two sizes are no line
