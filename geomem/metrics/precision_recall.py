"""Precision, recall, density and coverage: compare two sets by their nearest neighbors.

A set is represented by the union of balls around its points, each of which reaches to the point's
k-th nearest neighbor in the set. Distances are computed in chunks, so memory does not grow with
samples x reference.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from geomem.metrics.features import FeatureArray, check_features
from geomem.points.exact import CHUNK, QUERIES, fold_rows, map_rows
from geomem.points.neighbors import nearest, squared_distances

__all__ = ["PrecisionRecall", "precision_recall"]

_TOUCHING = 1 + 1e-5  # squared distances are exact to about 1e-5, and balls are closed


class PrecisionRecall(NamedTuple):
    """The overlap of two sets of features.

    >>> print(PrecisionRecall(0.9, 0.5, 1.25, 0.75, 3, 100, 2000))
    precision 0.9, recall 0.5, density 1.25, coverage 0.75 (100 samples, reference of 2,000, k = 3)

    Attributes:
      precision: fraction of the samples inside a ball of the reference (fidelity).
      recall: fraction of the reference inside a ball of the samples (diversity).
      density: average number of reference balls that contain a sample, divided by k; may exceed 1.
      coverage: fraction of the reference balls that contain a sample.
      k: the balls reach to the k-th nearest neighbor.
      count, reference_count: sizes of both sets.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    count: int
    reference_count: int

    def __str__(self) -> str:
        values = ", ".join(f"{name} {getattr(self, name):.3g}" for name in self._fields[:4])
        return (
            f"{values} ({self.count:,} samples, reference of {self.reference_count:,}, "
            f"k = {self.k})"
        )


def precision_recall(
    samples: FeatureArray, reference: FeatureArray, k: int = 3, *, chunk: int = CHUNK
) -> PrecisionRecall:
    """Return precision and recall, density and coverage of samples against a reference.

    Let r be the distance from a point to the k-th nearest other point of its set, and B the closed
    ball. Then precision = P(y in union_i B(x_i, r_i)) over samples y and reference points x, recall
    is the same with the roles exchanged, density = mean_y #{i : y in B(x_i, r_i)} / k, and
    coverage = P(B(x, r) contains a sample) over reference points x.

    Args:
      samples, reference: more than k features each.
      k: 3 is usual for precision and recall, 5 for density and coverage.
      chunk: points per matrix product.

    Raises:
      ValueError: if k < 1, a set has too few points, dimensions differ, or a value is not finite.

    Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991); Naeem et al. 2020 (arXiv 2002.09797).
    """
    samples, reference = (jnp.asarray(x, jnp.float32) for x in (samples, reference))
    fewest = min(len(samples), len(reference))
    if not 1 <= k < fewest:
        raise ValueError(f"k must be from 1 to {fewest - 1} for sets of {fewest}, got {k}.")
    check_features(samples, reference)

    def radii(points):
        # k + 1, because the nearest point in the set is the point itself.
        return nearest(points, points, k + 1, chunk=chunk).distance[:, -1]

    sample_radii, reference_radii = radii(samples), radii(reference)
    balls = _count_balls(samples, reference, reference_radii, chunk=chunk)
    recalled = _count_balls(reference, samples, sample_radii, chunk=chunk) > 0
    covered = nearest(reference, samples, 1, chunk=chunk).distance[:, 0] <= reference_radii
    return PrecisionRecall(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float(covered.mean()),
        k=k,
        count=len(samples),
        reference_count=len(reference),
    )


@functools.partial(jax.jit, static_argnames="chunk")
def _count_balls(queries, points, radii, *, chunk):
    """The number of balls B(points_i, radii_i) that contain each query, [Q]."""
    limits = radii**2 * _TOUCHING

    def block(queries):
        def update(count, rows, index, fresh):
            points, limits = rows
            inside = squared_distances(queries, points) <= limits
            return count + jnp.sum(inside & fresh, axis=1)

        return fold_rows((points, limits), jnp.zeros(len(queries), jnp.int32), update, chunk)

    return map_rows(block, (queries,), QUERIES)
