"""Which noise levels a sampler visits: EDM's grid, and how it skips a gap in the training noise."""

from __future__ import annotations

import numpy as np

from geomem.diffusion.schedules import Schedule, check_interval

__all__ = ["edm_grid", "log_grid", "skip_gaps"]


def edm_grid(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray:
    """EDM's sampling levels, evenly spaced in sigma^(1/rho), then 0 (Karras et al. 2022, eq. 5).

    Args:
      steps: the number of sampler steps, 2 or more.
      sigma_min, sigma_max: the last positive and the first level.
      rho: how strongly the levels crowd towards sigma_min.

    Returns:
      float64 [steps + 1], descending, ending with 0.
    """
    _check_grid(steps, sigma_min, sigma_max)
    return np.append(np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho, 0.0)


def log_grid(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> np.ndarray:
    """Sampling levels evenly spaced in ln sigma, then 0: float64 [steps + 1], descending."""
    _check_grid(steps, sigma_min, sigma_max)
    return np.append(np.geomspace(sigma_max, sigma_min, steps), 0.0)


def skip_gaps(sigmas: np.ndarray, schedule: Schedule) -> np.ndarray:
    """A sampling grid that steps over the noise levels that training left out.

    What a network says of levels that it never saw is arbitrary: those inside a gap make way for
    its two edges, which were trained, and one step crosses it. A gap without a level of the grid
    above or below (but 0) stays as it is. A step that spans a factor of ten costs quality.

    Args:
      sigmas: [S + 1], descending, as from `edm_grid`.
      schedule: the training noise.

    Returns:
      float64, descending; as long as before or shorter, or longer by at most 2 for each gap.

    Source: geomem; `geomem.experiments.gap_training` measures what it changes.

    >>> from geomem.diffusion.schedules import gap, lognormal
    >>> skip_gaps(np.array([80.0, 5.0, 2.0, 1.0, 0.1, 0.0]), gap(lognormal(), 0.5, 3.0)).tolist()
    [80.0, 5.0, 3.0, 0.5, 0.1, 0.0]
    """
    sigmas = np.asarray(sigmas, np.float64)
    for low, high in schedule.gaps:
        if (sigmas > high).any() and ((sigmas < low) & (sigmas > 0)).any():
            outside = sigmas[(sigmas < low) | (sigmas > high)]
            sigmas = np.sort(np.append(outside, [low, high]))[::-1]
    return sigmas


def _check_grid(steps, sigma_min, sigma_max):
    if steps < 2:
        raise ValueError(f"steps: {steps}, wanted 2 or more")
    check_interval("sigma_min, sigma_max", sigma_min, sigma_max)
