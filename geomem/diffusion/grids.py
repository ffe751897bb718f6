"""Noise levels for sampling: EDM's grid, and the same grid with steps across training gaps.

For i = 0..S-1 and S steps, with sigma_S = 0 (Karras et al. 2022, eq. 5 and table 1, "Time steps"):

    sigma_i = (sigma_max^(1/rho) + i/(S-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
"""

import math
import numbers

import numpy as np
from jaxtyping import Float64

from geomem.diffusion.schedules import Schedule

__all__ = ["edm_grid", "skip_gaps"]


def edm_grid(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float64[np.ndarray, " steps+1"]:
    """Return EDM's sampling levels, evenly spaced in sigma^(1/rho) and descending, then 0.

    Args:
      steps: number of sampler steps, 2 or more.
      sigma_min: last positive level.
      sigma_max: first level.
      rho: how strongly the levels crowd toward sigma_min.

    Raises:
      ValueError: fewer than 2 steps, not 0 < sigma_min < sigma_max, or a rho that is not positive
        or gives levels that are not finite and descending.
    """
    if not isinstance(steps, int | np.integer):
        raise ValueError(f"steps must be an integer, got {steps!r}.")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}.")
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho)):
        if not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number, got {value!r}.")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, got "
            f"{sigma_min} and {sigma_max}."
        )
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}.")
    with np.errstate(all="ignore"):
        first, last = np.array([sigma_max, sigma_min], np.float64) ** (1 / rho)
        sigmas = np.append(np.linspace(first, last, steps) ** rho, 0.0)
    if not (np.diff(sigmas) < 0).all():
        raise ValueError(f"rho must give finite and descending levels, got {rho}.")
    return sigmas


def skip_gaps(
    sigmas: Float64[np.ndarray, " levels"], schedule: Schedule
) -> Float64[np.ndarray, " kept"]:
    """Return a sampling grid that steps across the noise levels that training left out.

    At a level that was not trained, a network's output is arbitrary. So the levels inside a gap are
    replaced by the gap's two edges, which were trained, and one step crosses the gap. A gap is not
    crossed unless the grid has positive levels on both sides of it. A step that spans a factor of
    ten costs quality.

    Args:
      sigmas: descending noise levels, as from `edm_grid`.
      schedule: the training noise.

    Returns:
      Descending noise levels, at most 2 more per gap.

    Raises:
      ValueError: levels that do not descend.

    Source: geomem; `geomem.experiments.gap_training` measures the effect.

    >>> from geomem.diffusion.schedules import gap, lognormal
    >>> skip_gaps(np.array([80.0, 5.0, 2.0, 1.0, 0.1, 0.0]), gap(lognormal(), 0.5, 3.0)).tolist()
    [80.0, 5.0, 3.0, 0.5, 0.1, 0.0]
    """
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or not (np.diff(sigmas) < 0).all():
        raise ValueError(f"sigmas must be descending noise levels, got {sigmas}.")
    for low, high in schedule.gaps:
        if (sigmas > high).any() and ((sigmas < low) & (sigmas > 0)).any():
            outside = sigmas[(sigmas < low) | (sigmas > high)]
            sigmas = np.sort(np.append(outside, [low, high]))[::-1]
    return sigmas
