"""One noise level in the three languages of diffusion models, and how often each is trained on.

Every one of them noises data x_0 with eps ~ N(0, I) to a multiple of x_0 + sigma eps:

- EDM: x = x_0 + sigma eps;
- DDPM, timestep t = 0..T-1: x = sqrt(abar) x_0 + sqrt(1 - abar) eps with
  abar = prod_{s <= t} (1 - beta_s), so sigma = sqrt((1 - abar) / abar);
- flow matching (rectified flow), time t in [0, 1), data at t = 0: x = (1 - t) x_0 + t eps,
  so sigma = t / (1 - t). Where the data are at t = 1, read 1 - t for t.

sigma is in the units of x_0. geomem's are those of images in [-1, 1]; a model that sees a x_0, say
images of unit variance or in [0, 1] (a = 1/2, the shift is no matter), has sigma' = a sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from geomem.diffusion import schedules

__all__ = [
    "TrainingNoise",
    "cosine_betas",
    "ddpm_noise",
    "ddpm_sigmas",
    "flow_time_to_sigma",
    "linear_betas",
    "sigma_to_flow_time",
    "sigma_to_timestep",
    "timestep_to_sigma",
    "timesteps_between",
    "usual_training_noise",
]


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """DDPM's betas, evenly spaced: float64 [T] (Ho et al. 2020)."""
    return np.linspace(start, end, steps)


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """Betas with abar(t) = cos^2(pi/2 (t/T + s) / (1 + s)) up to its scale: float64 [T].

    s = `offset`. Clipped at `largest` (Nichol and Dhariwal 2021; diffusers' "squaredcos_cap_v2").
    """
    times = np.arange(steps + 1) / steps
    remaining = np.cos((times + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.minimum(1 - remaining[1:] / remaining[:-1], largest)


def ddpm_sigmas(betas: np.ndarray) -> np.ndarray:
    """sigma = sqrt((1 - abar) / abar) of each timestep: float64 [T], ascending.

    Args:
      betas: [T], each in (0, 1).

    Raises:
      ValueError: a beta outside (0, 1).

    >>> ddpm_sigmas(linear_betas())[[0, 500, 999]].round(2)
    array([1.0000e-02, 3.4400e+00, 1.5741e+02])
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError("betas: wanted two or more numbers between 0 and 1")
    # 1 / abar - 1, from the logarithm: 1 - abar has no digits left where abar is near 1.
    return np.sqrt(np.expm1(-np.cumsum(np.log1p(-betas))))


def timestep_to_sigma(timestep: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """The noise level of timesteps [...] in [0, T - 1], by ln sigma linear between whole ones."""
    sigmas = ddpm_sigmas(betas)
    return np.exp(np.interp(timestep, np.arange(len(sigmas)), np.log(sigmas)))


def sigma_to_timestep(sigma: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """The inverse of `timestep_to_sigma`: float64 [...], fractional, clipped to [0, T - 1]."""
    sigmas = ddpm_sigmas(betas)
    return np.interp(np.log(sigma), np.log(sigmas), np.arange(len(sigmas)))


def timesteps_between(low: float, high: float, betas: np.ndarray) -> range:
    """The whole timesteps whose noise level lies in [low, high]; may be empty."""
    sigmas = ddpm_sigmas(betas)
    return range(
        int(np.searchsorted(sigmas, low, "left")), int(np.searchsorted(sigmas, high, "right"))
    )


def flow_time_to_sigma(time: np.ndarray) -> np.ndarray:
    """sigma = t / (1 - t) for times [...] in [0, 1), data at 0."""
    return time / (1 - time)


def sigma_to_flow_time(sigma: np.ndarray) -> np.ndarray:
    """t = sigma / (1 + sigma) for noise levels [...] >= 0, data at 0."""
    return sigma / (1 + sigma)


class TrainingNoise(NamedTuple):
    """How a recipe spreads its training steps over the noise levels.

    Attributes:
      name: of the recipe.
      cumulative: maps noise levels [...] to the share of steps at or below them, float64 [...].
    """

    name: str
    cumulative: Callable[[np.ndarray], np.ndarray]

    def share(self, low: float, high: float) -> float:
        """The share of training steps whose noise level lies in [low, high]."""
        return float(self.cumulative(high) - self.cumulative(np.nextafter(low, 0)))


def ddpm_noise(name: str, betas: np.ndarray) -> TrainingNoise:
    """Timesteps drawn uniformly: each level counts 1 / T."""
    sigmas = ddpm_sigmas(betas)
    return TrainingNoise(name, lambda s: np.searchsorted(sigmas, s, "right") / len(sigmas))


def usual_training_noise() -> tuple[TrainingNoise, ...]:
    """The training noise of usual recipes, in closed form, or by count for DDPM's timesteps.

    EDM: ln sigma ~ N(-1.2, 1.2^2). DDPM: uniform over 1,000 timesteps with linear or cosine betas.
    Flow matching: t uniform on [0, 1]; or logit-normal(0, 1), Stable Diffusion 3's (Esser et al.
    2024), for which ln(t / (1 - t)) = ln sigma is N(0, 1), so that it is EDM's form again. SD3's
    shift for large images multiplies all sigma by a constant and is left out.

    >>> for noise in usual_training_noise():
    ...     print(f"{noise.name}: {noise.share(1, 3):.1%} of the training steps")
    EDM, lognormal: 13.1% of the training steps
    DDPM, linear betas: 21.6% of the training steps
    DDPM, cosine betas: 29.7% of the training steps
    flow matching, uniform t: 25.0% of the training steps
    flow matching, logit-normal t: 36.4% of the training steps
    """
    return (
        TrainingNoise("EDM, lognormal", _lognormal_cumulative(-1.2, 1.2)),
        ddpm_noise("DDPM, linear betas", linear_betas()),
        ddpm_noise("DDPM, cosine betas", cosine_betas()),
        TrainingNoise("flow matching, uniform t", sigma_to_flow_time),
        TrainingNoise("flow matching, logit-normal t", _lognormal_cumulative(0.0, 1.0)),
    )


def _lognormal_cumulative(mean, std):
    schedule = schedules.lognormal(mean, std)
    return np.vectorize(lambda sigma: schedule.mass(0, sigma), otypes=[np.float64])
