"""Precision, recall, density and coverage: two sets compared by their nearest neighbours.

Each set stands for the union of balls around its points, out to their k-th neighbours. Distances
go by chunks; memory does not grow with samples x reference.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from geomem.metrics.features import check_finite
from geomem.points.neighbours import nearest, squared_distances
from geomem.points.visit import CHUNK, QUERIES, fold_rows, map_rows

__all__ = ["PrecisionRecall", "precision_recall"]

_TOUCHING = 1 + 1e-5  # squared distances are exact to about 1e-5, and a ball holds its boundary


class PrecisionRecall(NamedTuple):
    """How two sets of features overlap.

    >>> print(PrecisionRecall(0.9, 0.5, 1.25, 0.75, 3, 100, 2000))
    precision 0.9, recall 0.5, density 1.25, coverage 0.75 (100 samples, reference of 2,000, k = 3)

    Attributes:
      precision: fraction of the samples inside a ball of the reference: fidelity.
      recall: fraction of the reference inside a ball of the samples: diversity.
      density: balls of the reference that hold a sample, on average, over k; may exceed 1.
      coverage: fraction of the balls of the reference that hold a sample.
      neighbours: k.
      count: number of samples.
      reference_count: size of the reference.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    neighbours: int
    count: int
    reference_count: int

    def __str__(self) -> str:
        values = ", ".join(f"{name} {getattr(self, name):.3g}" for name in self._fields[:4])
        return (
            f"{values} ({self.count:,} samples, reference of {self.reference_count:,}, "
            f"k = {self.neighbours})"
        )


def precision_recall(
    samples: jax.Array, reference: jax.Array, neighbours: int = 3, *, chunk: int = CHUNK
) -> PrecisionRecall:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    With r_i the distance of a point to the k-th nearest other point of its set, and B the closed
    ball: precision = P(y in union_i B(x_i, r_i)) over samples y and reference points x, recall the
    same with the roles exchanged, density = mean_y #{i : y in B(x_i, r_i)} / k, and coverage =
    P(B(x, r) holds a sample) over reference points x.

    Args:
      samples: features [M, d], M > k.
      reference: features [N, d], N > k.
      neighbours: k; 3 is usual for precision and recall, 5 for density and coverage.
      chunk: points per matrix product.

    Raises:
      ValueError: k < 1, too few points, different dimensions, or values that are not finite.

    Source: arXiv 1904.06991; arXiv 2002.09797.
    """
    samples, reference = (jnp.asarray(x, jnp.float32) for x in (samples, reference))
    fewest = min(len(samples), len(reference))
    if not 1 <= neighbours < fewest:
        raise ValueError(f"neighbours: {neighbours}, wanted 1 to {fewest - 1}")
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(f"reference: features {reference.shape[1:]}, wanted {samples.shape[1:]}")
    check_finite(samples=samples, reference=reference)

    def radii(points):
        # A point is its own nearest; of duplicates each is the other's.
        return nearest(points, points, neighbours + 1, chunk=chunk).distance[:, -1]

    ours, theirs = radii(samples), radii(reference)
    balls = _balls_around(samples, reference, theirs, chunk=chunk)
    inside = _balls_around(reference, samples, ours, chunk=chunk) > 0
    reached = nearest(reference, samples, 1, chunk=chunk).distance[:, 0] <= theirs
    return PrecisionRecall(
        float((balls > 0).mean()),
        float(inside.mean()),
        float(balls.mean() / neighbours),
        float(reached.mean()),
        neighbours,
        len(samples),
        len(reference),
    )


@functools.partial(jax.jit, static_argnames="chunk")
def _balls_around(queries, points, radii, *, chunk):
    """How many of the balls B(points_i, radii_i) hold each query: [Q, d], [N, d], [N] -> [Q]."""
    limits = radii**2 * _TOUCHING

    def block(queries):
        def update(count, rows, index, fresh):
            points, limits = rows
            held = squared_distances(queries, points) <= limits
            return count + jnp.sum(held & fresh, axis=1)

        return fold_rows((points, limits), jnp.zeros(len(queries), jnp.int32), update, chunk)

    return map_rows(block, (queries,), QUERIES)
