"""The zone of curves whose crossings are known in closed form."""

import numpy as np
import pytest

from geomem.geometry import danger_zone
from geomem.geometry.curves import Curves, Estimate

GRID = np.geomspace(0.1, 10, 9)  # log10 spacing 1/4


def curves(coverage, weight, spread=0.0, replicates=200):
    """Curves with these means; replicates shift both means by normal noise of size `spread`."""
    rng = np.random.default_rng(0)

    def estimate(mean):
        mean = np.asarray(mean, float)
        shifts = spread * rng.standard_normal((replicates, 1))
        return Estimate(mean, mean, mean, mean + shifts)

    nothing = np.zeros(len(GRID))
    return Curves(GRID, estimate(coverage), nothing, nothing, estimate(weight), *[nothing] * 3)


def ramp(start, end):
    """Linear in log10 sigma from 0 at `start` to 1 at `end`, clipped."""
    return np.clip((np.log10(GRID) - start) / (end - start), 0, 1)


def test_edges_are_interpolated_in_log_sigma():
    zone = danger_zone.find(curves(ramp(-1, 0), 1 - ramp(0, 1)), 0.6)
    assert np.log10([zone.low, zone.high, zone.peak]) == pytest.approx([-0.4, 0.4, 0.0], abs=1e-9)
    assert zone.low_interval == pytest.approx((zone.low, zone.low))
    assert (zone.peak_level, zone.confidence) == pytest.approx((1, 1))
    assert (zone.open_low, zone.open_high) == (False, False)
    assert "sigma from 0.398" in str(zone)


def test_intervals_cover_the_edges():
    zone = danger_zone.find(curves(ramp(-1, 0), 1 - ramp(0, 1), spread=0.05, replicates=4000), 0.6)
    # A shift of the curve by e moves log10 of its edge by e.
    for edge, interval in ((zone.low, zone.low_interval), (zone.high, zone.high_interval)):
        widths = np.log10(np.array(interval) / edge)
        assert widths == pytest.approx([-1.96 * 0.05, 1.96 * 0.05], rel=0.1)


def test_a_zone_inside_one_cell_is_found():
    rising = np.where(np.arange(9) <= 4, 0.0, 1.0)
    falling = np.where(np.arange(9) <= 4, 1.0, 0.0)
    zone = danger_zone.find(curves(rising, falling), 0.4)
    middle = np.log10(GRID[4]) + 0.125
    assert np.log10(zone.peak) == pytest.approx(middle)
    assert np.log10([zone.low, zone.high]) == pytest.approx([middle - 0.025, middle + 0.025])


def test_an_empty_zone_is_a_result():
    zone = danger_zone.find(curves(0.5 * ramp(-1, 0), 1 - ramp(0, 1)), 0.8)
    assert (zone.low, zone.high, zone.low_interval, zone.confidence) == (None, None, None, 0.0)
    assert zone.peak_level == pytest.approx(0.5)
    assert str(zone).startswith("No danger zone at threshold 0.8")


def test_a_zone_that_touches_the_ends_says_so():
    zone = danger_zone.find(curves(np.full(9, 0.9), np.full(9, 0.95)), 0.8)
    assert (zone.low, zone.high) == pytest.approx((0.1, 10.0))
    assert zone.open_low
    assert zone.open_high
    assert "(the end of the grid)" in str(zone)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_bad_threshold_is_named(threshold):
    with pytest.raises(ValueError, match=r"threshold: .*, wanted between 0 and 1"):
        danger_zone.find(curves(ramp(-1, 0), 1 - ramp(0, 1)), threshold)
