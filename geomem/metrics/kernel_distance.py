"""Kernel distance between two sets of features; with Inception features, KID.

Unlike the Frechet distance, it is unbiased for any number of samples and has a standard error.
"""

import math
from typing import NamedTuple

import numpy as np

from geomem.metrics.features import FeatureArray, check_features

__all__ = ["KernelDistance", "kernel_distance", "squared_mmd"]


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy (MMD), averaged over disjoint blocks of features.

    >>> print(KernelDistance(0.00123, 0.00004, 10, 1000))
    kernel distance 0.00123 +- 4e-05 (10 blocks of 1,000)

    Attributes:
      value: the mean over blocks; unbiased, so it may be slightly negative.
      error: its standard error; NaN for a single block.
      blocks, size: number of blocks, and of features of each set in a block.
    """

    value: float
    error: float
    blocks: int
    size: int

    def __str__(self) -> str:
        return (
            f"kernel distance {self.value:.3g} +- {self.error:.1g} "
            f"({self.blocks:,} blocks of {self.size:,})"
        )


def squared_mmd(x: FeatureArray, y: FeatureArray) -> float:
    """Return the unbiased MMD^2: mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j).

    The first two means are over i != j, and k(a, b) = (<a, b> / d + 1)^3 is the polynomial kernel.
    Computed in float64, because it is a small difference of large means.

    Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distance(
    samples: FeatureArray, reference: FeatureArray, *, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Return the mean and standard error of `squared_mmd` over disjoint random blocks.

    Disjoint blocks are independent, so the standard error is valid. The expectation is the same as
    with the usual 100 overlapping subsets.

    Args:
      samples, reference: features.
      size: number of features of each set in a block; at most the size of the smaller set.
      seed: seed of the shuffle.

    Raises:
      ValueError: if a block has fewer than two features, dimensions differ, or a value is not
        finite.

    Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """
    if size < 2:
        raise ValueError(f"size must be 2 or more, got {size}.")
    for name, rows in (("samples", samples), ("reference", reference)):
        if len(rows) < 2:
            raise ValueError(f"{name} must hold 2 or more features, got {len(rows)}.")
    check_features(samples, reference)
    fewest = min(len(samples), len(reference))
    size, rng = min(size, fewest), np.random.default_rng(seed)
    blocks = fewest // size
    first, second = (
        rng.permutation(len(rows))[: blocks * size].reshape(blocks, size)
        for rows in (samples, reference)
    )
    values = [squared_mmd(samples[a], reference[b]) for a, b in zip(first, second, strict=True)]
    error = np.std(values, ddof=1) / math.sqrt(blocks) if blocks > 1 else math.nan
    return KernelDistance(float(np.mean(values)), float(error), blocks, size)
