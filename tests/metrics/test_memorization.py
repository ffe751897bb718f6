"""Flags, rates and comparisons against float64 loops and closed forms."""

import numpy as np
import oracles
import pytest

from geomem.experiments.benchmarks import timing
from geomem.geometry import posterior
from geomem.metrics import memorization
from geomem.points.neighbours import two_nearest


@pytest.fixture(scope="module")
def digits():
    from geomem import data

    loaded = data.load("digits")
    return loaded.train[:128], loaded.test


def near_the_threshold(rng, points, count, spread, ratio=1 / 3):
    """Queries with d1 / d2 = ratio (1 + e), |e| <= spread, between a point and its nearest."""
    first = rng.integers(len(points), size=count)
    partner = oracles.two_nearest(points, points)[1][first, 1]
    ratios = ratio * (1 + spread * rng.uniform(-1, 1, size=(count, 1)))
    p, q = np.float64(points[first]), np.float64(points[partner])
    return np.float32(p + ratios / (1 + ratios) * (q - p))


@pytest.mark.parametrize("copied", [0, memorization._COPIED])
def test_flags_and_indices_are_those_of_a_float64_loop_on_10000_queries(rng, monkeypatch, copied):
    monkeypatch.setattr(memorization, "_COPIED", copied)
    points = rng.standard_normal((300, 48)).astype(np.float32)
    queries = np.concatenate(
        [
            near_the_threshold(rng, points, 3000, 1e-6),
            near_the_threshold(rng, points, 2000, 1e-7),
            points[rng.integers(300, size=2500)]
            + rng.uniform(0, 1, (2500, 1)).astype("f") * rng.standard_normal((2500, 48), "f"),
            rng.standard_normal((2000, 48), "f"),
            near_the_threshold(rng, points, 500, 1e-7, ratio=1),  # which is the nearer one?
        ]
    )
    assert len(queries) == 10_000
    index, flags = oracles.memorized(queries, points, 1 / 3)
    found = memorization.measure(queries, points)
    np.testing.assert_array_equal(found.memorized, flags)
    np.testing.assert_array_equal(found.index, index)
    distance, _ = oracles.two_nearest(queries, points)
    np.testing.assert_allclose(found.distance, distance, rtol=2e-6)
    np.testing.assert_allclose(found.ratio, distance[:, 0] / distance[:, 1], rtol=4e-6)
    # The queries do test it: float32 distances alone get some of these flags wrong.
    near = flags[:5000]
    assert 0.2 < near.mean() < 0.8
    single = two_nearest(queries[:5000], points).distance
    assert (np.asarray(single[:, 0] < single[:, 1] / 3) != near).mean() > 0.01


def test_images_in_host_memory_are_not_copied_as_a_whole(rng):
    train = rng.random((65_536, 2048), np.float32)
    samples = train[:8] + np.float32(1e-3)
    assert memorization.measure(samples, train).memorized.all()  # compiles, too
    grown = timing.peak_growth(lambda: memorization.measure(samples, train))
    assert grown is None or grown < 0.75 * train.nbytes


def test_a_copy_of_a_duplicate_is_a_copy():
    train = np.zeros((4, 2, 2, 1), np.float32)
    train[2:] = np.float32([0, 1])[:, None, None, None]  # 0, 0, 0, 1
    samples = train[[0, 3]] + np.float32(1e-3)
    found = memorization.measure(samples, train)
    np.testing.assert_array_equal(found.index, [[0, 3], [3, 0]])
    np.testing.assert_array_equal(found.memorized, [True, True])
    literal = memorization.measure(samples, train, distinct=False)
    np.testing.assert_array_equal(literal.index, [[0, 1], [3, 0]])
    np.testing.assert_array_equal(literal.memorized, [False, True])
    np.testing.assert_array_equal(literal.ratio[0], 1)
    exact = memorization.measure(train[:1], train, distinct=False)
    assert exact.ratio[0] == 1
    assert not exact.memorized[0]


def test_a_ratio_at_the_threshold_is_not_below_it():
    train = np.float32([[0.0], [4.0], [100.0]])
    found = memorization.measure(np.float32([[1.0]]), train)
    assert found.ratio[0] == 1 / 3
    assert not found.memorized[0]


def test_a_scaled_and_shifted_data_set_gives_the_same_flags(digits, rng):
    train, _ = digits
    samples = train[:50] + 0.1 * rng.standard_normal((50, 8, 8, 1)).astype(np.float32)
    found = memorization.measure(samples, train)
    moved = memorization.measure(4 * samples + 2, 4 * train + 2)
    np.testing.assert_array_equal(found.memorized, moved.memorized)
    np.testing.assert_array_equal(found.index, moved.index)


def test_an_embedding_takes_the_place_of_the_pixels(digits):
    train, heldout = digits
    found = memorization.measure(heldout[:20], train, embed=lambda x: x.mean(axis=(2, 3)))
    index, flags = oracles.memorized(heldout[:20].mean(axis=(2, 3)), train.mean(axis=(2, 3)), 1 / 3)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.memorized, flags)


def test_samples_of_the_empirical_denoiser_are_copies_and_held_out_images_are_not(digits, rng):
    from geomem.diffusion import grids, sampler

    train, heldout = digits
    denoiser = posterior.empirical_denoiser(train)
    noise = 80 * rng.standard_normal((64, 8, 8, 1)).astype(np.float32)
    samples = sampler.solve(denoiser, noise, grids.edm_grid(18), method="euler")
    found = memorization.report(samples, train, heldout)
    assert found.memorized[:2] == (64, 64)
    assert found.without_noise[:2] == (64, 64)
    assert found.adaptive[:2] == (64, 64)
    assert found.memorized_heldout.rate < 0.01
    assert found.without_noise_heldout.rate < 0.01
    assert found.noise_mean < 0.005
    assert 20 < found.copied <= 64
    alone = memorization.measure(samples, train)
    np.testing.assert_array_equal(found.found.index, alone.index)
    np.testing.assert_array_equal(found.found.memorized, alone.memorized)
    np.testing.assert_allclose(found.found.distance, alone.distance, rtol=2e-6)
    score = memorization.adaptive_score(samples, train)
    np.testing.assert_array_equal(found.adaptive_score, score)
    assert set(found.summary()) == set(found._fields[:9])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"samples": np.zeros((2, 8, 8, 1), np.uint8)}, "samples: uint8 values, wanted floats"),
        ({"samples": np.zeros((2, 4, 4, 1), "f")}, "samples: shape"),
        ({"train": np.zeros((1, 8, 8, 1), "f")}, "samples, train: 2 and 1 images"),
        ({"train": np.zeros((3, 8, 8, 1), "f")}, "train: 3 copies of one image"),
        ({"samples": np.full((2, 8, 8, 1), np.nan, "f")}, "samples: 2 of 2 are not finite"),
        ({"threshold": 2.0}, "threshold: 2, wanted"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(digits, bad, message):
    arguments = {"samples": np.zeros((2, 8, 8, 1), "f"), "train": digits[0], **bad}
    with pytest.raises(ValueError, match=message):
        memorization.measure(**arguments)


def test_the_adaptive_score_is_that_of_a_loop(digits):
    train, heldout = digits
    squares = oracles.squared_distances(heldout[:30].reshape(30, -1), train.reshape(128, -1))
    nearest = np.sort(np.sqrt(squares), axis=1)[:, :50]
    score = memorization.adaptive_score(heldout[:30], train)
    np.testing.assert_allclose(score, nearest[:, 0] / (0.5 * nearest.mean(axis=1)), rtol=1e-5)
