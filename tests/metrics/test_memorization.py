"""Flags, indices and scores against float64 loops and closed forms."""

import numpy as np
import oracles
import pytest

from geomem import data
from geomem.diffusion import grids, sampler
from geomem.experiments.benchmarks import timing
from geomem.geometry import posterior
from geomem.metrics import memorization
from geomem.points.neighbors import two_nearest


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    return dataset.train[:128], dataset.test


def near_the_threshold(rng, points, count, spread, ratio=1 / 3):
    """Queries with d1 / d2 = ratio (1 + e), |e| <= spread, between a point and its nearest."""
    first = rng.integers(len(points), size=count)
    partner = oracles.two_nearest(points, points)[1][first, 1]
    ratios = ratio * (1 + spread * rng.uniform(-1, 1, size=(count, 1)))
    p, q = np.float64(points[first]), np.float64(points[partner])
    return np.float32(p + ratios / (1 + ratios) * (q - p))


@pytest.mark.parametrize("resident", [0, memorization._RESIDENT_BYTES])
def test_matches_float64_loop_on_10000_queries(rng, monkeypatch, resident):
    monkeypatch.setattr(memorization, "_RESIDENT_BYTES", resident)
    points = rng.standard_normal((300, 48)).astype(np.float32)
    queries = np.concatenate(
        [
            near_the_threshold(rng, points, 3000, 1e-6),
            near_the_threshold(rng, points, 2000, 1e-7),
            points[rng.integers(300, size=2500)]
            + rng.uniform(0, 1, (2500, 1)).astype("f") * rng.standard_normal((2500, 48), "f"),
            rng.standard_normal((2000, 48), "f"),
            near_the_threshold(rng, points, 500, 1e-7, ratio=1),  # d1 is nearly d2
        ]
    )
    assert len(queries) == 10_000
    index, flags = oracles.memorized(queries, points, 1 / 3)
    np.testing.assert_array_equal(memorization.plain_memorized(queries, points), flags)
    result = memorization.measure(queries, points)
    np.testing.assert_array_equal(result.memorized, flags)
    np.testing.assert_array_equal(result.index, index)
    distance, _ = oracles.two_nearest(queries, points)
    np.testing.assert_allclose(result.distance, distance, rtol=2e-6)
    np.testing.assert_allclose(result.ratio, distance[:, 0] / distance[:, 1], rtol=4e-6)
    # The queries are hard: float32 distances alone get some of these flags wrong.
    near = flags[:5000]
    assert 0.2 < near.mean() < 0.8
    single = two_nearest(queries[:5000], points).distance
    assert (np.asarray(single[:, 0] < single[:, 1] / 3) != near).mean() > 0.01


def test_streams_images_from_host_memory(rng):
    train = rng.random((65_536, 2048), np.float32)
    samples = train[:8] + np.float32(1e-3)
    assert memorization.measure(samples, train).memorized.all()  # also compiles
    growth = timing.peak_growth(lambda: memorization.measure(samples, train))
    assert growth is None or growth < 0.75 * train.nbytes


def test_copy_of_a_duplicate_counts():
    train = np.zeros((4, 2, 2, 1), np.float32)
    train[2:] = np.float32([0, 1])[:, None, None, None]  # 0, 0, 0, 1
    samples = train[[0, 3]] + np.float32(1e-3)
    result = memorization.measure(samples, train)
    np.testing.assert_array_equal(result.index, [[0, 3], [3, 0]])
    np.testing.assert_array_equal(result.memorized, [True, True])
    literal = memorization.measure(samples, train, distinct=False)
    np.testing.assert_array_equal(literal.index, [[0, 1], [3, 0]])
    np.testing.assert_array_equal(literal.memorized, [False, True])
    np.testing.assert_array_equal(literal.ratio[0], 1)
    np.testing.assert_array_equal(literal.memorized, memorization.plain_memorized(samples, train))
    exact = memorization.measure(train[:1], train, distinct=False)
    assert exact.ratio[0] == 1
    assert not exact.memorized[0]


def test_ratio_at_threshold_does_not_count():
    train = np.float32([[0.0], [4.0], [100.0]])
    result = memorization.measure(np.float32([[1.0]]), train)
    assert result.ratio[0] == 1 / 3
    assert not result.memorized[0]


def test_flags_do_not_depend_on_scale_and_shift(digits, rng):
    train, _ = digits
    samples = train[:50] + 0.1 * rng.standard_normal((50, 8, 8, 1)).astype(np.float32)
    result = memorization.measure(samples, train)
    moved = memorization.measure(4 * samples + 2, 4 * train + 2)
    np.testing.assert_array_equal(result.memorized, moved.memorized)
    np.testing.assert_array_equal(result.index, moved.index)


