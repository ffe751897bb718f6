"""Curves against published numbers, plain loops and identities of the noise distribution."""

import csv
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import linalg, stats

from geomem import data
from geomem.geometry import (
    _curve_kernels,
    _noise_coordinates,
    curves,
    danger_zone,
    posterior,
    shells,
    weight_bounds,
)
from geomem.points.visit import Points

DATA = pathlib.Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def published():
    """An independent reproduction's C and W on 20 sigmas: (rows of coverage, rows of weight)."""

    def rows(name):
        with open(DATA / f"cifar10_first1k_{name}.csv") as file:
            return list(csv.DictReader(file))

    return rows("coverage"), rows("max_weight")


@pytest.fixture(scope="module")
def estimated(cifar, published):
    sigmas = np.array([float(row["sigma"]) for row in published[0]])
    return curves.estimate(jax.random.key(0), *cifar, sigmas)


def standard_error(low, high):
    return (float(high) - float(low)) / (2 * 1.96)


def test_matches_published_curves(published, estimated):
    for estimate, rows in zip((estimated.coverage, estimated.max_weight), published, strict=True):
        for mean, ours, row in zip(
            estimate.mean, estimate.replicates.std(axis=0), rows, strict=True
        ):
            error = np.hypot(ours, standard_error(row["ci95_low"], row["ci95_high"]))
            # For levels where both samples saw only 0 or only 1: a rate below 1 in 4,000 draws.
            assert abs(mean - float(row["estimate"])) <= max(3 * error, 2.5e-4), row["sigma"]


def test_zone_spans_2_to_5(estimated):
    high = (estimated.coverage.mean >= 0.8) & (estimated.max_weight.mean >= 0.8)
    np.testing.assert_array_equal(estimated.sigma[high], [2, 3, 4, 5])
    zone = danger_zone.find(estimated)
    assert 1.5 < zone.low < 2
    assert 5 < zone.high < 8


def test_bounds_bracket_the_curves(estimated):
    half_width = 1e-4 + 1.96 * estimated.coverage.replicates.std(axis=0)
    assert (estimated.coverage_lower_bound <= estimated.coverage.mean + 2 * half_width).all()
    assert (estimated.coverage.mean <= estimated.coverage_upper_bound + 2 * half_width).all()
    assert (estimated.own_weight <= estimated.max_weight.mean + 1e-6).all()
    assert (estimated.own_weight_lower_bound <= estimated.own_weight + 0.01).all()
    assert (estimated.own_weight <= estimated.own_weight_upper_bound + 0.01).all()
    # The bounds are not vacuous: at small noise, the lower bound is near 1.
    assert estimated.own_weight_lower_bound[0] >= 0.998


def test_coverage_bounds_match_shells(cifar, estimated):
    for s in (8, 10, 12):
        lower, upper = shells.coverage_bounds(*cifar[::-1], float(estimated.sigma[s]))
        assert estimated.coverage_lower_bound[s] == pytest.approx(float(lower.mean()), abs=1e-5)
        assert estimated.coverage_upper_bound[s] == pytest.approx(float(upper.mean()), abs=1e-5)


def test_own_weight_bounds_match_formulas(cifar, estimated):
    squares = oracles.squared_distances(cifar[0], cifar[0])
    distances = np.sort(np.sqrt(squares), axis=1)[:, 1:]
    for s in (11, 13, 16, 18):
        sigma = float(estimated.sigma[s])
        lower = max(
            (1 - delta)
            * float(weight_bounds.own_weight_lower_bound(distances, sigma, delta).mean())
            for delta in (0.001, 0.01, 0.1)
        )
        assert estimated.own_weight_lower_bound[s] == pytest.approx(lower, rel=1e-3, abs=1e-7)
        upper = min(
            delta
            + (1 - delta)
            * float(
                weight_bounds.own_weight_upper_bound(
                    distances, np.arange(1, 1000), sigma, delta, 1 - delta * tail
                ).mean()
            )
            for delta in (0.001, 0.01, 0.1)
            for tail in (0.25, 0.5)
        )
        # The sweep counts neighbors on a grid of radii: never tighter, and hardly looser.
        assert upper - 1e-4 <= estimated.own_weight_upper_bound[s] <= 1.1 * upper + 0.01


