"""Noise schedules against their closed-form CDF, computed from SciPy alone."""

import itertools
import json

import jax
import numpy as np
import pytest
import scipy.stats

from geomem.diffusion import grids, schedules
from geomem.experiments.train import configuration

BASE = schedules.lognormal()
CASES = {
    "lognormal": (BASE, []),
    "gap": (schedules.gap(BASE, 0.14, 5.3), [(0.14, 5.3, 0.0)]),
    "thinned": (schedules.gap(BASE, 0.14, 5.3, keep=0.25), [(0.14, 5.3, 0.25)]),
    "left": (schedules.gap(BASE, 1e-4, 0.3), [(1e-4, 0.3, 0.0)]),
    "far right": (schedules.gap(BASE, 1.0, 200.0), [(1.0, 200.0, 0.0)]),
    "most": (schedules.gap(BASE, 0.02, 1000.0), [(0.02, 1000.0, 0.0)]),
    "two": (
        schedules.gap(schedules.gap(BASE, 0.1, 0.2), 0.15, 3.0, keep=0.5),
        [(0.1, 0.2, 0.0), (0.2, 3.0, 0.5)],
    ),
}


def _cdf(gaps):
    """CDF of the lognormal with the density in each (low, high) multiplied by a factor."""
    normal = scipy.stats.norm(-1.2, 1.2)

    def unnormalized(sigma):
        sigma = np.asarray(sigma, float)
        value = normal.cdf(np.log(sigma))
        for low, high, keep in gaps:
            inside = normal.cdf(np.log(np.clip(sigma, low, high))) - normal.cdf(np.log(low))
            value = value - (1 - keep) * inside
        return value

    return lambda sigma: unnormalized(sigma) / unnormalized(1e30)


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_cdf(name):
    schedule, gaps = CASES[name]
    draws = np.asarray(schedule.sample(jax.random.key(0), (1_000_000,)), np.float64)
    assert np.isfinite(draws).all()
    assert (draws > 0).all()
    assert scipy.stats.kstest(draws, _cdf(gaps)).pvalue > 0.01
    for low, high, keep in gaps:
        assert keep or not ((draws > low) & (draws < high)).any()


@pytest.mark.parametrize("name", CASES)
def test_mass_matches_the_cdf(name):
    schedule, gaps = CASES[name]
    cdf = _cdf(gaps)
    for low, high in [(0.01, 0.12), (0.5, 4.0), (2.0, 90.0), (0.0, np.inf)]:
        expected = cdf(high if high < 1e30 else 1e30) - (cdf(low) if low else 0)
        assert schedule.mass(low, high) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("probability", [1e-6, 0.3, 0.999])
def test_quantile_inverts_mass(name, probability):
    schedule, _ = CASES[name]
    assert schedule.mass(0, schedule.quantile(probability)) == pytest.approx(probability, abs=1e-9)


def test_far_tails_are_accurate():
    # The gap leaves the right 1.2% of the base: every draw is a tail quantile.
    low, high = 1e-6, 4.5
    schedule = schedules.gap(BASE, low, high)
    draws = np.asarray(schedule.sample(jax.random.key(1), (1_000_000,)), np.float64)
    tail = scipy.stats.norm(-1.2, 1.2).sf
    quantiles = tail(np.log(draws)) / tail(np.log(high))
    assert scipy.stats.kstest(quantiles, "uniform").pvalue > 0.01
    # Accurate to the end of the tail: the smallest of a million uniforms is about 1e-6.
    assert 1e-8 < quantiles.min() < 1e-5
    # The same in the left tail, mirrored about the median.
    mirrored = schedules.gap(BASE, np.exp(-2.4) / high, 1e6)
    left = np.asarray(mirrored.sample(jax.random.key(2), (1_000_000,)), np.float64)
    quantiles = scipy.stats.norm(-1.2, 1.2).cdf(np.log(left)) / tail(np.log(high))
    assert scipy.stats.kstest(quantiles, "uniform").pvalue > 0.01


def test_dummy_keeps_the_draws_and_marks_the_interval():
    schedule = schedules.dummy(BASE, 0.5, 2.0)
    draws = schedule.sample(jax.random.key(3), (1000,))
    np.testing.assert_array_equal(draws, BASE.sample(jax.random.key(3), (1000,)))
    marked = np.asarray(schedule.is_dummy(draws))
    np.testing.assert_array_equal(marked, (draws >= 0.5) & (draws <= 2.0))
    assert marked.any()
    assert not BASE.is_dummy(draws).any()


