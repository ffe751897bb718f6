"""Points over 8 devices and from disk: the same numbers as on one device, and as float64 loops."""

import jax
import numpy as np
import oracles
import processes
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geomem import data
from geomem.geometry import curves, posterior
from geomem.points import neighbors, placement
from geomem.points.streaming import Stream
from geomem.points.visit import Points, as_points

SIGMAS = np.float32([0.002, 0.02, 0.14, 0.5, 1, 2, 3, 5, 8, 12, 20, 80])
COUNT = 997  # 8 does not divide it, nor do the streams' steps
BAR = 1e-5


@pytest.fixture(scope="module")
def points(cifar):
    """Return images, 30 of them copies at distance 1e-3, some on other devices."""
    points = cifar[0][:COUNT].copy()
    offsets = np.random.default_rng(0).standard_normal((30, points.shape[1]))
    offsets *= 1e-3 / np.linalg.norm(offsets, axis=1, keepdims=True)
    points[600:630] = points[:30] + offsets.astype(np.float32)
    return points


@pytest.fixture(scope="module")
def noised(points, cifar):
    """Return noised training and held-out points [13, d] at each sigma."""
    rng = np.random.default_rng(1)
    clean = np.concatenate([points[[0, 1, 601, 900, 996]], cifar[1][:8]])
    return [(clean + s * rng.standard_normal(clean.shape)).astype(np.float32) for s in SIGMAS]


def grid(*shape):
    names = ("points", "queries")[: len(shape)]
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), names)


PLACEMENTS = {
    "sharded": lambda points: placement.shard(points),
    "sharded, queries too": lambda points: placement.shard(points, grid(4, 2)),
    "streamed to 8 devices": lambda points: placement.stream(points, step=50),
    "streamed to one": lambda points: placement.stream(points, grid(1), step=300),
}
everywhere = pytest.mark.parametrize("place", PLACEMENTS.values(), ids=PLACEMENTS.keys())


def relative(found, wanted):
    """Return the largest ||found - wanted|| / ||wanted|| of all rows."""
    found, wanted = np.float64(found), np.float64(wanted)
    return (np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max()


@everywhere
def test_denoiser_matches_one_device_and_float64(points, noised, place):
    placed = place(points)
    for sigma, y in zip(SIGMAS, noised, strict=True):
        found = posterior.denoise(y, placed, sigma)
        exact = oracles.denoise(y, points, sigma)
        assert relative(found, posterior.denoise(y, points, sigma)) <= 2e-6, sigma
        assert relative(found, exact) <= 2e-6, sigma
        assert np.abs(found - exact).max() <= BAR, sigma


@everywhere
def test_top_weights_match_one_device_and_float64(points, noised, place):
    placed, k = place(points), 20
    for sigma, y in zip(SIGMAS, noised, strict=True):
        found = posterior.top_weights(y, placed, sigma, k)
        one = posterior.top_weights(y, points, sigma, k)
        # For one query, the last bit of a logit near 10 changes its weights by 1e-6.
        assert relative(np.ravel(found.weight), np.ravel(one.weight)) <= 1e-6, sigma
        assert relative(found.weight, one.weight) <= 2e-6, sigma
        exact = np.exp(oracles.log_weights(y, points, sigma))
        own = np.take_along_axis(exact, np.asarray(found.index), 1)
        assert np.abs(found.weight - own).max() <= BAR, sigma
        assert np.abs(found.weight - np.sort(exact, axis=1)[:, ::-1][:, :k]).max() <= BAR, sigma
        np.testing.assert_array_equal(found.index[:, 0], exact.argmax(axis=1))


@everywhere
def test_two_nearest_match_float64_loop(points, noised, place):
    placed = place(points + np.float32(100))
    queries = np.concatenate([noised[0], noised[5], points[[3, 603]]]) + np.float32(100)
    found = neighbors.two_nearest(queries, placed)
    distance, index = oracles.two_nearest(queries, points + np.float32(100))
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=2e-6, atol=0)