SMALL_SIGMAS = np.float32([0.3, 1.0, 3.0])


@pytest.fixture(scope="module")
def small():
    """Return 30 training and 12 held-out points in 50 dimensions; two training points are equal."""
    rng = np.random.default_rng(0)
    train = rng.standard_normal((30, 50)).astype(np.float32) + 5
    train[7] = train[3]
    return train, rng.standard_normal((12, 50)).astype(np.float32) + 5


def direct_coverage(key, train, heldout, draws):
    return np.array(
        [shells.coverage(key, heldout, train, sigma, draws=draws).mean() for sigma in SMALL_SIGMAS]
    )


def test_plain_max_weight_matches_definition(small):
    """W (Def. 4.1) against the float64 posterior of the same noise."""
    train, _ = small
    key = jax.random.key(4)
    for sigma in SMALL_SIGMAS:
        expected = np.zeros(30)
        for draw in jax.random.split(key, 3):
            y = train + sigma * jax.random.normal(draw, train.shape)
            expected += np.exp(oracles.log_weights(y, train, sigma)).max(axis=1) / 3
        weight = curves.plain_max_weight(key, train, sigma, draws=3)
        np.testing.assert_allclose(weight, expected, atol=2e-5)


def direct_weight(rng, train, draws):
    """W and the own weight by noising every point, with the exact posterior."""
    rows = []
    for sigma in SMALL_SIGMAS:
        y = np.repeat(train, draws, axis=0)
        y = (y + sigma * rng.standard_normal(y.shape)).astype(np.float32)
        weights = np.exp(oracles.log_weights(y, train, sigma))
        own = weights[np.arange(len(y)), np.repeat(np.arange(len(train)), draws)]
        rows.append((weights.max(axis=1).mean(), own.mean()))
    return np.array(rows).T


@pytest.mark.parametrize("reduced", [True, False])
def test_both_frames_match_direct_noising(small, rng, reduced):
    """Expectations match those of noising the points directly, within 4.5 standard errors."""
    train, heldout = small
    frame = (_noise_coordinates.reduced_frame if reduced else _noise_coordinates.direct_frame)(
        train, heldout
    )
    draws = 2000
    table = shells.probability_table(50, 5.0)
    covered, _, _ = _curve_kernels.coverage_sweep(
        jax.random.key(1),
        jnp.arange(12),
        frame,
        sigmas=SMALL_SIGMAS,
        limits=jnp.square(jnp.asarray(shells.radii(50))),
        table=table,
        draws=draws,
    )
    direct = direct_coverage(jax.random.key(2), train, heldout, draws)
    error = np.sqrt(np.maximum(direct * (1 - direct), 1e-4) * 2 / (12 * draws))
    assert (np.abs(covered.mean(axis=0) - direct) <= 4.5 * error).all()
    assert 0.05 < direct[1] < 0.95  # the comparison says something

    sweep = _curve_kernels.weight_sweep(
        jax.random.key(3), jnp.arange(30), frame.of_points(), sigmas=SMALL_SIGMAS, draws=draws
    )
    largest, own = sweep.largest.mean(axis=1), sweep.own.mean(axis=1)
    plain = [
        curves.plain_max_weight(jax.random.key(4), train, sigma, draws=200).mean()
        for sigma in SMALL_SIGMAS
    ]
    np.testing.assert_allclose(largest.mean(axis=0), plain, atol=4.5 * 0.35 / np.sqrt(6000))
    wanted = direct_weight(rng, train, 200)
    np.testing.assert_allclose(largest.mean(axis=0), wanted[0], atol=4.5 * 0.35 / np.sqrt(6000))
    np.testing.assert_allclose(own.mean(axis=0), wanted[1], atol=4.5 * 0.35 / np.sqrt(6000))


