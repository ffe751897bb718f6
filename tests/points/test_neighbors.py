"""Distances and nearest neighbors against float64 loops, where cancellation is worst."""

import jax
import numpy as np
import oracles
import pytest

from geomem.points import neighbors
from geomem.points.exact import Candidates, map_rows, merge_candidates


@pytest.fixture(scope="module")
def clustered(cifar):
    """Return 300 images: 40 lie within 1e-3 of the first, and 5 repeat the second exactly."""
    rng = np.random.default_rng(1)
    points = cifar[0][:300].copy()
    offsets = rng.standard_normal((40, points.shape[1]))
    offsets *= 1e-3 / np.linalg.norm(offsets, axis=1, keepdims=True)
    points[100:140] = points[0] + offsets.astype(np.float32)
    points[200:205] = points[1]
    return points


@pytest.mark.parametrize("shift", [0, 100])
def test_squared_distances_of_close_points_are_accurate(clustered, shift):
    points = clustered + np.float32(shift)
    found = np.float64(neighbors.squared_distances(points, points))
    wanted = oracles.squared_distances(points, points)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=0)
    assert (found[wanted == 0] == 0).all()
    same = np.eye(len(points), dtype=bool)
    np.testing.assert_array_equal(neighbors.squared_distances(points, points, same), found)


@pytest.mark.parametrize("shift", [0, 100])
@pytest.mark.parametrize("chunk", [70, 2048])  # 300 is not a multiple of 70
def test_two_nearest_match_float64_loop(cifar, clustered, chunk, shift):
    queries = np.concatenate([cifar[1][:40], clustered[[0, 1, 100, 120, 203]]]) + np.float32(shift)
    points = clustered + np.float32(shift)
    found = neighbors.two_nearest(queries, points, chunk=chunk)
    distance, index = oracles.two_nearest(queries, points)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=2e-6, atol=0)


def test_two_nearest_breaks_ties_by_index():
    points = np.zeros((50, 3), np.float32)
    points[7:] = 1
    found = neighbors.two_nearest(np.ones((2, 3), np.float32), points)
    np.testing.assert_array_equal(found.index, [[7, 8], [7, 8]])
    np.testing.assert_array_equal(found.distance, np.zeros((2, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_values_do_not_hang(rng, bad):
    points = rng.standard_normal((50, 3)).astype(np.float32)
    queries = points[:2] + 1
    queries[1, 1] = bad
    found = neighbors.two_nearest(queries, points)
    np.testing.assert_allclose(found.distance[0], oracles.two_nearest(queries[:1], points)[0][0])
    assert not np.isfinite(neighbors.squared_distances(queries, points)[1]).any()


def test_overflowing_distances_do_not_hang(rng):
    points = 1e30 * rng.standard_normal((50, 3)).astype(np.float32)
    assert np.isinf(neighbors.two_nearest(points[:2], points).distance).all()


def test_two_nearest_rejects_a_single_point():
    with pytest.raises(ValueError, match="count must be 1 to 1, the number of points, got 2"):
        neighbors.two_nearest(np.ones((2, 3), np.float32), np.ones((1, 3), np.float32))


def test_compiles_once_per_shape(count_compilations, rng):
    points = rng.standard_normal((33, 5)).astype(np.float32)
    neighbors.two_nearest(points[:7], points)
    with count_compilations() as compilations:
        for scale in (1, 2, 3):
            neighbors.two_nearest(points[:7] * np.float32(scale), points)
    assert compilations == []


@pytest.mark.parametrize("size", [1024, 512, 500])  # with and without preselection by groups
@pytest.mark.parametrize("ties", [True, False])
def test_candidates_are_the_first_of_the_sorted_points(rng, size, ties):
    score = rng.standard_normal((5, 3 * size)).astype(np.float32)
    if ties:
        score = np.round(score, 1)
    best = Candidates.none(5, 32)
    for start in range(0, 3 * size, size):
        part = slice(start, start + size)
        best = merge_candidates(best, score[:, part], np.arange(3 * size)[part])
    order = np.argsort(-score, axis=1, kind="stable")[:, :32]
    np.testing.assert_array_equal(best.index, order)
    np.testing.assert_array_equal(best.score, np.take_along_axis(score, order, 1))


def test_map_rows_pads_the_last_block(rng):
    rows = rng.standard_normal((10, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        jax.jit(lambda x: map_rows(lambda x: 2 * x, (x,), 4))(rows), 2 * rows
    )


@pytest.mark.parametrize("count", [1, 9])
def test_nearest_returns_any_number(cifar, count):
    points = cifar[0][:300].copy()
    points[200:205] = points[1]
    queries = np.concatenate([cifar[1][:20], points[[0, 1, 100]]])
    found = neighbors.nearest(queries, points, count, chunk=70)
    squares = oracles.squared_distances(queries, points)
    order = np.argsort(squares, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(found.index, order)
    wanted = np.sqrt(np.take_along_axis(squares, order, 1))
    np.testing.assert_allclose(found.distance, wanted, rtol=2e-6, atol=0)


def test_accepts_fewer_groups_than_candidates(rng):
    """96 points form fewer groups of 16 than there are candidates."""
    points = rng.standard_normal((96, 5)).astype(np.float32)
    queries = rng.standard_normal((7, 5)).astype(np.float32)
    index = oracles.two_nearest(queries, points)[1]
    np.testing.assert_array_equal(neighbors.two_nearest(queries, points).index, index)
