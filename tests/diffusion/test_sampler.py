"""Samplers against the reference's samples, closed-form flows and the exact empirical denoiser."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_oracles import DATA, load_oracle

from geomem.diffusion import edm_weights, grids, sampler

GRID = grids.edm_grid(18)


def _empirical(images):
    """The posterior mean over `images` [N, H, W, C], by its definition."""

    def denoiser(images, x, sigma):
        squares = ((x[:, None] - images[None]) ** 2).sum((2, 3, 4))
        return jnp.einsum(
            "bn,nhwc->bhwc", jax.nn.softmax(-squares / (2 * sigma[:, None] ** 2)), images
        )

    return jax.tree_util.Partial(denoiser, images)


IMAGES = np.random.default_rng(0).uniform(-1, 1, (20, 4, 4, 1)).astype(np.float32)
EMPIRICAL = _empirical(jnp.asarray(IMAGES))


@pytest.mark.parametrize("name", ["tiny", "gray8"])
def test_samples_match_the_reference(name):
    denoiser, params = edm_weights.load(DATA / f"songunet_{name}.npz")
    oracle = load_oracle(name)
    for method in ("euler", "heun"):
        x = sampler.solve(denoiser.bind(params), oracle["latents"] * 80, GRID, method=method)
        assert np.abs(x - oracle[method]).max() <= 1e-4 * np.abs(oracle[method]).max()


def test_float64_state_is_more_accurate():
    denoiser, params = edm_weights.load(DATA / "songunet_gray8.npz")
    oracle = load_oracle("gray8")
    with jax.enable_x64(True):
        x = np.asarray(sampler.solve(denoiser.bind(params), oracle["latents"] * 80, GRID))
    assert x.dtype == np.float64
    assert np.abs(x - oracle["heun"]).max() <= 1e-5 * np.abs(oracle["heun"]).max()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence_on_gaussian_data(method, order):
    # For N(mu, diag v) the flow is x - mu = (x0 - mu) sqrt((v + sigma^2) / (v + sigma0^2)).
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        mu, v = rng.normal(size=(4, 4, 1)), rng.uniform(0.01, 2, (4, 4, 1))
        x0 = 10 * rng.normal(size=(2, 4, 4, 1))
        low, high = 0.05, 10.0

        def denoiser(x, sigma):
            return mu + v / (v + sigma[:, None, None, None] ** 2) * (x - mu)

        exact = mu + (x0 - mu) * np.sqrt((v + low**2) / (v + high**2))
        steps, errors = [32, 64, 128, 256], []
        for count in steps:
            grid = np.geomspace(high, low, count + 1)
            x = sampler.solve(denoiser, x0, grid, method=method)
            assert x.dtype == jnp.float64
            errors.append(np.sqrt(np.mean((x - exact) ** 2)))
        slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert slope == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("churn", [sampler.Churn(), sampler.Churn(amount=10, sigma_max=50)])
def test_empirical_denoiser_ends_on_training_images(method, churn):
    x = sampler.generate(EMPIRICAL, range(64), (4, 4, 1), GRID, method=method, churn=churn)
    distances = np.linalg.norm((x[:, None] - IMAGES[None]).reshape(64, 20, -1), axis=-1)
    assert distances.min(1).max() < 1e-5
    assert len(set(distances.argmin(1))) > 10  # and on many of them


def test_churn_adds_the_missing_variance():
    # From x = 0 at sigma, noise of std sqrt(sigma'^2 - sigma^2) raises the level to sigma'. A
    # denoiser that returns x leaves it untouched.
    keys = jax.random.split(jax.random.key(0), 4000)
    churn = sampler.Churn(amount=1e9, noise=1.5)
    x = sampler.solve(
        lambda x, sigma: x, jnp.zeros((4000, 4, 4, 1)), [2.0, 1.0], churn=churn, keys=keys
    )
    assert np.std(x) == pytest.approx(1.5 * 2.0, rel=0.01)  # sqrt((2 sqrt 2)^2 - 2^2) = 2


def test_image_depends_only_on_its_seed():
    seeds = [7, 3, 11, 2, 5, 19, 23, 0, 1, 42]
    churn = sampler.Churn(amount=5)
    whole = sampler.generate(EMPIRICAL, seeds, (4, 4, 1), GRID, churn=churn)
    parts = sampler.generate(EMPIRICAL, seeds[::-1], (4, 4, 1), GRID, churn=churn, batch_size=4)
    np.testing.assert_allclose(parts[::-1], whole, atol=1e-5)
    assert whole.dtype == np.float32


def test_swap_uses_each_denoiser_on_its_steps():
    calls = []
    record = lambda name: lambda x, sigma: calls.append((name, float(sigma[0]))) or x  # noqa: E731
    grid = np.array([5.0, 4.0, 3.0, 2.0, 0.0])
    with jax.disable_jit():
        sampler.solve(
            sampler.swap(record("a"), record("b"), range(1, 3)), jnp.ones((1, 2, 2, 1)), grid
        )
    expected = [("a", 5), ("a", 4), ("b", 4), ("b", 3), ("b", 3), ("b", 2), ("a", 2)]
    assert calls == expected


def test_swapped_trajectory_ends_on_the_last_denoisers_images():
    negative = _empirical(jnp.asarray(-IMAGES))
    swapped = sampler.swap(EMPIRICAL, negative, [16, 17])
    x = sampler.generate(swapped, range(8), (4, 4, 1), GRID, method="euler")
    distances = np.linalg.norm((x[:, None] + IMAGES[None]).reshape(8, 20, -1), axis=-1)
    assert distances.min(1).max() < 1e-5


def test_all_steps_share_one_compilation():
    @chex.assert_max_traces(n=1)
    def denoiser(x, sigma):
        return 0.5 * x

    x = jnp.ones((2, 4, 4, 1))
    for sigmas in (GRID, grids.edm_grid(30)):
        sampler.solve(denoiser, x, sigmas, method="euler")


def test_to_uint8_truncates():
    values = np.array([-2, -1, 0, 1 / 127.5, 0.999, 1, 3])
    np.testing.assert_array_equal(sampler.to_uint8(values), [0, 0, 128, 129, 255, 255, 255])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0, 2.0]}, "^sigmas must be two or more descending noise levels"),
        ({"sigmas": [1.0]}, "^sigmas must be two or more descending noise levels"),
        ({"sigmas": [1.0, np.nan]}, "^sigmas must be two or more descending noise levels"),
        ({"sigmas": [np.inf, 1.0]}, "^sigmas must be two or more descending noise levels"),
        ({"churn": sampler.Churn(-1.0)}, "^churn must have an amount >= 0, got -1"),
        (
            {"denoiser": lambda x, sigma: x[0]},
            r"^denoiser must return images of shape \(1, 4, 4, 1\), got \(4, 4, 1\)",
        ),
        ({"method": "rk4"}, "^method must be 'euler' or 'heun', got 'rk4'"),
        ({"churn": sampler.Churn(1.0)}, "^keys must hold one key per image .*, got None"),
        (
            {"denoiser": sampler.swap(EMPIRICAL, EMPIRICAL, [18])},
            "^steps of a swap must be between 0 and 17, got 18",
        ),
    ],
)
def test_rejects_bad_arguments(arguments, message):
    call = {"denoiser": EMPIRICAL, "x": jnp.ones((1, 4, 4, 1)), "sigmas": GRID} | arguments
    with pytest.raises(ValueError, match=message):
        sampler.solve(**call)


def test_rejects_empty_seeds():
    with pytest.raises(ValueError, match=r"^seeds must hold at least one seed, got none"):
        sampler.generate(EMPIRICAL, [], (4, 4, 1), GRID)
    with pytest.raises(ValueError, match=r"^seeds must be a sequence of integers, .*, got 4\."):
        sampler.generate(EMPIRICAL, 4, (4, 4, 1), GRID)
    with pytest.raises(ValueError, match=r"^seeds must be integers from 0 to 2\^32 - 1, got 0 to"):
        sampler.generate(EMPIRICAL, [0, 2**32], (4, 4, 1), GRID)
    with pytest.raises(ValueError, match=r"^image_shape must be positive integers, got"):
        sampler.generate(EMPIRICAL, [0], (0, 4, 1), GRID)