def test_points_without_a_factor_keep_their_dimensions(rng, monkeypatch):
    """As 1,000 images of one gray value each: rounding makes their Gram matrix indefinite."""
    points = np.float32(rng.normal(size=(1000, 1)) * rng.normal(size=1500))
    frame = _noise_coordinates.frame(Points(points, 1000), points[:5], 10_000)
    assert np.isfinite(frame.query(np.arange(5))[1]).all()
    points = np.float32(rng.normal(size=(50, 70)))
    assert _noise_coordinates.frame(Points(points, 50), points[:5], 10_000).reduced

    def fail(*_, **__):
        raise linalg.LinAlgError

    monkeypatch.setattr(linalg, "cholesky", fail)
    assert not _noise_coordinates.frame(Points(points, 50), points[:5], 10_000).reduced


def test_dimensions_are_reduced_within_limits_of_memory_and_time(monkeypatch):
    assert _noise_coordinates.reducible(1000, 1000, 3072)
    assert not _noise_coordinates.reducible(1000, 1000, 1001)
    assert not _noise_coordinates.reducible(8000, 8000, 64 * 64 * 3)  # 3 GB
    assert _noise_coordinates.reducible(300, 2000, 128 * 128 * 3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _noise_coordinates.reducible(1000, 1000, 3072)
    assert not _noise_coordinates.reducible(300, 2000, 128 * 128 * 3)


def test_reduced_coordinates_preserve_inner_products(cifar):
    """<x - x_i, x - x_j> is the covariance of <z, x - x_i> and <z, x - x_j>: it must agree."""
    train, heldout = np.array(cifar[0][:200]), cifar[1][:5]
    train[1] = train[0]  # a copy
    train[2] = train[0]
    train[2, 7] += 2 / 255  # one gray level in one value
    train[3] *= 100  # an outlier
    frame = _noise_coordinates.reduced_frame(train, heldout)
    _, point_coordinates = (np.float64(array) for array in frame.points.rows)
    assert point_coordinates.shape == (200, 201)
    assert frame.missing == 3072 - 201
    for query, coordinates in zip(heldout, np.float64(frame.query_coordinates), strict=True):
        offset, wanted = coordinates - point_coordinates, np.float64(query) - train
        products = wanted @ wanted.T
        scale = np.sqrt(np.outer(products.diagonal(), products.diagonal()))
        assert (np.abs(offset @ offset.T - products) <= 2e-6 * scale).all()
    # Near copies keep their distance, to float32's rounding of coordinates of about 30.
    between = np.linalg.norm(point_coordinates[:3] - point_coordinates[0], axis=1)
    np.testing.assert_allclose(between, [0, 0, 2 / 255], atol=1e-4)
    assert frame.reach >= np.linalg.norm(train[3] - train, axis=1).max()


def test_noise_has_the_same_norm_in_both_frames(small):
    """||z||^2 is chi-square with 50 degrees of freedom: mean 50, variance 100."""
    train, heldout = small
    for frame in (
        _noise_coordinates.reduced_frame(train, heldout),
        _noise_coordinates.direct_frame(train, heldout),
    ):
        key, index = jax.random.key(0), jnp.arange(12)
        noise = _curve_kernels._noise(key, index, 2000, frame.rank)
        unseen = _curve_kernels._unseen_norms(key, index, 2000, frame)
        norms = jnp.sum(noise**2, axis=2) + unseen.T
        assert norms.shape == (2000, 12)
        assert norms.mean() == pytest.approx(50, abs=5 * np.sqrt(100 / norms.size))
        assert norms.var() == pytest.approx(100, rel=0.1)


def test_refinement_matches_grid_levels(small):
    """An extra level equals the same level on a grid: same noise, same resamples."""
    train, heldout = small
    key = jax.random.key(0)
    refined = curves.estimate(key, train, heldout, SMALL_SIGMAS, refine=3)
    for name in ("coverage", "max_weight"):
        extra = getattr(refined, f"{name}_refinement")
        assert extra.sigma.shape == (3,)
        assert ((extra.sigma > SMALL_SIGMAS[0]) & (extra.sigma < SMALL_SIGMAS[-1])).all()
        direct = getattr(curves.estimate(key, train, heldout, extra.sigma, refine=0), name)
        np.testing.assert_allclose(extra.mean, direct.mean, atol=1e-6)
        np.testing.assert_allclose(extra.replicates, direct.replicates, atol=1e-6)
    plain = curves.estimate(key, train, heldout, SMALL_SIGMAS, refine=0)
    assert plain.coverage_refinement is plain.max_weight_refinement is None
    np.testing.assert_allclose(refined.coverage.mean, plain.coverage.mean)
    np.testing.assert_allclose(refined.max_weight.replicates, plain.max_weight.replicates)


def test_accepts_any_image_type(rng):
    """uint8 or float, NumPy or JAX, images or vectors: the same curves."""
    pixels = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    images = data.to_float(pixels)
    rows = images.reshape(30, -1)
    expected = curves.estimate_curves(rows[:20], rows[20:], SMALL_SIGMAS, seed=3, bootstrap=5)
    direct = curves.estimate(jax.random.key(3), rows[:20], rows[20:], SMALL_SIGMAS, bootstrap=5)
    for kind in (pixels, images, np.float64(rows), jnp.asarray(images), jnp.asarray(pixels)):
        result = curves.estimate_curves(kind[:20], kind[20:], SMALL_SIGMAS, seed=3, bootstrap=5)
        for ours, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
    np.testing.assert_array_equal(direct.coverage.mean, expected.coverage.mean)
    assert repr(expected) == "Curves(3 noise levels from 0.3 to 3, 5 bootstrap replicates)"
    assert repr(expected.coverage) == "Estimate(3 noise levels, 5 replicates)"
    default = curves.estimate_curves(pixels[:20], pixels[20:], bootstrap=1)
    np.testing.assert_allclose(default.sigma, np.geomspace(0.02, 80, 32), rtol=1e-6)


def test_result_is_independent_of_block_size(small, monkeypatch):
    train, heldout = small
    key = jax.random.key(0)
    # As many levels as in the test above, so that only the blocks are compiled.
    whole = curves.estimate(key, train, heldout, SMALL_SIGMAS, refine=3)
    monkeypatch.setattr(_noise_coordinates, "_QUERIES", 7)  # divides neither 30 nor 12
    parts = curves.estimate(key, train, heldout, SMALL_SIGMAS, refine=3)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_result_is_independent_of_chunk_size(small):
    train, heldout = small
    frame = _noise_coordinates.direct_frame(train, heldout).of_points()
    arguments = {"sigmas": SMALL_SIGMAS, "draws": 3}
    whole = _curve_kernels.weight_sweep(jax.random.key(0), jnp.arange(30), frame, **arguments)
    arguments["chunk"] = 8  # 30 is no multiple of it
    parts = _curve_kernels.weight_sweep(jax.random.key(0), jnp.arange(30), frame, **arguments)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_copies_share_the_weight_at_small_noise(small):
    """Two equal points have weight 1/2 each, however small sigma."""
    train, _ = small
    weight, own, _, upper = curves.estimate_weight(jax.random.key(0), train, [0.002])
    assert weight.mean[0] == pytest.approx(1 - 1 / 30, abs=1e-4)  # 28 points at 1, 2 at 1/2
    assert own[0] == pytest.approx(1 - 1 / 30, abs=1e-4)
    assert own[0] <= upper[0] + 1e-6


def test_near_copies_have_the_exact_weight(small, rng):
    """At distance 1e-3 and sigma 0.001 the pair's weight is a known function of one normal."""
    train = small[0].copy()
    offset = rng.standard_normal(50)
    train[7] = train[3] + np.float32(1e-3 * offset / np.linalg.norm(offset))
    distance = np.sqrt(oracles.squared_distances(train[3:4], train[7:8])[0, 0])
    sigma = np.float32(0.001)
    z = rng.standard_normal(1_000_000)
    logit = -(distance**2) / (2 * sigma**2) - distance / sigma * z
    expected = (1 / (1 + np.exp(-np.abs(logit)))).mean()
    weight = curves.estimate_weight(jax.random.key(0), train[[3, 7]], [sigma], draws=20_000)[0]
    assert weight.mean[0] == pytest.approx(expected, abs=0.004)


def test_bootstrap_band_matches_standard_error(rng):
    values = rng.standard_normal((400, 3)).astype(np.float32) * np.float32([1, 2, 3])
    estimate = curves.bootstrap_mean(jax.random.key(0), values, 4000)
    wanted = values.std(axis=0) / np.sqrt(400)
    np.testing.assert_allclose((estimate.high - estimate.low) / (2 * 1.96), wanted, rtol=0.06)
    np.testing.assert_allclose(estimate.mean, values.mean(axis=0), rtol=1e-5)
    assert estimate.replicates.shape == (4000, 3)


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.001, 0.01, 0.03, 0.1, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("count", [30, 200])
@pytest.mark.parametrize("draws", [2, 8])
def test_coverage_bands_contain_the_truth(mean, count, draws, rng):
    """At least 93% of bands contain it, whether images differ a lot or little."""
    repeats = 3000
    for concentration in (0.5, 5):
        chance = rng.beta(mean * concentration, (1 - mean) * concentration, (count, repeats))
        values = rng.binomial(draws, chance) / draws
        estimate = curves.bootstrap_fraction(jax.random.key(0), values, draws, 1)
        share = ((estimate.low <= mean) & (mean <= estimate.high)).mean()
        assert share >= 0.93
        if 0.1 <= mean <= 0.9 and count == 200:
            assert share <= 0.98  # not wider than it must be


def beta_draws(rng, mean, count, draws, spread, precision, repeats):
    """Draws [M, K, repeats] around fixed means of M points with this average; and the average."""
    chance = rng.beta(mean * spread, (1 - mean) * spread, count).clip(1e-6, 1 - 1e-6)
    for _ in range(200):
        if mean < 0.5:
            chance *= mean / chance.mean()
        else:
            chance = 1 - (1 - chance) * (1 - mean) / (1 - chance).mean()
        chance = chance.clip(1e-9, 1 - 1e-9)
    one, other = ((c * precision)[:, None, None] for c in (chance, 1 - chance))
    return rng.beta(one, other, (count, draws, repeats)), chance.mean()


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.001, 0.01, 0.1, 0.5, 0.9, 0.9966, 0.999])
@pytest.mark.parametrize("count", [30, 200])
@pytest.mark.parametrize("draws", [2, 8])
def test_weight_bands_contain_the_truth(mean, count, draws, rng):
    """Conditional on the points: their means are fixed, and only the draws vary."""
    for spread, precision in ((0.5, 0.05), (5, 0.05), (0.5, 1), (5, 1), (0.5, 20), (5, 20)):
        values, truth = beta_draws(rng, mean, count, draws, spread, precision, 1000)
        estimate = curves.stratified_mean(jax.random.key(0), values, 1)
        share = ((estimate.low <= truth + 1e-6) & (truth - 1e-6 <= estimate.high)).mean()
        assert share >= 0.93 - 0.008, (spread, precision)  # one standard error of 1,000 repeats
        if mean == 0.5 and count == 200:
            assert share <= 0.98 + 0.005, (spread, precision)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.8, 1.2, 2.0, 5.0])
