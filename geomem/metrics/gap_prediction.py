"""What a gap can remove, before any training: a flow of two exact denoisers.

Sampling runs from large noise to small. Suppose that training with a gap leaves the network with
the memorizing (empirical) denoiser above the gap, and makes it generalize from the gap downwards,
as the denoiser of a much larger set of images would. Both denoisers are known exactly, so the flow
can be run: samples that still end on a training image were decided above the gap, and no gap with
that upper edge is expected to memorize less. But for chance: the training images are part of the
larger set, whose own flow ends on one of them now and then, and that much is taken out.

Running the larger set inside the gap only would say nothing: below it the empirical denoiser moves
every sample onto its nearest training image, whatever happened before, and all are memorized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geomem.diffusion import sampler
from geomem.geometry import posterior
from geomem.metrics import intervals, memorization

__all__ = ["Prediction", "predict"]


class Prediction(NamedTuple):
    """Samples of the two denoisers' flow, one row for each upper edge of a gap.

    Attributes:
      high: [G], the upper edges.
      rate: G Rates of memorized samples.
      chance: Rate of memorized samples of the pool's own flow.
      decided: [G], (rate - chance) / (1 - chance): the fraction that is decided above the edge.
      memorized: bool [G, Q].
    """

    high: np.ndarray
    rate: tuple[intervals.Rate, ...]
    chance: intervals.Rate
    decided: np.ndarray
    memorized: np.ndarray


def predict(
    train: np.ndarray,
    pool: np.ndarray,
    highs: Sequence[float],
    sigmas: np.ndarray,
    *,
    seeds: Sequence[int] = range(512),
    threshold: float = 1 / 3,
) -> Prediction:
    """The memorized fraction that is decided above each of `highs`.

    Args:
      train: float32 [N, H, W, C], the training images.
      pool: float32 [M, H, W, C], M >> N images of the same distribution, the training images among
        them: without them what was decided would be moved elsewhere.
      highs: upper edges of gaps, noise levels.
      sigmas: [S + 1], the sampling grid, as from `grids.edm_grid`: descending, then 0. An edge
        acts at the first level at or below it.
      seeds: of the samples; the same for every edge.
      threshold: of d1 / d2.

    Returns:
      Prediction. Edges between the same two levels share one flow.

    Raises:
      ValueError: no edges, images of different shapes, or a pool whose own flow always ends on
        training images.
    """
    if not len(highs):
        raise ValueError("highs: none, wanted one or more noise levels")
    if train.shape[1:] != pool.shape[1:]:
        raise ValueError(f"pool: images of {pool.shape[1:]}, wanted {train.shape[1:]}")
    memorizing, generalizing = map(posterior.empirical_denoiser, (train, pool))
    steps = len(sigmas) - 1
    flags = {}
    firsts = [int(np.argmax(np.asarray(sigmas) <= high)) for high in highs]
    for first in sorted({0, *firsts}):  # from the first step on it is the pool's own flow
        flow = sampler.swap(memorizing, generalizing, range(first, steps))
        images = sampler.generate(flow, seeds, train.shape[1:], sigmas)
        flags[first] = memorization.measure(images, train, threshold=threshold).memorized
    memorized = np.stack([flags[first] for first in firsts])
    found, chance = tuple(intervals.rate(row) for row in memorized), intervals.rate(flags[0])
    if chance.rate == 1:
        raise ValueError(f"pool: {len(pool)} images, whose own flow always ends on training images")
    decided = (np.array([one.rate for one in found]) - chance.rate) / (1 - chance.rate)
    return Prediction(np.asarray(highs, float), found, chance, decided, memorized)
