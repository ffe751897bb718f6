"""sigma <-> timestep <-> flow time by round trip and by definition; shares against plain counts."""

import itertools

import numpy as np
import pytest

from geomem.diffusion import conventions

BETAS = {"linear": conventions.linear_betas(), "cosine": conventions.cosine_betas()}


def alpha_bars(betas):
    remaining, values = 1.0, []
    for beta in betas:
        remaining *= 1 - beta
        values.append(remaining)
    return np.array(values)


@pytest.mark.parametrize("name", BETAS)
def test_ddpm_levels_by_definition(name):
    sigmas = conventions.ddpm_sigmas(BETAS[name])
    remaining = alpha_bars(BETAS[name])
    np.testing.assert_allclose(sigmas, np.sqrt((1 - remaining) / remaining), rtol=1e-9)
    assert (np.diff(sigmas) > 0).all()


def test_published_ends_of_the_betas():
    assert BETAS["linear"][[0, -1]] == pytest.approx([1e-4, 0.02])
    # cos^2 form: abar after all T steps but the clipped last ones, from its closed form.
    times = (np.arange(1, 900) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = (np.cos(times) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    np.testing.assert_allclose(alpha_bars(BETAS["cosine"])[:899], expected, rtol=1e-9)
    assert BETAS["cosine"].max() == 0.999


@pytest.mark.parametrize("name", BETAS)
def test_timesteps_round_trip(name, rng):
    steps = np.concatenate([np.arange(1000), rng.uniform(0, 999, 200)])
    sigmas = conventions.timestep_to_sigma(steps, BETAS[name])
    np.testing.assert_allclose(conventions.sigma_to_timestep(sigmas, BETAS[name]), steps, atol=1e-8)
    levels = np.geomspace(0.02, 100, 50)
    steps = conventions.sigma_to_timestep(levels, BETAS[name])
    np.testing.assert_allclose(
        conventions.timestep_to_sigma(steps, BETAS[name]), levels, rtol=1e-10
    )
    # Beyond the ends there is no timestep: clipped.
    assert conventions.sigma_to_timestep(1e-9, BETAS[name]) == 0
    assert conventions.sigma_to_timestep(1e9, BETAS[name]) == 999


@pytest.mark.parametrize("name", BETAS)
def test_intervals_hold_the_levels_between(name):
    sigmas = conventions.ddpm_sigmas(BETAS[name])
    for low, high in ((0.5, 5.0), (sigmas[10], sigmas[20]), (1e-6, 1e9), (1e-6, 1e-5)):
        inside = [t for t in range(1000) if low <= sigmas[t] <= high]
        assert list(conventions.timesteps_between(low, high, BETAS[name])) == inside
        noise = conventions.ddpm_noise(name, BETAS[name])
        assert noise.share(low, high) == pytest.approx(len(inside) / 1000, abs=1e-12)


def test_flow_time_round_trip_and_meaning(rng):
    times = rng.uniform(0, 0.999, 100)
    sigmas = conventions.flow_time_to_sigma(times)
    np.testing.assert_allclose(conventions.sigma_to_flow_time(sigmas), times, rtol=1e-12)
    assert conventions.flow_time_to_sigma(0.5) == 1
    image, eps = rng.normal(size=(2, 100))
    mixed = (1 - times) * image + times * eps
    np.testing.assert_allclose(mixed / (1 - times), image + sigmas * eps, rtol=1e-9)


def test_shares_against_draws(rng):
    """What trainers draw, by their own recipes; 4 standard errors of 400,000 draws."""
    count = 400_000
    draws = {
        "EDM, lognormal": np.exp(rng.normal(-1.2, 1.2, count)),
        "DDPM, linear betas": conventions.ddpm_sigmas(BETAS["linear"])[
            rng.integers(1000, size=count)
        ],
        "DDPM, cosine betas": conventions.ddpm_sigmas(BETAS["cosine"])[
            rng.integers(1000, size=count)
        ],
        "flow matching, uniform t": conventions.flow_time_to_sigma(rng.uniform(size=count)),
        "flow matching, logit-normal t": conventions.flow_time_to_sigma(
            1 / (1 + np.exp(-rng.normal(size=count)))
        ),
    }
    noises = conventions.usual_training_noise()
    assert [noise.name for noise in noises] == list(draws)
    for noise in noises:
        for low, high in ((0.2, 0.6), (1.68, 4.96), (5, 1e3)):
            inside = np.mean((draws[noise.name] >= low) & (draws[noise.name] <= high))
            assert noise.share(low, high) == pytest.approx(inside, abs=4 * 0.5 / count**0.5)
        edges = np.geomspace(1e-3, 1e3, 30)
        total = sum(noise.share(a, b) for a, b in itertools.pairwise(edges))
        assert total == pytest.approx(noise.share(1e-3, 1e3), abs=1e-9)


@pytest.mark.parametrize("betas", [[0.1, 1.0], [0.0, 0.1], [0.1], [[0.1, 0.2]]])
def test_bad_betas_are_named(betas):
    with pytest.raises(ValueError, match="betas: wanted two or more numbers between 0 and 1"):
        conventions.ddpm_sigmas(np.array(betas))
