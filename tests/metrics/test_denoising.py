"""Errors of denoisers against closed forms; the exact denoiser has the smallest error."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.tree_util import Partial
from scipy import stats

from geomem import data
from geomem.geometry import posterior
from geomem.geometry.gaussian import fit_gaussian, gaussian_denoise
from geomem.metrics import denoising, membership

KEY = jax.random.key(0)
SIGMAS = np.float32([0.1, 0.5, 2.0, 20.0])


def shrink(factor, x, sigma):
    """A denoiser whose error is known: m(y) = a y."""
    return factor * x


def empirical(points, x, sigma):
    return posterior.denoise(x.reshape(len(x), -1), points, sigma).reshape(x.shape)


def gaussian(prior, x, sigma):
    return gaussian_denoise(x.reshape(len(x), -1), prior, sigma).reshape(x.shape)


@pytest.fixture(scope="module")
def digits():
    """(128 training images, 128 held-out images, the exact denoiser, the Gaussian denoiser)."""
    dataset = data.load("digits")
    # Shuffled, because different people wrote the first and the last digits.
    shuffled = np.random.default_rng(0).permutation(np.concatenate([dataset.train, dataset.test]))
    train, heldout = shuffled[:128], shuffled[128:256]
    points = jnp.asarray(train.reshape(128, -1))
    exact, wiener = Partial(empirical, points), Partial(gaussian, fit_gaussian(points))
    return train, heldout, exact, wiener


@pytest.fixture(scope="module")
def errors(digits):
    """Errors on (training, held-out) images of (the exact, the Gaussian denoiser)."""
    train, heldout, *denoisers = digits
    return [
        [denoising.denoising_error(KEY, m, images, SIGMAS, draws=4, batch=128) for m in denoisers]
        for images in (train, heldout)
    ]


def test_denoised_images_are_those_whose_error_is_measured(digits):
    _, heldout, exact, _ = digits
    errors = denoising.denoising_error(KEY, exact, heldout, SIGMAS, draws=1, batch=128)
    outputs = denoising.denoise(jax.random.split(KEY)[0], exact, heldout, SIGMAS, batch=128)
    squares = ((outputs - heldout) ** 2).sum((2, 3, 4))
    np.testing.assert_allclose(squares, errors.per_image, rtol=1e-4, atol=1e-4)
    some = denoising.denoise(
        jax.random.split(KEY)[0], exact, heldout, SIGMAS, levels=[1, 3], batch=128
    )
    np.testing.assert_array_equal(some, outputs[[1, 3]])


def test_agreement_is_the_coefficient_of_determination():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 200, 4, 4, 1))
    outputs = target + np.array([0.5, 2.0]).reshape(2, 1, 1, 1, 1) * rng.normal(size=target.shape)
    found = denoising.agreement(KEY, outputs, target)
    for level, r2 in enumerate(found.r2):
        residual = ((outputs[level] - target[level]) ** 2).sum()
        spread = ((target[level] - target[level].mean(axis=0)) ** 2).sum()
        assert r2 == pytest.approx(1 - residual / spread)
        assert found.low[level] < r2 < found.high[level]
    np.testing.assert_allclose(found.r2, [0.75, -3], atol=0.2)
    assert denoising.agreement(KEY, target, target).r2.tolist() == [1, 1]


def test_interval_of_the_agreement_covers_with_many_images(rng):
    inside, spread = 0, 0.5  # of the logarithm of the images' errors
    truth = 1 - 0.25 * np.exp(2 * spread**2)
    for i in range(200):
        target = rng.normal(size=(1, 128, 16))
        scale = 0.5 * np.exp(spread * rng.normal(size=(1, 128, 1)))
        outputs = target + scale * rng.normal(size=target.shape)
        found = denoising.agreement(jax.random.key(i), outputs, target, 300)
        inside += found.low[0] <= truth <= found.high[0]
    assert 0.89 <= inside / 200 <= 0.98


def test_error_matches_closed_form(digits):
    # E||a (x + sigma z) - x||^2 = (1 - a)^2 ||x||^2 + a^2 sigma^2 d
    heldout = digits[1][:60]
    result = denoising.denoising_error(
        KEY, Partial(shrink, jnp.float32(0.9)), heldout, SIGMAS, draws=100, batch=60
    )
    squares = np.float64(heldout**2).sum(axis=(1, 2, 3))
    expected = 0.01 * squares + 0.81 * np.float64(SIGMAS)[:, None] ** 2 * 64
    # The relative spread is about sqrt(2 / 64) for one draw, and a tenth of that for 100 draws.
    np.testing.assert_allclose(result.per_image, expected, rtol=5 * np.sqrt(2 / 64) / 10)
    np.testing.assert_allclose(result.mean, expected.mean(axis=1), rtol=0.01)
    assert result.per_image.shape == (4, 60)
    assert (result.low <= result.mean).all()
    assert (result.mean <= result.high).all()


def test_denoisers_and_batch_sizes_share_the_noise(digits):
    train, _, _, wiener = digits
    arguments = (train[:50], SIGMAS[1:3])
    whole = denoising.denoising_error(KEY, wiener, *arguments, draws=2, batch=50)
    parts = denoising.denoising_error(KEY, wiener, *arguments, draws=2, batch=17)
    np.testing.assert_allclose(whole.per_image, parts.per_image, rtol=1e-4)
    gap = denoising.relative_gap(
        KEY, Partial(shrink, jnp.float32(1)), Partial(shrink, jnp.float32(0)), *arguments, draws=2
    )
    noised = denoising.denoising_error(KEY, Partial(shrink, jnp.float32(1)), *arguments, draws=2)
    halved = denoising.denoising_error(KEY, Partial(shrink, jnp.float32(0.5)), *arguments, draws=2)
    # ||y||^2 = 2 ||y - x||^2 + 2 ||x||^2 - ||y - 2 x||^2
    squares = (train[:50] ** 2).sum(axis=(1, 2, 3)).mean()
    np.testing.assert_allclose(
        gap.distance, 2 * noised.mean + 2 * squares - 4 * halved.mean, rtol=1e-4
    )
    same = denoising.relative_gap(KEY, wiener, wiener, *arguments, draws=2, batch=50)
    np.testing.assert_array_equal(same.relative, 0)


def test_exact_denoiser_has_the_smallest_training_error(errors):
    (exact, wiener), _ = errors
    difference = np.float64(wiener.per_image) - exact.per_image
    standard_error = difference.std(axis=1, ddof=1) / np.sqrt(difference.shape[1])
    assert (difference.mean(axis=1) > -3 * standard_error).all()
    assert difference.mean(axis=1)[1] > 3 * standard_error[1]  # far larger at medium noise


def test_error_of_the_exact_denoiser_reveals_members(errors):
    (exact, wiener), (exact_heldout, wiener_heldout) = errors
    result = membership.membership_auc(exact, exact_heldout)
    by_hand = [
        stats.mannwhitneyu(b, a).statistic / (a.size * b.size)
        for a, b in zip(exact.per_image, exact_heldout.per_image, strict=True)
    ]
    np.testing.assert_allclose(result.auc, by_hand)
    assert result.auc[0] == 1  # at small noise it returns the training image itself
    assert 0.95 < result.low[0] < 1
    assert result.low[-1] < 0.5 < result.high[-1]  # at large noise it returns the mean
    assert membership.membership_auc(wiener, wiener_heldout).auc[1] < result.auc[1]


def test_auc_interval_covers_the_truth(rng):
    shift, m, n = 1.0, 40, 60
    truth = stats.norm.cdf(shift / np.sqrt(2))
    levels = np.zeros(400)
    a, b = rng.standard_normal((400, m)), rng.standard_normal((400, n)) + shift
    errors = [denoising.Errors(levels, levels, levels, levels, x) for x in (a, b)]
    result = membership.membership_auc(*errors)
    inside = ((result.low <= truth) & (truth <= result.high)).mean()
    assert 0.92 < inside < 0.985
    ties = denoising.Errors(levels[:1], None, None, None, np.ones((1, 5)))
    assert membership.membership_auc(ties, ties).auc == 0.5


def test_exact_denoiser_returns_copies_at_small_noise(digits):
    train, heldout, exact, wiener = digits
    arguments = (heldout, train, SIGMAS)
    result = denoising.noise_level_memorization(KEY, exact, *arguments, batch=128)
    assert result.rate[0] > 0.95  # a few are halfway between two training images
    assert result.rate[-1] == 0  # the mean
    for level in (0, 1):
        assert result.rate[level] == result.memorized[level].mean()
    assert (result.low <= result.rate).all()
    assert (result.rate <= result.high).all()
    linear = denoising.noise_level_memorization(KEY, wiener, *arguments, batch=128)
    assert linear.rate.max() < 0.05


def known(images, x, sigma):
    """A denoiser that returns these images at sigma 1, and noisier ones at larger sigma."""
    return images + 0.3 * (sigma[:, None, None, None] - 1) * jnp.roll(images, 1, axis=0)


def test_near_duplicates_count_as_one_image(digits):
    """The rates are those of a float64 loop over the groups, beside the paper's definition."""
    train, heldout, _, _ = digits
    doubled = np.concatenate([train, train[:40] + np.float32(1 / 255)])
    group = np.r_[np.arange(128), np.arange(40)]
    images = train[:128] + 0.02 * heldout
    sigmas = np.float32([1, 2, 4])
    result = denoising.noise_level_memorization(
        KEY, Partial(known, jnp.asarray(images)), heldout, doubled, sigmas, group=group, batch=128
    )
    for level, sigma in enumerate(sigmas):
        denoised = np.asarray(known(images, None, jnp.full(128, sigma))).reshape(128, -1)
        points = doubled.reshape(len(doubled), -1)
        first, second = oracles.two_nearest_groups(denoised, points, group).T
        np.testing.assert_array_equal(result.memorized[level], first < second / 3)
        _, strict = oracles.memorized(denoised, points, 1 / 3)
        np.testing.assert_array_equal(result.strict_memorized[level], strict)
        assert result.strict[level] == strict.mean()
        assert result.strict_low[level] <= strict.mean() <= result.strict_high[level]
    assert result.rate[0] == 1
    assert result.strict[0] == 88 / 128  # near-duplicates hide all copies of 40 images


