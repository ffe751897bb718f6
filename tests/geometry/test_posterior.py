"""Posterior weights and denoiser against float64 loops on the same float32 inputs."""

import chex
import jax
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomem.geometry import posterior

SIGMAS = (0.002, 0.02, 0.14, 0.5, 1, 2, 5, 8, 20, 80)
QUERIES = 6
BAR = 1e-5


def near_duplicates(points, pairs, rng):
    """Replace `pairs` points by copies of other points at distance 1e-3."""
    points = points.copy()
    for copy, original in pairs:
        offset = rng.standard_normal(points.shape[1])
        points[copy] = points[original] + np.float32(1e-3 * offset / np.linalg.norm(offset))
    return points


@pytest.fixture(scope="module")
def cases(cifar):
    """Training and held-out points that are hard on float32."""
    train, heldout = cifar
    rng = np.random.default_rng(0)
    pairs = near_duplicates(train, [(500 + i, i) for i in range(20)], rng)
    cluster = near_duplicates(train, [(500 + i, 0) for i in range(100)], rng)
    shift = np.float32(100)
    return {
        "cifar10_sample": (train, heldout),
        "20 near-duplicates": (pairs, heldout),
        "a cluster of 100": (cluster, heldout),
        "shifted by 100": (train + shift, heldout + shift),
        "near-duplicates, shifted": (pairs + shift, heldout + shift),
    }


def noised(train, heldout, sigma, rng):
    clean = np.concatenate([train[:QUERIES], heldout[:QUERIES]])
    return (clean + sigma * rng.standard_normal(clean.shape)).astype(np.float32)


CASES = (
    "cifar10_sample",
    "20 near-duplicates",
    "a cluster of 100",
    "shifted by 100",
    "near-duplicates, shifted",
)


@pytest.fixture(scope="module", params=CASES)
def truth(request, cases):
    """(training points, [(sigma, y, exact weights, exact mean), ...]) of a case."""
    train, heldout = cases[request.param]
    rng, rows = np.random.default_rng(0), []
    for sigma in np.float32(SIGMAS):
        y = noised(train, heldout, sigma, rng)
        weights = np.exp(oracles.log_weights(y, train, sigma))
        rows.append((sigma, y, weights, weights @ np.float64(train)))
    return train, rows


@pytest.mark.parametrize("precision", ["default", "bfloat16", "tensorfloat32"])
def test_exact_at_every_sigma(truth, precision):
    train, rows = truth
    with jax.default_matmul_precision(precision):
        for sigma, y, weights, mean in rows:
            for found, wanted in (
                (posterior.denoise(y, train, sigma), mean),
                (posterior.max_weight(y, train, sigma), weights.max(axis=1)),
            ):
                assert np.abs(np.float64(found) - wanted).max() <= BAR, (sigma, found.shape)


def test_weights_are_exact_at_every_sigma(truth):
    train, rows = truth
    for sigma, y, weights, _ in rows:
        found = posterior.weights(y, train, sigma)
        assert np.abs(np.float64(found) - weights).max() <= BAR, sigma


def test_weights_use_no_product_that_a_precision_could_touch(rng):
    points = rng.standard_normal((20, 4)).astype(np.float32)
    program = str(jax.make_jaxpr(posterior.log_weights)(points[:3], points, 1.0))
    assert "while" in program
    assert "dot_general" not in program


@pytest.mark.parametrize(("sigma", "shift"), [(0.002, 0), (0.02, 0), (0.02, 100), (0.14, 100)])
def test_ties_between_far_points_are_exact(cifar, sigma, shift):
    """Midway between two images 20 apart, weights depend on the last bits of both distances."""
    train = cifar[0] + np.float32(shift)
    middle = (np.float64(train[:12]) + np.float64(train[12:24])) / 2
    direction = np.float64(train[:12]) - np.float64(train[12:24])
    squared = (direction**2).sum(axis=1, keepdims=True)
    # A logit difference of about 1: move along the direction by sigma^2 / distance.
    y = np.float32(middle + direction * sigma**2 / squared)
    points = train[:24]
    wanted = np.exp(oracles.log_weights(y, points, np.float32(sigma)))
    assert (np.sort(wanted, axis=1)[:, -2] > 1e-3).any()
    assert np.abs(np.float64(posterior.weights(y, points, sigma)) - wanted).max() <= BAR
    mean = wanted @ np.float64(points)
    assert np.abs(np.float64(posterior.denoise(y, points, sigma)) - mean).max() <= BAR


