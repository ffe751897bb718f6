"""The zone on curves with known crossings, and of CIFAR-10 on many grids."""

import jax
import numpy as np
import oracles
import pytest
from scipy.special import expit, logit

from geomem.geometry import curves as curves_lib
from geomem.geometry import danger_zone, shells
from geomem.geometry.curves import Curves, Estimate

GRID = np.geomspace(0.1, 10, 9)  # log10 spacing 1/4


def curves(coverage, weight, spread=0.0, replicates=200, grid=GRID):
    """Return curves with these means; replicates add noise of size `spread` to the logits."""
    rng = np.random.default_rng(0)

    def estimate(mean):
        mean = np.asarray(mean, float)
        shifts = spread * rng.standard_normal((replicates, 1))
        return Estimate(mean, mean, mean, expit(logit(np.clip(mean, 1e-12, 1 - 1e-12)) + shifts))

    zero = np.zeros(len(grid))
    return Curves(grid, estimate(coverage), zero, zero, estimate(weight), zero, zero, zero)


def sigmoid(middle, slope, grid=GRID):
    """A logistic function of log10 sigma."""
    return expit(slope * (np.log10(grid) - middle))


def test_edges_of_logistic_curves_are_exact():
    """Logits that are linear in log sigma: 0.6 is reached logit(0.6) / slope from the middle."""
    zone = danger_zone.find(curves(sigmoid(-0.6, 5), sigmoid(0.7, -4)), 0.6)
    edges = [-0.6 + logit(0.6) / 5, 0.7 - logit(0.6) / 4]
    assert np.log10([zone.low, zone.high]) == pytest.approx(edges, abs=1e-3)
    peak = (4 * 0.7 - 5 * 0.6) / 9  # 5 (x + 0.6) = 4 (0.7 - x)
    assert np.log10(zone.peak) == pytest.approx(peak, abs=1e-3)
    assert zone.peak_level == pytest.approx(expit(4 * (0.7 - peak)), abs=1e-3)
    assert zone.low_interval == pytest.approx((zone.low, zone.low))
    assert zone.confidence == 1
    assert (zone.open_low, zone.open_high) == (False, False)
    assert zone.intervals == ((zone.low, zone.high),)
    assert f"sigma from {zone.low:.3g} [" in str(zone)
    assert (
        repr(zone)
        == f"Zone({zone.low:.3g} to {zone.high:.3g}, peak {zone.peak:.3g}, threshold 0.6)"
    )


def test_intervals_cover_the_edges():
    shifted = curves(sigmoid(-0.6, 5), sigmoid(0.7, -4), spread=0.25, replicates=4000)
    zone = danger_zone.find(shifted, 0.6)
    # A shift of the logit by e moves log10 of its edge by e / slope.
    for edge, interval, slope in (
        (zone.low, zone.low_interval, 5),
        (zone.high, zone.high_interval, 4),
    ):
        widths = np.log10(np.array(interval) / edge)
        assert widths == pytest.approx([-1.96 * 0.25 / slope, 1.96 * 0.25 / slope], rel=0.1)


def test_zone_is_where_both_curves_reach_threshold():
    """Compare with the definition, on a fine grid of the same interpolated curves."""
    grid = np.geomspace(0.1, 10, 4001)
    fine = curves(sigmoid(-0.5, 9, grid), sigmoid(0.3, -6, grid), grid=grid, replicates=1)
    for threshold in (0.3, 0.8, 0.9):
        inside = grid[danger_zone.in_zone(fine.coverage.mean, fine.max_weight.mean, threshold)]
        zone = danger_zone.find(fine, threshold)
        assert (zone.low, zone.high) == pytest.approx((inside[0], inside[-1]), rel=2e-3)
        assert danger_zone.crossings(fine, threshold) == pytest.approx((zone.low, zone.high))


def test_finds_zone_within_one_grid_cell():
    rising = np.where(np.arange(9) <= 4, 0.0, 1.0)
    falling = np.where(np.arange(9) <= 4, 1.0, 0.0)
    zone = danger_zone.find(curves(rising, falling), 0.4)
    middle = np.log10(GRID[4]) + 0.125
    assert np.log10(zone.peak) == pytest.approx(middle)
    # Logits of 1e-4 and 1 - 1e-4 at the ends of the cell.
    half = 0.125 * logit(0.6) / logit(1 - 1e-4)
    assert np.log10([zone.low, zone.high]) == pytest.approx(
        [middle - half, middle + half], abs=1e-5
    )


def test_returns_all_intervals_main_one_first():
    """Two bumps: the interval of the higher one comes first, and the bootstrap stays with it."""
    grid = np.geomspace(0.1, 10, 41)
    bumps = np.maximum(sigmoid(-0.7, 20, grid) * sigmoid(-0.3, -20, grid), 0.02)
    bumps = np.maximum(bumps, 0.93 * sigmoid(0.2, 20, grid) * sigmoid(0.7, -20, grid))
    zone = danger_zone.find(curves(bumps, np.ones(41), spread=0.2, grid=grid), 0.8)
    assert len(zone.intervals) == 2
    assert zone.intervals == ((zone.low, zone.high), *zone.others)
    assert zone.low < 0.4 < zone.others[0][0]
    for edge, interval in ((zone.low, zone.low_interval), (zone.high, zone.high_interval)):
        assert interval[0] <= edge <= interval[1]
        assert interval[1] / interval[0] < 1.3
    assert "Both curves also reach the threshold from" in str(zone)