def test_weight_bands_contain_the_true_weight(sigma, rng):
    """W of 30 fixed points in 24 dimensions, from 0.997 to 0.1; 2 and 8 draws of each."""
    points = rng.standard_normal((30, 24))
    squares = oracles.squared_distances(points, points)
    noise = rng.standard_normal((1500, 8, 30, 24))
    inner = np.einsum("rdpx,px->rdp", noise, points)[..., None] - noise @ points.T
    logits = -(squares / (2 * sigma) + inner) / sigma
    logits -= logits.max(axis=-1, keepdims=True)
    weight = (1 / np.exp(logits).sum(axis=-1)).transpose(2, 1, 0)  # [30, 8, 1500]
    for draws in (2, 8):
        estimate = curves.stratified_mean(jax.random.key(0), weight[:, :draws], 1)
        share = ((estimate.low <= weight.mean()) & (weight.mean() <= estimate.high)).mean()
        assert share >= 0.93, draws
        if sigma >= 2:
            assert share <= 0.985, draws


def test_weight_band_of_binary_draws_is_clopper_pearson():
    """If no differences between draws are seen, the band is that of M K draws."""
    for value in (0.0, 1.0):
        estimate = curves.stratified_mean(jax.random.key(0), np.full((25, 4, 1), value), 10)
        exact = stats.binomtest(int(100 * value), 100).proportion_ci(method="exact")
        band = estimate.low[0], estimate.high[0]
        assert band == pytest.approx((exact.low, exact.high), abs=1e-5)