def test_naive_formula_exceeds_the_tolerance(cases, rng):
    """The tolerance is not too loose: norm + norm - 2 dot in float32 fails it by far."""
    for case, wrong_by in (("20 near-duplicates", 0.05), ("near-duplicates, shifted", 0.5)):
        train, heldout = cases[case]
        y = noised(train, heldout, 0.002, rng)
        squares = (y**2).sum(axis=1)[:, None] + (train**2).sum(axis=1) - 2 * y @ train.T
        naive = jax.nn.softmax(-squares / (2 * np.float32(0.002) ** 2), axis=1)
        exact = np.exp(oracles.log_weights(y, train, np.float32(0.002)))
        assert np.abs(naive - exact).max() > wrong_by


@pytest.mark.parametrize("chunk", [300, 999, 5000])  # none divides 1,000
def test_result_is_independent_of_chunk_size(cases, chunk, rng):
    train, heldout = cases["20 near-duplicates"]
    for sigma in (0.02, 5):
        y = noised(train, heldout, sigma, rng)
        found = posterior.denoise(y, train, sigma, chunk=chunk)
        assert np.abs(found - oracles.denoise(y, train, np.float32(sigma))).max() <= BAR


def test_accepts_sigma_per_query_and_vmap(cifar, rng):
    train, heldout = cifar[0][:100], cifar[1]
    sigmas = np.float32([0.5, 2, 5, 20])
    y = noised(train, heldout, 2, rng)
    each = posterior.log_weights(y, train, np.resize(sigmas, len(y)))
    grid = jax.vmap(posterior.log_weights, (None, None, 0))(y, train, sigmas)
    assert grid.shape == (4, len(y), 100)
    for q in range(len(y)):
        np.testing.assert_allclose(each[q], grid[q % 4, q], rtol=1e-5, atol=2e-4)
    wanted = oracles.denoise(y, train, np.resize(sigmas, len(y)))
    denoised = posterior.denoise(y, train, np.resize(sigmas, len(y)))
    np.testing.assert_allclose(denoised, wanted, atol=BAR)


def test_plain_definitions_match_float64_loops(cifar, rng):
    train, heldout = cifar[0][:200], cifar[1]
    for sigma in np.float32([2, 5, 20]):
        y = noised(train, heldout, sigma, rng)
        weights = np.exp(oracles.log_weights(y, train, sigma))
        np.testing.assert_allclose(posterior.plain_weights(y, train, sigma), weights, atol=2e-4)
        mean = weights @ np.float64(train)
        np.testing.assert_allclose(posterior.plain_denoise(y, train, sigma), mean, atol=2e-3)


def with_copies(rng, copies, dim, apart, total=64):
    """Return points of which the first `copies` are equal and the next is `apart` from them."""
    points = rng.standard_normal((total, dim)).astype(np.float32)
    points[:copies] = points[0]
    direction = rng.standard_normal(dim)
    points[copies] = points[0] + np.float32(apart * direction / np.linalg.norm(direction))
    return points


@pytest.mark.parametrize("sigma", [0.003, 0.01, 0.1])
def test_exact_copies_do_not_end_the_search_early(rng, sigma):
    """Sixteen copies use up all candidates of a pass without showing any screening error."""
    y_noise = rng.standard_normal((40, 3072))
    for trial in range(8):
        points = with_copies(rng, 16, 3072, sigma)
        y = np.float32(points[:1] + sigma * y_noise[trial])
        exact = np.exp(oracles.log_weights(y, points, np.float32(sigma)))
        top = posterior.top_weights(y, points, sigma, 17)
        ordered = np.take_along_axis(exact, np.asarray(top.index), 1)
        assert np.abs(ordered - top.weight).max() <= BAR
        assert np.abs(posterior.denoise(y, points, sigma) - exact @ np.float64(points)).max() <= BAR


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    copies=st.sampled_from([1, 15, 16, 17, 50]),
    dim=st.sampled_from([2, 64, 768]),
    sigma=st.sampled_from([0.001, 0.01, 0.1, 1.0, 10.0]),
)
def test_result_is_independent_of_copies_and_batch(seed, copies, dim, sigma):
    rng = np.random.default_rng(seed)
    points = with_copies(rng, copies, dim, sigma)
    picks = rng.integers(0, 64, 8)
    y = np.float32(points[picks] + sigma * rng.standard_normal((8, dim)))
    weights = np.exp(oracles.log_weights(y, points, np.float32(sigma)))
    mean = np.asarray(posterior.denoise(y, points, sigma))
    assert np.abs(mean - weights @ np.float64(points)).max() <= BAR
    assert np.abs(posterior.max_weight(y, points, sigma) - weights.max(axis=1)).max() <= BAR
    # A query's result does not depend on the batch around it.
    alone = np.concatenate([posterior.denoise(y[i : i + 1], points, sigma) for i in (0, 5)])
    assert np.abs(alone - mean[[0, 5]]).max() <= 1e-6
    many = posterior.denoise(np.tile(y, (5, 1)), points, sigma)
    assert np.abs(many[-8:] - mean).max() <= 1e-6


