"""The noise level in the conventions of EDM, DDPM and flow matching.

Each convention adds noise eps ~ N(0, I) to data x_0, which gives a multiple of x_0 + sigma eps:

- EDM: x = x_0 + sigma eps.
- DDPM, timestep t = 0..T-1: x = sqrt(abar) x_0 + sqrt(1 - abar) eps with
  abar = prod_{s <= t} (1 - beta_s), so sigma = sqrt((1 - abar) / abar).
- Flow matching (rectified flow), time t in [0, 1), data at t = 0: x = (1 - t) x_0 + t eps,
  so sigma = t / (1 - t). If the data are at t = 1, replace t by 1 - t.

sigma has the units of x_0, which in geomem are those of images in [-1, 1]. For a model of k x_0 the
noise level is k sigma. Images in [0, 1] have k = 1/2; their shift does not matter.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Float64
from scipy.special import ndtr

__all__ = [
    "TrainingNoise",
    "cosine_betas",
    "ddpm_noise",
    "ddpm_sigmas",
    "linear_betas",
    "sigma_to_flow_time",
    "sigma_to_timestep",
    "timesteps_between",
    "usual_training_noise",
]


def linear_betas(
    steps: int = 1000, start: float = 1e-4, end: float = 0.02
) -> Float64[np.ndarray, " timesteps"]:
    """Return DDPM's betas, evenly spaced (Ho et al. 2020)."""
    return np.linspace(start, end, steps)


def cosine_betas(
    steps: int = 1000, offset: float = 0.008, largest: float = 0.999
) -> Float64[np.ndarray, " timesteps"]:
    """Return betas with abar(t) proportional to cos^2(pi/2 (t/T + offset) / (1 + offset)).

    Clipped at `largest` (Nichol and Dhariwal 2021; diffusers' "squaredcos_cap_v2").
    """
    times = np.arange(steps + 1) / steps
    abar = np.cos((times + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], largest)


def ddpm_sigmas(betas: Float[np.ndarray, " timesteps"]) -> Float64[np.ndarray, " timesteps"]:
    """Return sigma = sqrt((1 - abar) / abar) of each timestep, ascending.

    Raises:
      ValueError: fewer than two betas, or one outside (0, 1).

    >>> ddpm_sigmas(linear_betas())[[0, 500, 999]].round(2)
    array([1.0000e-02, 3.4400e+00, 1.5741e+02])
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            "betas must be a 1D array of two or more numbers between 0 and 1, got "
            f"{np.array2string(betas, threshold=6, edgeitems=2, separator=', ')}."
        )
    # 1 / abar - 1, computed from log abar, because 1 - abar loses its digits when abar is near 1.
    return np.sqrt(np.expm1(-np.cumsum(np.log1p(-betas))))


def sigma_to_timestep(
    sigma: Float[ArrayLike, "*shape"], betas: Float[np.ndarray, " timesteps"]
) -> Float64[np.ndarray, "*shape"]:
    """Return fractional DDPM timesteps, interpolated in ln sigma and clipped to [0, T - 1]."""
    sigmas = ddpm_sigmas(betas)
    return np.interp(np.log(sigma), np.log(sigmas), np.arange(len(sigmas)))


def timesteps_between(low: float, high: float, betas: Float[np.ndarray, " timesteps"]) -> range:
    """Return the timesteps with a noise level in [low, high], possibly none."""
    sigmas = ddpm_sigmas(betas)
    return range(
        int(np.searchsorted(sigmas, low, "left")), int(np.searchsorted(sigmas, high, "right"))
    )


def sigma_to_flow_time(sigma: Float[ArrayLike, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return t = sigma / (1 + sigma) for noise levels >= 0, data at t = 0."""
    sigma = np.asarray(sigma)
    return sigma / (1 + sigma)


class TrainingNoise(NamedTuple):
    """How a recipe spreads its training steps over the noise levels.

    Attributes:
      name: name of the recipe.
      cumulative: maps noise levels to the share of training steps at or below them.
    """

    name: str
    cumulative: Callable[[Float[ArrayLike, "*shape"]], Float64[np.ndarray, "*shape"]]

    def share(self, low: float, high: float) -> float:
        """Return the share of training steps with a noise level in [low, high], low > 0."""
        return float(self.cumulative(high) - self.cumulative(np.nextafter(low, 0)))


def ddpm_noise(name: str, betas: Float[np.ndarray, " timesteps"]) -> TrainingNoise:
    """Return the training noise of uniformly drawn timesteps."""
    sigmas = ddpm_sigmas(betas)
    return TrainingNoise(name, lambda s: np.searchsorted(sigmas, s, "right") / len(sigmas))


def usual_training_noise() -> tuple[TrainingNoise, ...]:
    """Return the training noise of five common recipes.

    EDM: ln sigma ~ N(-1.2, 1.2^2). DDPM: uniform over 1,000 timesteps with linear or cosine betas.
    Flow matching: t uniform on [0, 1], or logit-normal(0, 1) as in Stable Diffusion 3 (Esser et al.
    2024), so that ln sigma = ln(t / (1 - t)) is N(0, 1). Stable Diffusion 3's shift for large
    images, which multiplies all sigma by a constant, is not included.

    >>> for noise in usual_training_noise():
    ...     print(f"{noise.name}: {noise.share(1, 3):.1%} of the training steps")
    EDM, lognormal: 13.1% of the training steps
    DDPM, linear betas: 21.6% of the training steps
    DDPM, cosine betas: 29.7% of the training steps
    flow matching, uniform t: 25.0% of the training steps
    flow matching, logit-normal t: 36.4% of the training steps
    """
    return (
        TrainingNoise("EDM, lognormal", lambda sigma: ndtr((np.log(sigma) + 1.2) / 1.2)),
        ddpm_noise("DDPM, linear betas", linear_betas()),
        ddpm_noise("DDPM, cosine betas", cosine_betas()),
        TrainingNoise("flow matching, uniform t", sigma_to_flow_time),
        TrainingNoise("flow matching, logit-normal t", lambda sigma: ndtr(np.log(sigma))),
    )