def test_weight_replicates_vary_the_noise_alone(rng):
    """Points that differ among themselves, with draws that hardly do: a narrow band."""
    means = np.linspace(0.2, 0.8, 100)[:, None, None]
    values = np.clip(means + 0.01 * rng.standard_normal((100, 4, 2)), 0, 1)
    estimate = curves.stratified_mean(jax.random.key(0), values, 4000)
    wanted = 0.01 / np.sqrt(400)
    np.testing.assert_allclose(estimate.replicates.std(axis=0), wanted, rtol=0.15)
    # A tenth of the points: their random choice varies too.
    sample = curves.stratified_mean(jax.random.key(0), values, 4000, share=0.1)
    wanted = values.mean(axis=1).std(axis=0, ddof=1) * np.sqrt(0.9 / 100)
    np.testing.assert_allclose(sample.replicates.std(axis=0), wanted, rtol=0.05)
    # One draw each: as for a random sample of points.
    single = curves.stratified_mean(jax.random.key(0), values[:, :1], 4000)
    wanted = values[:, 0].std(axis=0, ddof=1) / 10
    np.testing.assert_allclose(single.replicates.std(axis=0), wanted, rtol=0.05)


def test_coverage_band_is_exact_without_clusters():
    """If all draws of an image agree, the band is the Clopper-Pearson interval of M draws."""
    values = np.repeat([1.0, 0.0], [40, 60])[:, None]
    estimate = curves.bootstrap_fraction(jax.random.key(0), values, 8, 10)
    exact = stats.binomtest(40, 100).proportion_ci(method="exact")
    assert float(estimate.low[0]) == pytest.approx(exact.low, abs=1e-5)
    assert float(estimate.high[0]) == pytest.approx(exact.high, abs=1e-5)
    for value in (0.0, 1.0):
        estimate = curves.bootstrap_fraction(jax.random.key(0), np.full((50, 1), value), 8, 10)
        exact = stats.binomtest(int(50 * value), 50).proportion_ci(method="exact")
        assert float(estimate.low[0]) == pytest.approx(exact.low, abs=1e-5)
        assert float(estimate.high[0]) == pytest.approx(exact.high, abs=1e-5)