def test_returns_an_empty_zone():
    zone = danger_zone.find(curves(0.5 * sigmoid(-0.6, 5), sigmoid(0.7, -4)), 0.8)
    assert (zone.low, zone.high, zone.low_interval, zone.confidence) == (None, None, None, 0.0)
    assert 0.45 < zone.peak_level < 0.5
    assert zone.intervals == ()
    assert repr(zone).startswith("Zone(empty, peak")
    assert str(zone).startswith("No danger zone at threshold 0.8")


def test_marks_open_ends():
    open_curves = curves(np.full(9, 0.9), np.full(9, 0.95))
    zone = danger_zone.find(open_curves, 0.8)
    assert (zone.low, zone.high) == pytest.approx((0.1, 10.0))
    assert zone.open_low
    assert zone.open_high
    assert "0.1 (the smallest noise level: the zone may extend beyond it)" in str(zone)
    assert "10 (the largest noise level: the zone may extend beyond it)" in str(zone)
    assert np.isnan(danger_zone.crossings(open_curves, 0.8)).all()


def test_crossings_without_a_zone():
    """Coverage rises after the weight has fallen; a curve below the threshold has no crossing."""
    apart = curves(sigmoid(0.4, 8), sigmoid(-0.4, -8))
    expected = 10 ** np.array([0.4 + logit(0.8) / 8, -0.4 - logit(0.8) / 8])
    assert danger_zone.crossings(apart, 0.8) == pytest.approx(expected, rel=2e-3)
    assert danger_zone.find(apart, 0.8).low is None
    assert np.isnan(danger_zone.crossings(curves(np.full(9, 0.1), np.full(9, 0.1)), 0.8)).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan"), "0.8", None, [0.5]])
def test_rejects_bad_threshold(threshold):
    with pytest.raises(ValueError, match=r"threshold must be .*between 0 and 1, got .*\."):
        danger_zone.find(curves(sigmoid(-0.6, 5), sigmoid(0.7, -4)), threshold)


def test_rejects_nan():
    coverage = sigmoid(-0.6, 5)
    coverage[3] = np.nan
    with pytest.raises(ValueError, match=r"coverage must be finite, got nan at sigma 0.562341\."):
        danger_zone.find(curves(coverage, sigmoid(0.7, -4)))


def test_rejects_what_are_no_curves():
    good = curves(sigmoid(-0.6, 5), sigmoid(0.7, -4))
    with pytest.raises(ValueError, match="sigmas must be ascending"):
        danger_zone.find(good._replace(sigma=good.sigma[::-1]))
    with pytest.raises(ValueError, match=r"coverage must have \d+ levels like sigma, got"):
        danger_zone.find(good._replace(sigma=good.sigma[:-1]))
    with pytest.raises(ValueError, match=r"curves must be Curves, from estimate, got dict\."):
        danger_zone.find({})


def edges_in_float64(train, heldout, draws, rng):
    """The two edges at 0.8 on a fine grid, by a plain loop over draws and levels."""
    train, heldout = np.float64(train), np.float64(heldout)
    r_in, r_out = shells.radii(train.shape[1])
    rising, falling = np.geomspace(1.5, 1.75, 9), np.geomspace(4.6, 5.6, 9)
    covered, weight = np.zeros(9), np.zeros(9)
    for points, values, sigmas in ((heldout, covered, rising), (train, weight, falling)):
        squares = oracles.squared_distances(points, train)
        for _ in range(draws):
            z = rng.standard_normal(points.shape)
            inner = (z * points).sum(1)[:, None] - z @ train.T
            norms = (z**2).sum(1)[:, None]
            for s, sigma in enumerate(sigmas):
                radius2 = squares / sigma**2 + 2 * inner / sigma + norms
                if values is covered:
                    inside = (radius2 >= r_in**2) & (radius2 <= r_out**2)
                    values[s] += inside.any(1).mean() / draws
                else:
                    ratio = np.exp(-(radius2 - radius2.min(1, keepdims=True)) / 2)
                    values[s] += (1 / ratio.sum(1)).mean() / draws
    return np.interp(0.8, covered, rising), np.interp(-0.8, -weight, falling)


@pytest.mark.slow
def test_edges_do_not_depend_on_the_grid(cifar, rng):
    """Grids of 17 to 128 levels agree within 0.5%, and with float64 loops within the interval."""
    grids = [np.geomspace(0.02, 80, count) for count in (17, 31, 32, 33, 45, 64, 128)]
    grids.append(np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 18) ** 7)  # EDM's
    zones = [
        danger_zone.find(curves_lib.estimate(jax.random.key(0), *cifar, grid)) for grid in grids
    ]
    for edge, interval, expected in zip(
        ("low", "high"),
        ("low_interval", "high_interval"),
        edges_in_float64(*cifar, 8, rng),
        strict=True,
    ):
        edges = np.array([getattr(zone, edge) for zone in zones])
        assert edges.max() / edges.min() < 1.005
        for zone in zones:
            low, high = getattr(zone, interval)
            assert low <= expected <= high