def test_ties_are_broken_by_index_across_devices(rng):
    points = np.zeros((50, 3), np.float32)
    points[[12, 30, 47]] = 1  # on three devices
    for place in (placement.shard, placement.stream):
        placed = place(points)
        found = neighbors.two_nearest(np.ones((2, 3), np.float32), placed)
        np.testing.assert_array_equal(found.index, [[12, 30], [12, 30]])
        top = posterior.top_weights(np.ones((2, 3), np.float32), placed, 0.01, 3)
        np.testing.assert_array_equal(top.index, [[12, 30, 47]] * 2)
        np.testing.assert_allclose(top.weight, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("place", [placement.shard, placement.stream])
def test_accepts_fewer_points_than_devices(rng, place):
    points = rng.standard_normal((5, 3)).astype(np.float32)
    y = points[:2] + np.float32(0.1)
    found = posterior.denoise(y, place(points), 0.5)
    np.testing.assert_allclose(found, oracles.denoise(y, points, 0.5), atol=BAR)


def test_curves_match_one_device(cifar):
    points, key, sigmas = cifar[0][:COUNT], jax.random.key(0), np.float32([0.1, 1, 2, 4, 8, 20])
    heldout = cifar[1][:20]
    settings = {"num_base": 21, "draws_coverage": 2, "draws_weight": 2, "bootstrap": 20}
    # With so few noised points, one device uses the direct frame too, with the same noise.
    one = curves.estimate(key, points, heldout, sigmas, **settings)
    assert 0.1 < one.coverage.mean[2] < 1  # the comparison says something
    assert one.coverage_lower_bound.max() > 0.9
    for place in (placement.shard, lambda points: placement.stream(points, step=50)):
        placed = curves.estimate(key, place(points), heldout, sigmas, **settings)
        for found, wanted in zip(jax.tree.leaves(placed), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=5e-6)


def test_sharded_arrays_stay_in_place(points, noised):
    sharding = NamedSharding(grid(8), PartitionSpec("points"))
    placed = jax.device_put(points[:992], sharding)
    found = posterior.denoise(noised[6], placed, SIGMAS[6])
    assert relative(found, posterior.denoise(noised[6], points[:992], SIGMAS[6])) <= 1e-6
    assert as_points(placed).mesh is sharding.mesh


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """uint8 images [300, 8, 8, 3]: (path of the file, the points as float32)."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)
    pixels[0, 0, 0] = 0, 255, 128
    path = tmp_path_factory.mktemp("stored") / "images.npy"
    np.save(path, pixels)
    return path, data.to_float(pixels).reshape(300, -1)


def test_stored_images_are_decoded_on_the_device(stored):
    path, points = stored
    y = points[:7] + np.float32(0.2)
    wanted = posterior.denoise(y, points, 0.5)
    split = data.load(str(path), heldout=0.5).train_split
    for placed, rows in (
        (placement.shard(path), points),
        (placement.stream(path, step=16), points),
        (np.load(path).reshape(300, -1), points),
        (placement.stream(split), split.images.reshape(150, -1)),
        (placement.shard(split.pixels), split.images.reshape(150, -1)),
    ):
        if len(rows) == 300:
            np.testing.assert_allclose(posterior.denoise(y, placed, 0.5), wanted, atol=1e-6)
        index = np.arange(0, len(rows), 7)
        np.testing.assert_array_equal(as_points(placed).take(index), rows[index])


def test_decodes_every_stored_value(stored):
    values = np.arange(256, dtype=np.uint8)[:, None]
    found = as_points(values).take(np.arange(256))
    np.testing.assert_array_equal(found, data.to_float(values))


def test_compiles_once_per_shape(count_compilations, rng):
    points = rng.standard_normal((21, 4)).astype(np.float32)
    y = points[:5]
    for place in (placement.shard, lambda points: placement.stream(points, step=2)):
        placed = place(points)
        posterior.denoise(y, placed, 1.0)
        with count_compilations() as compilations:
            for sigma in (0.1, 2.0, 30.0):
                posterior.denoise(y, placed, sigma)
        assert compilations == []


def test_nonfinite_queries_do_not_hang(points, noised):
    y = noised[6].copy()
    y[1, 7] = np.nan
    for place in (placement.shard, lambda points: placement.stream(points, step=50)):
        found = np.asarray(posterior.denoise(y, place(points), SIGMAS[6]))
        assert np.isnan(found[1]).all()
        assert np.isfinite(np.delete(found, 1, axis=0)).all()


def test_rejects_bad_input(points):
    with pytest.raises(
        ValueError, match=r"points must hold uint8 or floats \[N, ...\], got int64 of shape \(4,\)"
    ):
        placement.shard(np.arange(4))
    with pytest.raises(ValueError, match=r"y must have 4 values a row like the points, got"):
        posterior.denoise(points[:2], np.zeros((2, 2, 2)), 1.0)
    with pytest.raises(
        ValueError, match=r"mesh must have one axis for a stream, got \('points', 'queries'\)"
    ):
        placement.stream(points, grid(4, 2))
    with pytest.raises(ValueError, match="points must be an array, got placed points"):
        posterior.weights(points[:2], placement.shard(points), 1.0)
    with pytest.raises(ValueError, match="k must be 1 to 997, the number of points, got 998"):
        posterior.top_weights(points[:2], points, 1.0, 998)
    streamed = placement.stream(points)
    with pytest.raises(ValueError, match="points must not be a stream inside a JAX transformation"):
        jax.jit(lambda y: posterior.denoise(y, streamed, 1.0))(points[:2])


WORKER = """
import numpy as np
(folder,) = arguments
from geomem.geometry import curves, posterior
from geomem.points import neighbors, placement
y = np.load(f"{folder}/y.npy")
for name, place in (("sharded", placement.shard), ("streamed", placement.stream)):
    points = place(f"{folder}/points.npy")
    found = {f"mean_{s}": posterior.denoise(y, points, s) for s in (0.02, 2.0, 8.0)}
    found["weight"], found["index"] = posterior.top_weights(y, points, 2.0, 5)
    found["distance"], found["nearest"] = neighbors.two_nearest(y, points)
    weight, *_ = curves.estimate_weight(
        jax.random.key(0), points, [0.5, 5.0], num_base=8, draws=2, bootstrap=3
    )
    found["curve"] = weight.mean
    if process == "0":
        np.savez(f"{folder}/{name}.npz", **found)
"""


@pytest.mark.slow
def test_two_processes_equal_one(points, noised, tmp_path):
    np.save(tmp_path / "points.npy", points)
    np.save(tmp_path / "y.npy", noised[6])
    processes.run_two(WORKER, tmp_path)
    y = noised[6]
    top, nearest = posterior.top_weights(y, points, 2.0, 5), neighbors.two_nearest(y, points)
    weight, *_ = curves.estimate_weight(
        jax.random.key(0), points, [0.5, 5.0], num_base=8, draws=2, bootstrap=3
    )
    for name in ("sharded", "streamed"):
        found = np.load(tmp_path / f"{name}.npz")
        for sigma in (0.02, 2.0, 8.0):
            one = posterior.denoise(y, points, sigma)
            assert relative(found[f"mean_{sigma}"], one) <= 1e-6, (name, sigma)
        assert relative(found["weight"], top.weight) <= 1e-6
        np.testing.assert_array_equal(found["index"], top.index)
        np.testing.assert_array_equal(found["nearest"], nearest.index)
        np.testing.assert_allclose(found["distance"], nearest.distance, rtol=1e-6)
        np.testing.assert_allclose(found["curve"], weight.mean, rtol=1e-5)


def test_places_points_where_memory_allows(stored, monkeypatch):
    path, points = stored
    assert isinstance(placement.place(path), Points)
    monkeypatch.setattr(placement, "_memory", lambda device: points.size)  # half is not enough
    assert isinstance(placement.place(path), Stream)
    single = placement.place(points, grid(1))
    assert isinstance(single, Stream)
    monkeypatch.undo()
    single = placement.place(path, grid(1))
    np.testing.assert_array_equal(single.rows, points)
