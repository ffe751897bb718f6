"""Errors of denoisers against closed forms, and the exact denoiser as the one nobody undercuts."""

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
from geomem.metrics import denoising

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
    """(128 training images, 128 held-out ones, the exact denoiser, the Gaussian denoiser)."""
    loaded = data.load("digits")
    # Shuffled: in their order, the first and the last digits are by different writers.
    shuffled = np.random.default_rng(0).permutation(np.concatenate([loaded.train, loaded.test]))
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


def test_the_error_of_a_shrinking_denoiser_is_its_closed_form(digits):
    # E||a (x + sigma z) - x||^2 = (1 - a)^2 ||x||^2 + a^2 sigma^2 d
    heldout = digits[1][:60]
    found = denoising.denoising_error(
        KEY, Partial(shrink, jnp.float32(0.9)), heldout, SIGMAS, draws=100, batch=60
    )
    squares = np.float64(heldout**2).sum(axis=(1, 2, 3))
    wanted = 0.01 * squares + 0.81 * np.float64(SIGMAS)[:, None] ** 2 * 64
    # Relative spread of one draw is about sqrt(2 / 64); of 100, a tenth of it.
    np.testing.assert_allclose(found.per_image, wanted, rtol=5 * np.sqrt(2 / 64) / 10)
    np.testing.assert_allclose(found.mean, wanted.mean(axis=1), rtol=0.01)
    assert found.per_image.shape == (4, 60)
    assert (found.low <= found.mean).all()
    assert (found.mean <= found.high).all()


def test_the_noise_does_not_depend_on_the_batches_and_is_the_same_for_every_denoiser(digits):
    train, _, _, wiener = digits
    arguments = (train[:50], SIGMAS[1:3])
    some = denoising.denoising_error(KEY, wiener, *arguments, draws=2, batch=50)
    other = denoising.denoising_error(KEY, wiener, *arguments, draws=2, batch=17)
    np.testing.assert_allclose(some.per_image, other.per_image, rtol=1e-4)
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


def test_nothing_undercuts_the_exact_denoiser_on_its_training_images(errors):
    (exact, wiener), _ = errors
    difference = np.float64(wiener.per_image) - exact.per_image
    standard_error = difference.std(axis=1, ddof=1) / np.sqrt(difference.shape[1])
    assert (difference.mean(axis=1) > -3 * standard_error).all()
    assert difference.mean(axis=1)[1] > 3 * standard_error[1]  # and at medium noise it is far off


def test_the_exact_denoiser_tells_members_where_it_memorizes(errors):
    (exact, wiener), (exact_heldout, wiener_heldout) = errors
    found = denoising.membership_auc(exact, exact_heldout)
    by_hand = [
        stats.mannwhitneyu(b, a).statistic / (a.size * b.size)
        for a, b in zip(exact.per_image, exact_heldout.per_image, strict=True)
    ]
    np.testing.assert_allclose(found.auc, by_hand)
    assert found.auc[0] == 1  # at small noise it returns the training image itself
    assert 0.95 < found.low[0] < 1
    assert found.low[-1] < 0.5 < found.high[-1]  # at large noise it returns the mean
    assert denoising.membership_auc(wiener, wiener_heldout).auc[1] < found.auc[1]


def test_the_interval_of_the_auc_covers(rng):
    shift, m, n = 1.0, 40, 60
    truth, inside = stats.norm.cdf(shift / np.sqrt(2)), 0
    nothing = np.zeros(400)
    a, b = rng.standard_normal((400, m)), rng.standard_normal((400, n)) + shift
    errors = [denoising.Errors(nothing, nothing, nothing, nothing, x) for x in (a, b)]
    found = denoising.membership_auc(*errors)
    inside = ((found.low <= truth) & (truth <= found.high)).mean()
    assert 0.92 < inside < 0.985
    ties = denoising.Errors(nothing[:1], None, None, None, np.ones((1, 5)))
    assert denoising.membership_auc(ties, ties).auc == 0.5


def test_denoised_images_are_copies_at_small_noise_for_the_exact_denoiser_only(digits):
    train, heldout, exact, wiener = digits
    arguments = (heldout, train, SIGMAS)
    found = denoising.noise_level_memorization(KEY, exact, *arguments, batch=128)
    assert found.rate[0] > 0.95  # some lie halfway between two training images
    assert found.rate[-1] == 0  # the mean
    for level in (0, 1):
        assert found.rate[level] == found.memorized[level].mean()
    assert (found.low <= found.rate).all()
    assert (found.rate <= found.high).all()
    linear = denoising.noise_level_memorization(KEY, wiener, *arguments, batch=128)
    assert linear.rate.max() < 0.05


def test_the_gap_is_that_of_a_float64_loop_and_vanishes_at_large_noise(digits):
    train, _, exact, wiener = digits
    sigmas = np.float32([2.0, 20.0, 200.0])
    found = denoising.relative_gap(KEY, exact, wiener, train, sigmas, draws=2, batch=128)
    assert (np.diff(found.relative) < 0).all()
    assert found.relative[-1] < 0.05
    assert (found.low <= found.relative).all()
    assert (found.relative <= found.high).all()
    # At 20, from fresh noise and float64: the same up to Monte Carlo error.
    rng = np.random.default_rng(0)
    points = np.float64(train.reshape(128, -1))
    y = np.concatenate([points + 20 * rng.standard_normal(points.shape) for _ in range(8)])
    mean, covariance = points.mean(axis=0), np.cov(points.T, bias=True)
    linear = mean + (y - mean) @ np.linalg.solve(covariance + 400 * np.eye(64), covariance)
    apart = ((oracles.denoise(y, points, 20.0) - linear) ** 2).sum(axis=1).mean()
    way = ((linear - mean) ** 2).sum(axis=1).mean()
    assert found.distance[1] == pytest.approx(apart, rel=0.25)
    assert found.relative[1] == pytest.approx(np.sqrt(apart / way), rel=0.15)


def test_one_compilation_for_all_levels_and_parameters(digits, count_compilations):
    images = digits[1][:10]
    denoising.denoising_error(KEY, Partial(shrink, jnp.float32(1)), images, SIGMAS[:2], draws=1)
    with count_compilations() as compilations:
        for factor in (0.5, 0.7):
            other = Partial(shrink, jnp.float32(factor))
            denoising.denoising_error(KEY, other, images, SIGMAS[2:], draws=1)
    assert compilations == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"images": np.zeros((2, 64), "f")}, r"images: shape \(2, 64\), wanted \[M, H, W, C\]"),
        ({"draws": 0}, "draws: 0, wanted 1 or more"),
        ({"batch": 0}, "batch: 0, wanted 1 or more"),
        ({"sigmas": [1, -1]}, "sigma: -1, wanted"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(digits, bad, message):
    arguments = {"images": digits[0][:2], "sigmas": SIGMAS, **bad}
    with pytest.raises(ValueError, match=message):
        denoising.denoising_error(KEY, digits[2], **arguments)
