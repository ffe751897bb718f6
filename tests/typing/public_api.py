"""The public API as users call it. A type checker reads this file; nothing runs it."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

import jax
import jax.numpy as jnp
import numpy as np

import geomem
from geomem import data, diffusion, geometry, metrics, plots, points

# Data, and the danger zone of images.
dataset = geomem.load("cifar10_sample", heldout=0.2).subset(classes=["cat", "dog"], count=100)
names: tuple[str, ...] = dataset.class_names
repeated: int = data.count_duplicates(dataset.train_split.pixels)
as_stored: np.ndarray = dataset.train_split.at(slice(0, 8))
floats: np.ndarray = data.to_float(as_stored)
on_device: jax.Array = data.to_float(jnp.asarray(as_stored))
curves = geomem.estimate_curves(dataset.train, dataset.test)
zone = geomem.find_danger_zone(curves, threshold=0.9)
if zone.low is not None and zone.high is not None:
    width: float = zone.high / zone.low
    low_edge, high_edge = zone.low, zone.high
else:
    low_edge, high_edge = 0.2, 0.5
figure = plots.danger_zone(curves, zone, title="cats and dogs")
figure.savefig("zone.png")
plots.save(figure, ".")
columns: dict[str, np.ndarray] = curves.columns()
plots.danger_zone(columns, zone._asdict())

# Vectors, in NumPy or in JAX, floats or as stored; a grid of the user's own.
vectors = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
queries, key = jnp.asarray(vectors[:10]), jax.random.key(0)
coverage, lower, upper = geometry.estimate_coverage(key, vectors, queries, np.geomspace(0.1, 1, 8))
weight, *_ = geometry.estimate_weight(key, jnp.asarray(vectors), jnp.geomspace(0.1, 1, 8))
inside: np.ndarray = geometry.in_zone(coverage.mean, np.asarray(weight.mean))
plain: jax.Array = geometry.plain_max_weight(key, vectors, 0.3)
covered: jax.Array = geometry.coverage(key, queries, vectors, 0.3, draws=2)
bounds: tuple[jax.Array, jax.Array] = geometry.coverage_bounds(vectors[:10], queries, 0.3)
in_shell: jax.Array = geometry.contains(queries, vectors, np.full(10, 0.3))
chance: np.ndarray = geometry.shell_probability(np.arange(3.0), dim=8)
bound: jax.Array = geometry.own_weight_lower_bound(np.ones((10, 99)), 0.3)

# The posterior, with one noise level or one per query, and over points that are placed.
mean: jax.Array = geomem.denoise(vectors[:10], vectors, 0.3)
images_mean: jax.Array = geometry.denoise(dataset.train[:10], dataset.train_split.pixels, 0.3)
largest: jax.Array = geometry.max_weight(queries, vectors, jnp.full(10, 0.3))
top = geometry.top_weights(queries, points.shard(vectors), 0.3, k=3)
best: jax.Array = top.weight[:, 0] + top.index[:, 0]
logs: jax.Array = geometry.log_weights(queries, vectors, np.float32(0.3))
nearest = points.nearest(queries, points.place(vectors), 3)
distance: jax.Array = nearest.distance
gaussian: geometry.Gaussian = geometry.fit_gaussian(vectors)
wiener: jax.Array = geometry.gaussian_denoise(queries, gaussian, 0.3)
band = geometry.fourier_band(32, 32, 4.0, "low")
coordinates: jax.Array = band.coordinates(dataset.train)

# Mistakes that the checker must find: an unnecessary `ignore` is an error.
geomem.denoise("images.npy", vectors, 0.3)  # pyright: ignore[reportArgumentType]
geomem.denoise(vectors, vectors)  # pyright: ignore[reportCallIssue]
geomem.find_danger_zone(dataset)  # pyright: ignore[reportArgumentType]
geomem.estimate_curves(dataset.train)  # pyright: ignore[reportCallIssue]
geomem.load(resize="32")  # pyright: ignore[reportArgumentType]
print(zone.upper)  # pyright: ignore[reportAttributeAccessIssue]

# Training noise around the zone.
schedule = diffusion.gap(diffusion.lognormal(), low_edge, high_edge)
noise_levels: jax.Array = schedule.sample(key, (16,))
share: float = schedule.mass(0.1, 1.0)
grid: np.ndarray = diffusion.skip_gaps(diffusion.edm_grid(18), schedule)
timestep: np.ndarray = diffusion.sigma_to_timestep(0.3, diffusion.conventions.linear_betas())
flow_time: np.ndarray = diffusion.sigma_to_flow_time(np.array([0.3, 1.0]))

# Samples of the user's own denoiser, of the exact one and of a network.


def shrink(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """A denoiser of the user's own."""
    return x / (1 + sigma[:, None, None, None] ** 2)


samples: np.ndarray = diffusion.generate(shrink, range(8), (32, 32, 3), grid)
exact = geometry.empirical_denoiser(dataset.train)
diffusion.generate(exact, np.arange(8), (32, 32, 3), [1.0, 0.1, 0.0], churn=diffusion.Churn(40.0))
network = diffusion.EDMDenoiser(diffusion.UNet(channels=16, multipliers=(1, 2)))
recipe = diffusion.Recipe(schedule, batch=64)
state = diffusion.training_step.init(network, recipe, (32, 32, 3))
update = diffusion.make_update(network, recipe)
diffusion.generate(network.bind(state.ema), [1, 2], (32, 32, 3), grid, method="euler")
saved: np.ndarray = diffusion.to_uint8(samples)

# Metrics.
memorized = metrics.memorization.measure(samples, dataset.train)
report = metrics.memorization.report(samples, jnp.asarray(dataset.train), dataset.test)
copies: metrics.Rate = report.memorized
levels = np.geomspace(0.1, 1, 8)
errors = metrics.denoising_error(key, shrink, dataset.train, levels, draws=1)
heldout_errors = metrics.denoising_error(key, shrink, jnp.asarray(dataset.test), levels)
auc: np.ndarray = metrics.membership_auc(errors, heldout_errors).auc
gap: metrics.denoising.RelativeGap = metrics.relative_gap(key, shrink, exact, samples, levels)
score: metrics.Score = metrics.frechet.compare(
    samples, metrics.frechet.describe(dataset.train, "train")
)
pairs: metrics.Duplicates = metrics.duplicates.find(dataset.train, dataset.test)
print(zone, memorized, auc, score)
