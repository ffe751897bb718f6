"""Conversions against their definitions; shares of training noise against plain counts."""

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
def test_ddpm_sigmas_match_the_definition(name):
    sigmas = conventions.ddpm_sigmas(BETAS[name])
    remaining = alpha_bars(BETAS[name])
    np.testing.assert_allclose(sigmas, np.sqrt((1 - remaining) / remaining), rtol=1e-9)
    assert (np.diff(sigmas) > 0).all()


def test_betas_match_the_published_schedules():
    assert BETAS["linear"][[0, -1]] == pytest.approx([1e-4, 0.02])
    # cos^2 form: abar after all T steps but the clipped last ones, from its closed form.
    times = (np.arange(1, 900) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = (np.cos(times) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    np.testing.assert_allclose(alpha_bars(BETAS["cosine"])[:899], expected, rtol=1e-9)
    assert BETAS["cosine"].max() == 0.999


@pytest.mark.parametrize("name", BETAS)
def test_timesteps_match_the_definition(name, rng):
    sigmas = conventions.ddpm_sigmas(BETAS[name])
    # Fractional timesteps are linear in ln sigma.
    whole, fraction = rng.integers(0, 999, 200), rng.uniform(size=200)
    between = sigmas[whole] ** (1 - fraction) * sigmas[whole + 1] ** fraction
    for levels, steps in ((sigmas, np.arange(1000)), (between, whole + fraction)):
        timesteps = conventions.sigma_to_timestep(levels, BETAS[name])
        np.testing.assert_allclose(timesteps, steps, atol=1e-8)
    # Levels beyond the ends are clipped.
    assert conventions.sigma_to_timestep(1e-9, BETAS[name]) == 0
    assert conventions.sigma_to_timestep(1e9, BETAS[name]) == 999


@pytest.mark.parametrize("name", BETAS)
def test_intervals_contain_the_levels_between_their_edges(name):
    sigmas = conventions.ddpm_sigmas(BETAS[name])
    for low, high in ((0.5, 5.0), (sigmas[10], sigmas[20]), (1e-6, 1e9), (1e-6, 1e-5)):
        inside = [t for t in range(1000) if low <= sigmas[t] <= high]
        assert list(conventions.timesteps_between(low, high, BETAS[name])) == inside
        noise = conventions.ddpm_noise(name, BETAS[name])
        assert noise.share(low, high) == pytest.approx(len(inside) / 1000, abs=1e-12)


def test_flow_time_matches_the_definition(rng):
    times = rng.uniform(0, 0.999, 100)
    sigmas = times / (1 - times)
    np.testing.assert_allclose(conventions.sigma_to_flow_time(sigmas), times, rtol=1e-12)
    image, eps = rng.normal(size=(2, 100))
    mixed = (1 - times) * image + times * eps
    np.testing.assert_allclose(mixed / (1 - times), image + sigmas * eps, rtol=1e-9)


def test_shares_match_draws(rng):
    """Compare with 400,000 draws of each recipe, within 4 standard errors."""
    count = 400_000
    uniform, logit_normal = rng.uniform(size=count), 1 / (1 + np.exp(-rng.normal(size=count)))
    draws = {
        "EDM, lognormal": np.exp(rng.normal(-1.2, 1.2, count)),
        "DDPM, linear betas": conventions.ddpm_sigmas(BETAS["linear"])[
            rng.integers(1000, size=count)
        ],
        "DDPM, cosine betas": conventions.ddpm_sigmas(BETAS["cosine"])[
            rng.integers(1000, size=count)
        ],
        "flow matching, uniform t": uniform / (1 - uniform),
        "flow matching, logit-normal t": logit_normal / (1 - logit_normal),
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
def test_rejects_bad_betas(betas):
    with pytest.raises(
        ValueError, match=r"^betas must be a 1D array of two or more numbers between 0 and 1, got"
    ):
        conventions.ddpm_sigmas(np.array(betas))