def test_accepts_images_and_stored_pixels(cifar):
    images = cifar[0][:40].reshape(-1, 32, 32, 3)
    stored = np.uint8(np.rint((images + 1) * 127.5))
    y = images[:3] + np.float32(0.5)
    mean = posterior.denoise(y, images, 2.0)
    assert mean.shape == y.shape
    rows = posterior.denoise(y.reshape(3, -1), images.reshape(40, -1), 2.0)
    np.testing.assert_array_equal(np.reshape(mean, (3, -1)), rows)
    np.testing.assert_allclose(posterior.denoise(y, stored, 2.0), mean, atol=1e-5)
    np.testing.assert_allclose(posterior.weights(y, stored, 2.0).sum(axis=1), 1, rtol=1e-5)
    double = posterior.denoise(np.float64(y), np.float64(images), 2.0)
    np.testing.assert_array_equal(double, mean)


def test_rejects_unusable_arrays(cifar):
    train = cifar[0][:10]
    for y, points, message in (
        (
            train[:2],
            np.zeros((0, 3072)),
            r"points must be \[N, d\] or images \[N, ...\], got shape",
        ),
        (train[:0], train, r"y must be \[N, d\] or images \[N, ...\], got shape \(0, 3072\)"),
        (np.int32(train[:2]), train, "y must hold floats or uint8, got int32"),
        (train[:2, :5], train, r"y must have 3072 values a row like the points, got \(2, 5\)"),
        (train[:2], "images.npy", "points must be an array or nested lists .*, got str"),
        (train[:2], [[0.0], [0.0, 1.0]], "points must be an array or nested lists .*, got list"),
    ):
        for function in (posterior.log_weights, posterior.denoise):
            with pytest.raises(ValueError, match=message):
                function(y, points, 1.0)


points_strategy = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).standard_normal((40, 6)).astype(np.float32)
)
sigma_strategy = st.floats(0.0625, 50, width=32)


@settings(deadline=None, max_examples=25)
@given(points=points_strategy, sigma=sigma_strategy)
def test_weights_sum_to_one_and_are_equivariant(points, sigma):
    y, points = points[:4] + np.float32(0.3), points[4:]
    weights = posterior.weights(y, points, sigma)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    # Permuting the data set permutes the weights and leaves the denoiser unchanged.
    order = np.random.default_rng(0).permutation(len(points))
    permuted = posterior.weights(y, points[order], sigma)
    np.testing.assert_allclose(permuted, weights[:, order], atol=BAR)
    mean = posterior.denoise(y, points, sigma)
    np.testing.assert_allclose(posterior.denoise(y, points[order], sigma), mean, atol=BAR)
    # Translating everything translates the denoiser, up to the rounding of the inputs.
    moved = posterior.denoise(y + 2, points + 2, sigma)
    np.testing.assert_allclose(moved - 2, mean, atol=1e-3)
    np.testing.assert_allclose(posterior.max_weight(y, points, sigma), weights.max(1), atol=BAR)


def test_limits_at_small_and_large_sigma(cifar):
    train, heldout = cifar
    nearest = oracles.two_nearest(heldout[:8], train)[1][:, 0]
    np.testing.assert_array_equal(posterior.denoise(heldout[:8], train, 1e-3), train[nearest])
    np.testing.assert_allclose(
        posterior.denoise(heldout[:8], train, 1e5), np.tile(train.mean(0), (8, 1)), atol=1e-5
    )
    np.testing.assert_allclose(posterior.weights(heldout[:8], train, 1e5), 1e-3, atol=1e-8)


def test_exact_copies_share_their_weight(cifar, rng):
    train = np.concatenate([cifar[0][:50]] * 20)
    y = noised(train, cifar[1], 0.05, rng)
    for sigma in (0.002, 0.05):
        weights = posterior.weights(y, train, sigma)
        np.testing.assert_allclose(weights.max(axis=1), 1 / 20, rtol=1e-5)
        np.testing.assert_allclose(posterior.max_weight(y, train, sigma), 1 / 20, rtol=1e-5)
        assert (
            np.abs(posterior.denoise(y, train, sigma, chunk=300)[:QUERIES] - train[:QUERIES]).max()
            <= BAR
        )


