"""Augmentation: a float64 loop applies the transformation that the labels describe."""

import functools

import jax
import numpy as np
import pytest

from geomem.diffusion import augment

ALWAYS = jax.jit(functools.partial(augment.augment, probability=1.0))
KEYS = jax.random.split(jax.random.key(0), 4000)


def _blob(height, width, x, y):
    """Return a Gaussian bump, wide enough for accurate resampling."""
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)[..., None].astype(np.float32)


def _distance(image, goal):
    """Return the distance of the bump's centroid from `goal` (x, y), without its mirror images."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    near = np.hypot(columns - goal[0], rows - goal[1]) < 9
    mass = np.where(near, np.asarray(image[..., 0], np.float64), 0)
    if mass.sum() < 5:
        return np.inf
    center = np.array([(mass * columns).sum(), (mass * rows).sum()]) / mass.sum()
    return np.linalg.norm(center - goal)


def _transform(labels, offset, sides, sign):
    """Return where EDM's labels send a point at `offset` (x, y) from the center; y points down.

    The labels do not tell whether an axis is stretched or shrunk: `sign`.
    """
    x_flip, y_flip, scale, cos1, sin, stretch_cos, stretch_sin, shift_x, shift_y = labels
    x, y = offset * [1 - 2 * x_flip, 1 - 2 * y_flip] * 2 ** (0.2 * scale)
    x, y = (cos1 + 1) * x + sin * y, -sin * x + (cos1 + 1) * y  # counterclockwise on the screen
    # Stretch along the axis by 2^(0.2 b), across it by the inverse.
    stretch, angle = sign * np.hypot(stretch_cos, stretch_sin), np.arctan2(stretch_sin, stretch_cos)
    axis, across = (
        np.array([np.cos(angle), -np.sin(angle)]),
        np.array([np.sin(angle), np.cos(angle)]),
    )
    moved = axis * (axis @ [x, y]) * 2 ** (0.2 * stretch)
    moved += across * (across @ [x, y]) * 2 ** (-0.2 * stretch)
    return moved + np.array([shift_x, shift_y]) / 8 * sides


def test_labels_describe_the_transformation():
    height, width, offset = 48, 40, np.array([3.0, -4.0])
    center = np.array([width - 1, height - 1]) / 2
    image, checked = _blob(height, width, *(center + offset)), 0
    for key in KEYS[:60]:
        transformed, labels = ALWAYS(key, image)
        labels = np.asarray(labels, np.float64)
        goals = [center + _transform(labels, offset, (width, height), s) for s in (1, -1)]
        if np.all(goals > np.array(9)) and np.all(goals < np.array([width, height]) - 9):
            assert min(_distance(transformed, goal) for goal in goals) < 0.3
            checked += 1
    assert checked > 15


def test_labels_have_the_documented_rates_and_moments():
    image = np.zeros((4, 4, 1), np.float32)
    labels = np.asarray(jax.jit(jax.vmap(augment.augment, (0, None)))(KEYS, image)[1])
    assert labels.shape == (4000, augment.LABELS)
    active = (labels != 0).mean(0)
    # x-flip: 50%; y-flip: half of 12%; the others: 12%.
    # Half of the stretches are along the x-axis, whose sine is 0.
    np.testing.assert_allclose(active, [0.5, 0.06, *[0.12] * 4, 0.06, *[0.12] * 2], atol=0.02)
    shift, scale = labels[labels[:, 7] != 0, 7:].ravel(), labels[labels[:, 2] != 0, 2]
    assert np.std(shift) == pytest.approx(1, abs=0.1)
    assert np.std(scale) == pytest.approx(1, abs=0.15)
    np.testing.assert_allclose((labels[:, 3] + 1) ** 2 + labels[:, 4] ** 2, 1, atol=1e-6)


def test_flips_and_untouched_images_are_exact():
    image = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    never = jax.jit(functools.partial(augment.augment, probability=0.0))
    seen = set()
    for key in KEYS[:20]:
        output, labels = never(key, image)
        np.testing.assert_array_equal(output, image[:, ::-1] if labels[0] else image)
        assert not labels[1:].any()
        seen.add(float(labels[0]))
    assert seen == {0.0, 1.0}


def test_resampling_is_exact_on_pixels_and_mirrors_the_border():
    resample = jax.jit(augment._resample)
    image = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    same = resample(image, np.eye(2), np.zeros(2))
    np.testing.assert_allclose(same, image, atol=1e-6)
    shifted = resample(image, np.eye(2), np.array([2.0, -1.0]))
    mirrored = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    np.testing.assert_allclose(shifted, mirrored[4:10, 1:6], atol=1e-6)
    quarter = resample(image[:5], np.array([[0.0, 1.0], [-1.0, 0.0]]), np.zeros(2))
    np.testing.assert_allclose(quarter, np.rot90(image[:5], k=-1), atol=1e-5)
    # Cubic convolution reproduces quadratics between the pixels (away from the border).
    ramp = (np.arange(8.0) ** 2)[None, :, None] * np.ones((8, 1, 1))
    half = resample(ramp.astype(np.float32), np.eye(2), np.array([0.5, 0.0]))
    np.testing.assert_allclose(half[4, 2:7, 0], (np.arange(2, 7) - 0.5) ** 2, atol=1e-5)


def test_products_resample_as_gathering_does():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(6, 5, 2)).astype(np.float32)
    taps = [augment._taps(rng.uniform(-9, 14, 30).astype(np.float32), side) for side in (6, 5)]
    gathered = augment._gather_taps(image, *taps)
    np.testing.assert_allclose(augment._multiply_taps(image, *taps), gathered, atol=1e-6)
