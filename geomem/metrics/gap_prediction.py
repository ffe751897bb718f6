"""Predict, without training, how much memorization remains after a gap, with two exact denoisers.

Sampling goes from large noise to small. Assume that a network trained with a gap acts as the
memorizing (empirical) denoiser above the gap, and that it generalizes inside and below the gap,
like the empirical denoiser of a much larger set of images, the pool. Both denoisers are known
exactly, so the sampler can be run with them. A sample that still ends on a training image was
decided above the gap. Because the pool contains the training images, sampling with the pool's
denoiser alone sometimes ends on one of them by chance; that rate is subtracted. The result is a
prediction under this assumption, not a bound: a trained network may memorize less or more.

It would not work to use the pool only inside the gap: below the gap, the empirical denoiser would
move every sample onto its nearest training image, and all samples would be memorized.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from geomem.diffusion import sampler
from geomem.geometry import posterior
from geomem.metrics import intervals, memorization

__all__ = ["Prediction", "predict"]


class Prediction(NamedTuple):
    """The predicted memorization for each upper edge of a gap.

    Attributes:
      high: the upper edges.
      rate: Rate of memorized samples for each edge.
      chance: Rate of memorized samples when the pool's denoiser is used at all levels.
      decided: (rate - chance) / (1 - chance), the fraction of samples decided above the edge.
      memorized: whether each sample is memorized.
    """

    high: Float[np.ndarray, " edges"]
    rate: tuple[intervals.Rate, ...]
    chance: intervals.Rate
    decided: Float[np.ndarray, " edges"]
    memorized: Bool[np.ndarray, "edges samples"]


def predict(
    train: Float[np.ndarray, "train height width channels"],
    pool: Float[np.ndarray, "pool height width channels"],
    highs: Sequence[float] | Float[np.ndarray, " highs"],
    sigmas: Float[np.ndarray, " levels"],
    *,
    seeds: Sequence[int] = range(512),
    threshold: float = 1 / 3,
) -> Prediction:
    """Predict the fraction of samples that stay memorized for each upper edge of a gap.

    Args:
      train: the training images.
      pool: many more images of the same distribution. They must include the training images;
        otherwise the flow would move samples away from them even if they were decided.
      highs: upper edges of gaps (noise levels).
      sigmas: the sampling grid, descending and then 0, as from `grids.edm_grid`. The denoisers
        switch at the first level at or below an edge.
      seeds: seeds of the samples, the same for every edge.
      threshold: threshold of d1 / d2.

    Returns:
      Prediction. Edges between the same two sampling levels share their samples.

    Raises:
      ValueError: if there are no edges, image shapes differ, or sampling with the pool alone always
        ends on training images.
    """
    if not len(highs):
        raise ValueError("highs must not be empty.")
    if train.shape[1:] != pool.shape[1:]:
        raise ValueError(
            f"pool must be images of shape {train.shape[1:]} like train, got {pool.shape[1:]}."
        )
    memorizing = posterior.empirical_denoiser(train)
    generalizing = posterior.empirical_denoiser(pool)
    steps = len(sigmas) - 1
    flags = {}
    firsts = [int(np.argmax(np.asarray(sigmas) <= high)) for high in highs]
    for first in sorted({0, *firsts}):  # 0 uses the pool's denoiser at all levels
        flow = sampler.swap(memorizing, generalizing, range(first, steps))
        images = sampler.generate(flow, seeds, train.shape[1:], sigmas)
        flags[first] = memorization.measure(images, train, threshold=threshold).memorized
    memorized = np.stack([flags[first] for first in firsts])
    rates, chance = tuple(intervals.rate(row) for row in memorized), intervals.rate(flags[0])
    if chance.rate == 1:
        raise ValueError(
            f"pool must hold many images beside the training images, got {len(pool)} images and a "
            "flow that always ends on training images."
        )
    decided = (np.array([rate.rate for rate in rates]) - chance.rate) / (1 - chance.rate)
    return Prediction(np.asarray(highs, float), rates, chance, decided, memorized)