def test_report_on_samples_of_the_empirical_denoiser(digits, rng):
    train, heldout = digits
    denoiser = posterior.empirical_denoiser(train)
    noise = 80 * rng.standard_normal((64, 8, 8, 1)).astype(np.float32)
    samples = sampler.solve(denoiser, noise, grids.edm_grid(18), method="euler")
    result = memorization.report(samples, train, heldout)
    assert result.memorized[:2] == (64, 64)
    assert result.without_noise[:2] == (64, 64)
    assert result.adaptive[:2] == (64, 64)
    assert result.memorized_heldout.rate < 0.01
    assert result.without_noise_heldout.rate < 0.01
    assert result.noise_mean < 0.005
    assert 20 < result.copied <= 64
    alone = memorization.measure(samples, train)
    np.testing.assert_array_equal(result.samples.index, alone.index)
    np.testing.assert_array_equal(result.samples.memorized, alone.memorized)
    np.testing.assert_allclose(result.samples.distance, alone.distance, rtol=2e-6)
    score = memorization.adaptive_score(samples, train)
    np.testing.assert_array_equal(result.adaptive_score, score)
    assert set(result.summary()) == set(result._fields[:11])


def test_noise_is_removed_from_the_distances_between_groups(digits, rng):
    """Near-duplicates hide noisy copies by the paper's definition alone."""
    train, heldout = digits
    doubled = np.concatenate([train, train[:40] + np.float32(1 / 255)])
    group = np.r_[np.arange(128), np.arange(40)]
    samples = train[:60] + 0.05 * rng.standard_normal((60, 8, 8, 1)).astype("f")
    result = memorization.report(samples, doubled, heldout, group=group)
    rows = [a.reshape(len(a), -1) for a in (samples, doubled)]
    added = 64 * result.noise**2
    for distance, rate in (
        (oracles.two_nearest_groups(*rows, group), result.without_noise),
        (oracles.two_nearest(*rows)[0], result.without_noise_strict),
    ):
        ratios = []
        for (first, second), noise in zip(distance**2, added, strict=True):
            removed = noise if second - noise > 4 * noise / 8 else 0
            ratios.append(np.sqrt(max(first - removed, 0) / (second - removed)))
        if rate is result.without_noise:
            np.testing.assert_allclose(result.noise_removed_ratio, ratios, rtol=1e-4, atol=1e-3)
        assert rate.count == (np.array(ratios) < 1 / 3).sum()
    assert result.without_noise.count >= 58
    assert result.without_noise_strict.count <= 30


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"samples": np.zeros((2, 8, 8, 1), np.uint8)},
            "samples must be floats.*, got uint8",
        ),
        ({"samples": np.zeros((2, 4, 4, 1), "f")}, "samples must be images of shape"),
        ({"samples": np.zeros((0, 8, 8, 1), "f")}, "samples must hold 1 or more images, got 0"),
        ({"train": np.zeros((1, 8, 8, 1), "f")}, "train must hold 2 or more images, got 1"),
        ({"train": np.zeros((3, 8, 8, 1), "f")}, "2 or more different images, got 3 copies"),
        (
            {"samples": np.full((2, 8, 8, 1), np.nan, "f")},
            "samples must be finite, got .* 2 of 2",
        ),
        ({"threshold": 2.0}, r"threshold must be in \(0, 1\], got 2"),
    ],
)
def test_rejects_bad_input(digits, bad, message):
    arguments = {"samples": np.zeros((2, 8, 8, 1), "f"), "train": digits[0], **bad}
    with pytest.raises(ValueError, match=message):
        memorization.measure(**arguments)


def test_takes_lists(digits):
    train, samples = digits[0][:20], digits[1][:5]
    found = memorization.measure(samples.tolist(), train.tolist())
    np.testing.assert_array_equal(found.index, memorization.measure(samples, train).index)


def test_adaptive_score_matches_loop(digits):
    train, heldout = digits
    squares = oracles.squared_distances(heldout[:30].reshape(30, -1), train.reshape(128, -1))
    nearest = np.sort(np.sqrt(squares), axis=1)[:, :50]
    score = memorization.adaptive_score(heldout[:30], train)
    np.testing.assert_allclose(score, nearest[:, 0] / (0.5 * nearest.mean(axis=1)), rtol=1e-5)
