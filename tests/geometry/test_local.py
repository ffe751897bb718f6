"""Local denoisers against float64 loops over pixels, and against exact identities."""

import chex
import jax
import numpy as np
import oracles
import pytest

import geomem
from geomem.geometry import _patch_passes, gaussian, local, posterior

BAR = 1e-5
SIDES = (1, 3, 5, 7, 17)
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 4.0, 10.0)
KINDS = {
    "ls": (local.ls, {}),
    "els": (local.els, {"everywhere": True}),
    "els, same border": (
        lambda images, side: local.els(images, side, border="same"),
        {"everywhere": True, "same_border": True},
    ),
}


@pytest.fixture(scope="module")
def crops(cifar):
    """100 crops of natural images, [100, 6, 5, 3]; some are copies, and some nearly."""
    images = cifar[0].reshape(-1, 32, 32, 3)[:100, 10:16, 12:17].copy()
    images[50:55] = images[:5]
    images[55:60] = images[5:10] + np.float32(1e-3)
    return images


@pytest.fixture(scope="module")
def noised(crops):
    """Crops of training and other images with noise of each level: (y [9, 6, 5, 3], sigma [9])."""
    rng = np.random.default_rng(0)
    clean = np.concatenate([crops[:5], crops[60:64]])
    clean[:, :, :2] = rng.uniform(-1, 1, (9, 6, 2, 3))  # far from all crops
    sigma = np.float32(SIGMAS)
    noise = rng.standard_normal(clean.shape).astype(np.float32)
    return clean + sigma[:, None, None, None] * noise, sigma


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_float64_loop(kind, side, crops, noised, monkeypatch):
    monkeypatch.setattr(_patch_passes, "_VALUES", 9 * 6 * 5 * 16)  # chunks do not divide 100
    make, options = KINDS[kind]
    y, sigma = noised
    images = crops[:70] if side == 17 else crops  # for the loop's sake
    expected = oracles.local_score(y, images, sigma, side, **options)
    chex.assert_trees_all_close(make(images, side)(y, sigma), expected, atol=BAR, rtol=0)


def test_plain_definitions_equal_the_loop(crops, noised):
    y, sigma = noised[0][4:5], noised[1][4]
    for plain, everywhere in ((local.plain_ls, False), (local.plain_els, True)):
        expected = oracles.local_score(y, crops, sigma, 3, everywhere)
        chex.assert_trees_all_close(plain(y, crops, sigma, 3), expected, atol=BAR, rtol=0)


def test_ls_with_patches_that_cover_the_image_is_the_exact_denoiser(crops, noised):
    exact = posterior.empirical_denoiser(crops)(*noised)
    chex.assert_trees_all_close(local.ls(crops, 11)(*noised), exact, atol=BAR, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["shard", "stream"])
def test_devices_and_streams_equal_one_device(kind, place, crops, noised):
    assert jax.device_count() == 8
    make, _ = KINDS[kind]
    placed = geomem.points.shard(crops) if place == "shard" else geomem.points.stream(crops, step=5)
    chex.assert_trees_all_close(make(placed, 3)(*noised), make(crops, 3)(*noised), atol=BAR, rtol=0)


def test_wiener_is_the_gaussian_denoiser_of_all_cyclic_shifts(crops, noised):
    y, sigma = noised
    shifts = [np.roll(crops, (r, c), axis=(1, 2)) for r in range(6) for c in range(5)]
    fit = gaussian.fit_gaussian(np.concatenate(shifts).reshape(-1, 90))
    expected = gaussian.gaussian_denoise(y.reshape(9, 90), fit, sigma).reshape(y.shape)
    for images, shape in ((crops, None), (geomem.points.stream(crops), (6, 5, 3))):
        found = local.wiener(images, shape=shape)(y, sigma)
        chex.assert_trees_all_close(found, expected, atol=5e-5, rtol=0)


def test_pca_compares_the_leading_coordinates(crops, noised):
    y, sigma = noised
    rank = 4
    found = local.pca(crops, 3, rank)(y, sigma)
    pad = ((0, 0), (1, 1), (1, 1), (0, 0))
    left, right = np.pad(np.float64(y), pad), np.pad(np.float64(crops), pad)
    for r, c in np.ndindex(6, 5):
        a, b = (p[:, r : r + 3, c : c + 3].reshape(len(p), -1) for p in (left, right))
        basis = np.linalg.svd(b - b.mean(axis=0), full_matrices=False)[2][:rank].T
        expected = oracles.denoise_by((a @ basis), (b @ basis), sigma, crops[:, r, c])
        np.testing.assert_allclose(found[:, r, c], expected, atol=1e-4)


def test_pca_with_all_components_is_ls(crops, noised):
    full = local.pca(geomem.points.shard(crops), 3, 27, shape=(6, 5, 3))(*noised)
    chex.assert_trees_all_close(full, local.ls(crops, 3)(*noised), atol=5e-5, rtol=0)


def test_a_table_gives_each_noise_level_its_side(crops, noised):
    y, sigma = noised
    table = local.ls(crops, {0.1: 3, 2.0: 11})  # they meet at sigma 0.45
    expected = np.concatenate([local.ls(crops, 3)(y, sigma)[:5], local.ls(crops, 11)(y, sigma)[5:]])
    chex.assert_trees_all_close(table(y, sigma), expected, atol=BAR, rtol=0)
    chex.assert_trees_all_close(jax.jit(table)(y, sigma), expected, atol=BAR, rtol=0)


def test_calibration_finds_the_side_with_the_least_error(crops):
    key, heldout = jax.random.key(0), crops[60:]
    make = lambda side: local.ls(crops[:60], side)  # noqa: E731
    table = local.calibrate_patch(key, make, heldout, (0.1, 4.0), (1, 3, 11))
    for number, (sigma, side) in enumerate(table.items()):
        noise = jax.random.normal(jax.random.split(key, 2)[number], heldout.shape)
        errors = [
            np.mean(
                (oracles.local_score(heldout + sigma * noise, crops[:60], sigma, s) - heldout) ** 2
            )
            for s in (1, 3, 11)
        ]
        assert side == (1, 3, 11)[int(np.argmin(errors))]
    agreeing = local.calibrate_patch(key, make, heldout, (0.1,), (1, 3, 11), target=make(3))
    assert agreeing == {0.1: 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda images: local.ls(images, 4), "patch must be odd and positive, got 4."),
        (lambda images: local.els(images, {}), "got an empty table"),
        (lambda images: local.els(images, {0.0: 3}), "noise levels of patch must be positive"),
        (lambda images: local.els(images, 3, border="reflect"), "border must be 'zero' or 'same'"),
        (lambda images: local.ls(images.reshape(100, -1), 3), r"images must be \[N, H, W, C\]"),
        (lambda images: local.pca(images, 3, 28), "rank must be 1 to 27, got 28."),
        (lambda images: local.wiener(geomem.points.stream(images)), "shape must be"),
        (lambda images: local.ls(images, 3)(images.transpose(0, 3, 1, 2), 1.0), "x must be images"),
        (lambda images: local.ls(images, 3)(images, -1.0), "sigma must be positive"),
    ],
)
def test_errors_name_the_argument(make, message, crops):
    with pytest.raises(ValueError, match=message):
        make(crops)