def test_empirical_denoiser_takes_images(cifar):
    images = cifar[0].reshape(-1, 32, 32, 3)
    denoiser = posterior.empirical_denoiser(images)
    found = denoiser(images[:3], np.float32([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(found, images[:3], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_query_affects_only_itself(cifar, bad):
    train = cifar[0][:100]
    finite = cifar[1][:3]
    y = finite.copy()
    y[1, 7] = bad
    for function in (posterior.log_weights, posterior.denoise, posterior.max_weight):
        found = np.asarray(function(y, train, 1.0))
        assert np.isnan(found[1]).all()
        wanted = np.asarray(function(finite, train, 1.0))
        np.testing.assert_allclose(found[::2], wanted[::2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_rejects_bad_sigma(cifar, sigma):
    train, heldout = cifar
    for function in (posterior.log_weights, posterior.denoise, posterior.max_weight):
        with pytest.raises(ValueError, match=r"sigma must be positive and finite, got"):
            function(heldout[:2], train, sigma)


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (None, r"sigma must be positive and finite, got None\."),
        (1e-19, r"sigma must be at least 1e-18, got 1e-19\."),
        ("2", r"sigma must be positive and finite, got '2'\."),
        ([1.0, 2.0, 3.0], r"sigma must be a scalar or \[2\] like y, got shape \(3,\)\."),
    ],
)
def test_rejects_unusable_sigma(cifar, sigma, message):
    train, heldout = cifar
    for function in (posterior.log_weights, posterior.denoise):
        with pytest.raises(ValueError, match=message):
            function(heldout[:2], train, sigma)


def test_rejects_bad_chunk(cifar):
    with pytest.raises(ValueError, match=r"chunk must be at least 1, got 0\."):
        posterior.denoise(cifar[1][:2], cifar[0], 1.0, chunk=0)


def test_rejects_images_of_another_layout(rng):
    """Images [N, C, H, W] and [N, H, W, C] have as many values, in another order."""
    points = rng.standard_normal((21, 4, 4, 3)).astype(np.float32)
    rows = points.reshape(21, -1)[:5]
    functions = (
        posterior.plain_denoise,
        posterior.log_weights,
        posterior.denoise,
        posterior.max_weight,
        lambda *args: posterior.top_weights(*args, 2),
    )
    for function in functions:
        for y in (points.transpose(0, 3, 1, 2), points[0]):
            with pytest.raises(ValueError, match=r"y must be images of shape \(4, 4, 3\) like the"):
                function(y, points, 1.0)
        as_rows = function(rows, points, 1.0)  # vectors do fit images
        chex.assert_trees_all_equal_shapes(as_rows, function(rows, points, 2.0))
    gray = points[..., :1]
    np.testing.assert_array_equal(
        posterior.max_weight(gray[..., 0], gray, 1.0), posterior.max_weight(gray, gray, 1.0)
    )


def test_takes_lists(rng, recwarn):
    points = rng.standard_normal((21, 48)).astype(np.float32)  # compiled by the test above
    for function in (posterior.plain_denoise, posterior.denoise, posterior.weights):
        found = function(points[:5].tolist(), points.tolist(), 1.0)
        np.testing.assert_array_equal(found, function(points[:5], points, 1.0))
    assert not recwarn.list


def test_compiles_once_per_shape(count_compilations, rng):
    points = rng.standard_normal((21, 48)).astype(np.float32)
    for function in (posterior.log_weights, posterior.denoise, posterior.max_weight):
        function(points[:5], points, 1.0)
        with count_compilations() as compilations:
            for sigma in (0.1, 2.0, 30.0):
                function(points[:5], points, sigma)
        assert compilations == []


def test_memory_does_not_grow_with_queries_times_points():
    """50,000 x 3,072 points: 256 MB beyond the data and the result, for any number of queries."""
    points = jax.ShapeDtypeStruct((50_000, 3072), np.float32)
    for queries in (1024, 8192):
        y = jax.ShapeDtypeStruct((queries, 3072), np.float32)
        memory = jax.jit(posterior.denoise).lower(y, points, 1.0).compile().memory_analysis()
        blocks = 2 * queries * 3072 * 4  # the queries and the means again, cut into blocks
        assert memory.temp_size_in_bytes <= 256e6 + blocks


def test_accepts_fewer_groups_than_candidates(rng):
    """128 points form fewer groups of 16 than there are candidates."""
    points = rng.standard_normal((128, 5)).astype(np.float32)
    y = rng.standard_normal((7, 5)).astype(np.float32)
    found = posterior.denoise(y, points, 0.5)
    np.testing.assert_allclose(found, oracles.denoise(y, points, 0.5), atol=1e-5)