def test_compiles_once_per_shape(small, count_compilations):
    train, heldout = small
    curves.estimate(jax.random.key(0), train, heldout, SMALL_SIGMAS)
    with count_compilations() as compilations:
        for seed in (1, 2):
            curves.estimate(jax.random.key(seed), train, heldout, SMALL_SIGMAS * 2)
    assert compilations == []


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], r"sigmas must have shape \[S\] with S >= 1, got shape \(0,\)\."),
        ([[1.0]], r"sigmas must have shape \[S\] with S >= 1, got shape \(1, 1\)\."),
        ([0.0, 1.0], "sigmas must be positive and finite, got 0"),
        ([-1.0], "sigmas must be positive and finite, got -1"),
        ([1.0, np.nan], "sigmas must be positive and finite, got nan"),
        ([2.0, 1.0], r"sigmas must be ascending, got 2 before 1\."),
        ([1.0, 1.0], r"sigmas must be ascending, got 1 before 1\."),
    ],
)
def test_rejects_bad_noise_levels(small, sigmas, message):
    with pytest.raises(ValueError, match=message):
        curves.estimate(jax.random.key(0), *small, np.array(sigmas))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws_coverage": 0}, r"draws_coverage must be at least 1, got 0\."),
        ({"draws_weight": -1}, r"draws_weight must be at least 1, got -1\."),
        ({"shell_c": 0.0}, r"shell_c must be positive and finite, got 0\."),
        ({"bootstrap": 0}, r"bootstrap must be at least 1, got 0\."),
        ({"refine": -1}, r"refine must be at least 0, got -1\."),
        ({"draws_weight": 1.5}, r"draws_weight must be an integer, got 1\.5\."),
        ({"num_base": "3"}, r"num_base must be an integer, got '3'\."),
        ({"num_base": 0}, r"num_base must be at least 1, got 0\."),
        ({"num_base": 31}, r"num_base must be between 1 and 30, got 31\."),
    ],
)
def test_rejects_bad_settings(small, change, message):
    with pytest.raises(ValueError, match=message):
        curves.estimate(jax.random.key(0), *small, SMALL_SIGMAS, **change)


