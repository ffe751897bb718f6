"""Kernel distance between two sets of features; with Inception features, KID.

Unlike the Frechet distance it is unbiased at any number of samples, and has a standard error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["KernelDistance", "kernel_distance", "squared_mmd"]


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy (MMD), averaged over disjoint blocks.

    >>> print(KernelDistance(0.00123, 0.00004, 10, 1000))
    kernel distance 0.00123 +- 4e-05 (10 blocks of 1,000)

    Attributes:
      value: the mean over blocks; unbiased, so it may be slightly negative.
      error: its standard error; NaN for a single block.
      blocks: how many.
      size: features of each set in a block.
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


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2: mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j).

    The first two means are over i != j; k(a, b) = (<a, b> / d + 1)^3 is the polynomial kernel. In
    float64: it is a small difference of large means.

    Args:
      x, y: [n, d] and [m, d], n, m >= 2.

    Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """
    x, y = np.float64(x), np.float64(y)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distance(
    samples: np.ndarray, reference: np.ndarray, *, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Mean and standard error of `squared_mmd` over as many disjoint random blocks as there are.

    Disjoint blocks are independent, which makes the error an honest one; the usual 100 overlapping
    subsets have the same expectation.

    Args:
      samples, reference: features [M, d] and [N, d].
      size: features of each set in a block; at most min(M, N) are taken.
      seed: of the shuffle.

    Raises:
      ValueError: fewer than two features, or different dimensions.
    """
    size = min(size, len(samples), len(reference))
    if size < 2:
        raise ValueError(f"size: {size} feature(s) in a block, wanted 2 or more")
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(f"reference: features {reference.shape[1:]}, wanted {samples.shape[1:]}")
    rng = np.random.default_rng(seed)
    blocks = min(len(samples), len(reference)) // size
    first, second = (
        rng.permutation(len(features))[: blocks * size].reshape(blocks, size)
        for features in (samples, reference)
    )
    values = [squared_mmd(samples[a], reference[b]) for a, b in zip(first, second, strict=True)]
    error = np.std(values, ddof=1) / math.sqrt(blocks) if blocks > 1 else math.nan
    return KernelDistance(float(np.mean(values)), float(error), blocks, size)