def test_schedules_share_one_compilation(count_compilations):
    sample = jax.jit(lambda levels, key: levels.sample(key, (4,)))
    key = jax.random.key(0)
    sample(BASE.levels(), key)
    levels = [schedule.levels() for schedule, _ in CASES.values()]
    with count_compilations() as compiled:
        draws = [sample(arrays, key) for arrays in levels]
    assert not compiled
    for (schedule, _), drawn in zip(CASES.values(), draws, strict=True):
        np.testing.assert_allclose(drawn, schedule.sample(key, (4,)), rtol=1e-6)


def test_edm_grid_matches_the_paper():
    grid = grids.edm_grid(18)
    root = [80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7)) for i in range(18)]
    np.testing.assert_allclose(grid, [*(r**7 for r in root), 0], rtol=1e-12)
    # The paper's medium steps 6..13 are about 8.4 down to 0.14.
    assert grid[6] == pytest.approx(8.4, abs=0.05)
    assert grid[13] == pytest.approx(0.14, abs=0.005)


@pytest.mark.parametrize("name", CASES)
def test_sampling_grid_skips_gaps(name):
    schedule, intervals = CASES[name]
    empty = [(low, high) for low, high, keep in intervals if keep == 0]
    assert schedule.gaps == tuple(empty)
    grid = grids.edm_grid(18)
    over = grids.skip_gaps(grid, schedule)
    assert (np.diff(over) < 0).all()
    assert (over[0], over[-1]) == (80, 0)
    crossed = [(low, high) for low, high in empty if high < 80 and low > 0.002]
    for low, high in crossed:
        assert {low, high} <= set(over)
    inside = np.any([(grid > low) & (grid < high) for low, high in crossed], axis=0)
    assert set(over) == set(grid[~inside] if crossed else grid) | set(itertools.chain(*crossed))


def test_adjacent_gaps_are_merged():
    schedule = schedules.gap(schedules.gap(BASE, 0.1, 0.2), 0.2, 3.0)
    assert schedule.gaps == ((0.1, 3.0),)


def test_accepts_numpy_edges():
    schedule = schedules.gap(BASE, np.float32(0.5), np.int64(5))
    assert schedule == schedules.gap(BASE, 0.5, 5)


def test_reads_zone_files(tmp_path):
    path = tmp_path / "zone.json"
    path.write_text(json.dumps({"low": 0.3, "high": 4, "peak": 2}))
    assert configuration.read_zone(path) == (0.3, 4)
    for text, message in [
        ('{"low": null, "high": null}', "must hold a danger zone, got .* low and high are null"),
        ('{"low": 1}', "must be a JSON file with low and high, got"),
        ("[1, 2]", "must be a JSON file with low and high, got"),
        ("not json", "must be a JSON file with low and high, got"),
        ('{"low": "a", "high": "b"}', "must satisfy 0 < low < high"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            configuration.read_zone(path)
    message = r"gap_from must be a JSON file with low and high, got nowhere\.json \(no such file"
    with pytest.raises(ValueError, match=message):
        configuration.read_zone("nowhere.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.gap(BASE, 2, 1), "^gap must satisfy 0 < low < high, got 2 to 1"),
        (lambda: schedules.gap(BASE, 1, 1), "^gap must .*, got 1 to 1"),
        (lambda: schedules.gap(BASE, -1, 1), "^gap must .*, got -1 to 1"),
        (lambda: schedules.gap(BASE, float("nan"), 1), "^gap must .*, got nan to 1"),
        (lambda: schedules.gap(BASE, 1e-3, 1e3), "^gap must leave at least 1% .* leaves 0.00%"),
        (lambda: schedules.gap(BASE, 1, 2, keep=1), r"^keep must be in \[0, 1\), got 1"),
        (lambda: schedules.dummy(BASE, 2, 1), "^dummy must .*, got 2 to 1"),
        (lambda: BASE.quantile(1), "^probability must be between 0 and 1, got 1"),
        (lambda: schedules.lognormal(std=0), "^std must be positive and at most 60, got 0"),
        (lambda: schedules.lognormal(np.nan), "^mean must be at most 60 in size, got nan"),
        (lambda: schedules.gap(BASE, 1, 10**400), "^gap must be at most 1e\\+30, got 1000"),
        (lambda: grids.skip_gaps([0.1, 1, 80], BASE), "^sigmas must be descending noise levels"),
        (lambda: grids.edm_grid(1), "^steps must be at least 2, got 1"),
        (lambda: grids.edm_grid("18"), "^steps must be an integer, got '18'"),
        (lambda: grids.edm_grid(18, rho=0), "^rho must be positive and finite, got 0"),
        (lambda: grids.edm_grid(18, rho="7"), "^rho must be a number, got '7'"),
        (lambda: grids.edm_grid(18, rho=1e-9), "^rho must give finite and descending levels"),
        (
            lambda: grids.edm_grid(18, 80, 0.002),
            "^sigma_min and sigma_max must .*, got 80 and 0.002",
        ),
    ],
)
def test_rejects_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