@pytest.mark.parametrize("key", [0, None, 1.5, jax.random.split(jax.random.key(0)), np.zeros(2)])
def test_rejects_what_is_no_key(small, key):
    with pytest.raises(ValueError, match=r"^key must be a PRNG key, such as jax.random.key"):
        curves.estimate(key, *small, SMALL_SIGMAS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train, heldout: (train[:1], heldout), "train must hold at least 2 points, got 1"),
        (
            lambda train, heldout: (train, heldout[:0]),
            r"heldout must be \[N, d\] or images \[N, ...\], got shape \(0, 50\)",
        ),
        (
            lambda train, heldout: (train, heldout[:, :49]),
            r"heldout must have 50 columns like train, got shape \(12, 49\)\.",
        ),
        (
            lambda train, heldout: (train[0], heldout),
            r"train must be \[N, d\] or images \[N, ...\], got shape \(50,\)\.",
        ),
        (
            lambda train, heldout: (np.int32(train), heldout),
            r"train must hold floats or uint8, got int32\.",
        ),
        (
            lambda train, heldout: (train.reshape(30, 5, 5, 2), heldout.reshape(12, 2, 5, 5)),
            r"heldout must be images of shape \(5, 5, 2\) like train, got .* \(12, 2, 5, 5\)\.",
        ),
        (
            lambda train, heldout: (train, np.where(heldout > 5, np.inf, heldout)),
            r"heldout must be finite, got NaN or inf\.",
        ),
        (
            lambda train, heldout: (np.abs(train).reshape(30, 5, 5, 2) * 20, heldout),
            r"train must be uint8 or floats in \[-1, 1\], got floats from .* scale 8-bit images by",
        ),
    ],
)
def test_rejects_bad_points(small, change, message):
    with pytest.raises(ValueError, match=message):
        curves.estimate(jax.random.key(0), *change(*small), SMALL_SIGMAS)


def test_max_weight_matches_posterior(cifar):
    """The sweep's W at one sigma against `posterior.max_weight` on freshly noised points."""
    train = cifar[0]
    weight = curves.estimate_weight(jax.random.key(0), train, [5.0], num_base=400)[0]
    y = train[:400] + 5 * jax.random.normal(jax.random.key(1), (400, 3072))
    direct = posterior.max_weight(y, train, 5.0)
    error = np.hypot(standard_error(weight.low[0], weight.high[0]), direct.std() / 20)
    assert abs(weight.mean[0] - direct.mean()) <= 4 * error