def test_relative_gap_matches_loop_and_vanishes_at_large_noise(digits):
    train, _, exact, wiener = digits
    sigmas = np.float32([2.0, 20.0, 200.0])
    result = denoising.relative_gap(KEY, exact, wiener, train, sigmas, draws=2, batch=128)
    assert (np.diff(result.relative) < 0).all()
    assert result.relative[-1] < 0.05
    assert (result.low <= result.relative).all()
    assert (result.relative <= result.high).all()
    # At sigma 20, a float64 loop with other noise agrees up to Monte Carlo error.
    rng = np.random.default_rng(0)
    points = np.float64(train.reshape(128, -1))
    y = np.concatenate([points + 20 * rng.standard_normal(points.shape) for _ in range(8)])
    mean, covariance = points.mean(axis=0), np.cov(points.T, bias=True)
    linear = mean + (y - mean) @ np.linalg.solve(covariance + 400 * np.eye(64), covariance)
    distance = ((oracles.denoise(y, points, 20.0) - linear) ** 2).sum(axis=1).mean()
    signal = ((linear - mean) ** 2).sum(axis=1).mean()
    assert result.distance[1] == pytest.approx(distance, rel=0.25)
    assert result.relative[1] == pytest.approx(np.sqrt(distance / signal), rel=0.15)


def test_compiles_once_for_all_levels_and_parameters(digits, count_compilations):
    images = digits[1][:10]
    denoising.denoising_error(KEY, Partial(shrink, jnp.float32(1)), images, SIGMAS[:2], draws=1)
    with count_compilations() as compilations:
        for factor in (0.5, 0.7):
            denoiser = Partial(shrink, jnp.float32(factor))
            denoising.denoising_error(KEY, denoiser, images, SIGMAS[2:], draws=1)
    assert compilations == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"images": np.zeros((2, 64), "f")},
            r"images must have shape .*, got \(2, 64\)",
        ),
        ({"draws": 0}, "draws must be 1 or more, got 0"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"sigmas": [1, -1]}, "sigma.*-1"),
    ],
)
def test_rejects_bad_input(digits, bad, message):
    arguments = {"images": digits[0][:2], "sigmas": SIGMAS, **bad}
    with pytest.raises(ValueError, match=message):
        denoising.denoising_error(KEY, digits[2], **arguments)
